"""What a model's parts cost, in milliseconds that were measured or in numbers that are counted, and which to keep.

A part's cost depends on a layer's heads, on its neurons, and on whether it is the last layer, which serving computes at
one position alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.methods.importance import Importance
from compress.methods.shapes import LayerShape

Values = NDArray[np.floating[Any]]

BINS = 1000
"""Steps of each layer in which a budget is spent."""


@dataclass(frozen=True)
class Part:
    """Costs of a layer by what it has."""

    layer: float
    """What is left of one that has no head and no neuron: its LayerNorms."""
    heads: Values
    """Of 0, 1, 2 ... heads; (A + 1)."""
    neurons: Values
    """Of 0, 1, 2 ... neurons; (F + 1)."""

    def of(self, shape: LayerShape) -> float:
        return float(self.layer + self.heads[shape.heads] + self.neurons[shape.neurons])


@dataclass(frozen=True)
class Costs:
    """Of a model of one width."""

    rest: float
    """What is in no layer: embeddings, what becomes of the last state."""
    inner: Part
    last: Part

    def of(self, shapes: Sequence[LayerShape]) -> float:
        """A whole model's."""
        return self.rest + sum(self.inner.of(shape) for shape in shapes[:-1]) + self.last.of(shapes[-1])


def counted(kind: str, hidden: int, head_size: int, most: LayerShape, length: float, rest: int) -> Costs:
    """Costs by arithmetic.

    Args:
        kind: "parameters"; "bytes", four a parameter; or "flops", of the layers' products at every position.
        most: the heads and neurons of the largest layer.
        length: positions that attention sees.
        rest: parameters outside the layers.

    """
    heads, neurons = np.arange(most.heads + 1), np.arange(most.neurons + 1)
    if kind == "flops":
        part = Part(0.0, heads * head_size * (8.0 * hidden + 4.0 * length), neurons * 4.0 * hidden)
        return Costs(0.0, part, part)
    scale = 4.0 if kind == "bytes" else 1.0
    of_heads = heads * head_size * (4.0 * hidden + 3)
    part = Part(scale * 6 * hidden, scale * of_heads, scale * neurons * (2.0 * hidden + 1))
    return Costs(scale * rest, part, part)


def measured(table: Mapping[str, Any], hidden: int) -> Costs:
    """Costs in milliseconds from a profile's table of one batch size; between what was timed lies a line."""
    here = table["hidden"][str(hidden)]

    def part(timed: Mapping[str, Any]) -> Part:
        def line(points: Mapping[str, float]) -> Values:
            sizes = np.array([0, *map(int, points)])
            return np.interp(np.arange(sizes.max() + 1), sizes, [0.0, *points.values()])

        return Part(timed["layer"], line(timed["heads"]), line(timed["neurons"]))

    return Costs(here["rest"], part(here["inner"]), part(here["last"]))


def cheapest_loss(
    importance: Importance,
    costs: Costs,
    budget: float,
    depths: Sequence[int],
    neuron_counts: Sequence[Sequence[int]],
    *,
    whole_layers: bool,
) -> tuple[float, list[tuple[int, int] | None]] | None:
    """What to keep of each layer so that the least importance is lost within a budget, by dynamic programming.

    Exact up to rounding: a budget is spent in steps, each layer rounded up.

    Args:
        depths: layers of each encoder; the last of each is served as such, and when it goes, the one before it is.
        neuron_counts: how many may stay, of each layer.
        whole_layers: whether layers may go as a whole.
    Returns: the importance that is lost, and heads and neurons of each layer, None where it goes; None if even the
        least does not fit.

    """
    found: list[tuple[int, int] | None] = []
    lost, start = 0.0, 0
    for depth in depths:  # each is held to the budget by itself: two towers run one at a time
        within = range(start, start + depth)
        best = None
        for end in range(depth, 0, -1) if whole_layers else [depth]:
            solved = _spend(
                importance, costs, budget - costs.rest, within, end, neuron_counts, whole_layers=whole_layers
            )
            if solved is not None and (best is None or solved[0] < best[0]):
                best = solved
        if best is None:
            return None
        lost += best[0]
        found += best[1]
        start += depth
    return lost, found


def _spend(
    importance: Importance,
    costs: Costs,
    budget: float,
    within: range,
    end: int,
    neuron_counts: Sequence[Sequence[int]],
    *,
    whole_layers: bool,
) -> tuple[float, list[tuple[int, int] | None]] | None:
    """Of one encoder whose layers from `end` on go: what is lost, and what stays."""
    bins = BINS * end
    gone = sum(float(importance.layers_N[layer]) for layer in list(within)[end:])
    best_B = np.full(bins + 1, np.inf)
    best_B[0] = 0.0
    taken: list[tuple[list[tuple[int, int] | None], NDArray[np.int64]]] = []
    if budget <= 0:
        return None
    for place, layer in enumerate(list(within)[:end]):
        part = costs.last if place == end - 1 else costs.inner
        options, losses, prices = _options(importance, part, layer, neuron_counts[layer])
        if whole_layers and place < end - 1:
            options.append(None)
            losses = np.append(losses, importance.layers_N[layer])
            prices = np.append(prices, 0.0)
        steps = np.ceil(np.maximum(prices, 0.0) / budget * bins).astype(np.int64)
        new_B, choice_B = np.full(bins + 1, np.inf), np.zeros(bins + 1, dtype=np.int64)
        for option, (loss, price) in enumerate(zip(losses, steps, strict=True)):
            if price > bins:
                continue
            reached = np.full(bins + 1, np.inf)
            reached[price:] = best_B[: bins + 1 - price] + loss
            better = reached < new_B
            new_B[better], choice_B[better] = reached[better], option
        taken.append((options, choice_B))
        best_B = new_B
    if not np.isfinite(best_B).any():
        return None
    spot = int(np.argmin(best_B))
    lost, kept, price_left = float(best_B[spot]) + gone, [], spot
    for place in range(end - 1, -1, -1):
        options, choice_B = taken[place]
        option = options[choice_B[price_left]]
        kept.append(option)
        part = costs.last if place == end - 1 else costs.inner
        price = 0.0 if option is None else part.of(LayerShape(*option))
        price_left -= int(np.ceil(max(price, 0.0) / budget * bins))
    kept.reverse()
    return lost, kept + [None] * (len(within) - end)


def _options(
    importance: Importance, part: Part, layer: int, neuron_counts: Sequence[int]
) -> tuple[list[tuple[int, int] | None], Values, Values]:
    """Everything that may stay of a layer, what it loses and what it costs."""
    head_losses, neuron_losses = _lost(importance.heads[layer]), _lost(importance.neurons[layer])
    options: list[tuple[int, int] | None] = [
        (heads, neurons) for heads in range(len(head_losses)) for neurons in neuron_counts
    ]
    losses = np.array([head_losses[each[0]] + neuron_losses[each[1]] for each in options if each])
    prices = np.array([part.of(LayerShape(*each)) for each in options if each])
    return options, losses, prices


def _lost(values: Values) -> Values:
    """Of so many kept: the sum of the others, the smallest ones."""
    rising = np.sort(values)
    return np.concatenate([[0.0], np.cumsum(rising)])[::-1]
