"""Masks that are learned: each a random gate that is 0, 1 or between, with a gradient for how often it is open.

The hard concrete distribution of Louizos et al. 2018 (arXiv 1712.01312); units and layers gated together and held to a
target by Lagrange multipliers as in CoFi (Xia et al. 2022, arXiv 2204.00408).

A: heads, F: neurons, N: layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.methods import shapes
from compress.methods.costs import Costs, Part
from compress.methods.importance import Importance
from compress.methods.masks import Masks

STRETCH = (-0.1, 1.1)
BETA = 2 / 3
OPEN = 3.0
"""Where a gate's logarithm starts: open in 98 of 100 draws."""


class Gates(nn.Module):
    """Of every head, neuron and layer of a model.

    Parameters are logarithms over `gain`: Adam moves all of them by its learning rate, and gates have to move further.
    """

    def __init__(self, model: PreTrainedModel, gain: float, *, whole_layers: bool) -> None:
        super().__init__()
        found = [shapes.shape(layer) for layer in shapes.layers(model)]
        self.gain = gain
        self.hidden_size = model.config.hidden_size
        self.heads = nn.ParameterList(torch.full((each.heads,), OPEN / gain) for each in found)
        self.neurons = nn.ParameterList(torch.full((each.neurons,), OPEN / gain) for each in found)
        self.layers = nn.Parameter(torch.full((len(found),), OPEN / gain), requires_grad=whole_layers)
        self.multipliers = nn.Parameter(torch.zeros(2))

    def drawn(self) -> Masks:
        """One draw of all gates."""
        return self._masks(self._draw)

    def settled(self) -> Masks:
        """What is served: no chance in it."""
        return self._masks(self._settle)

    def open_share(self, logarithms: Tensor) -> Tensor:
        """How often gates are not 0."""
        low, high = STRETCH
        return torch.sigmoid(_scaled(logarithms, self.gain) - BETA * math.log(-low / high))

    def expected_cost(self, costs: Costs, depths: Sequence[int]) -> Tensor:
        """Of the costliest encoder. Args: depths: layers of each."""
        layers_N = self.open_share(self.layers) if self.layers.requires_grad else torch.ones_like(self.layers)
        totals, start = [], 0
        for depth in depths:
            total = torch.tensor(costs.rest)
            for place in range(start, start + depth):
                part = costs.last if place == start + depth - 1 else costs.inner
                heads, neurons = (self.open_share(each[place]).sum() for each in (self.heads, self.neurons))
                total = total + layers_N[place] * (
                    part.layer + _line(part, "heads", heads) + _line(part, "neurons", neurons)
                )
            totals.append(total)
            start += depth
        return torch.stack(totals).max()

    def penalty(self, over: Tensor) -> Tensor:
        """What being off the target costs: multipliers grow until nobody is. Args: over: the target, as a share."""
        first, second = _scaled(self.multipliers, self.gain, slope=-1.0)  # they ascend
        penalty: Tensor = first * over + second * over.square()
        return penalty

    def importance(self, costs: Costs) -> Importance:
        """How open gates are, times what a unit costs: a budget that was learned is met by those that are open."""

        def worth(logarithms: Tensor, prices: Any) -> Any:
            return self.open_share(logarithms).detach().double().cpu().numpy() * (prices[-1] / max(len(prices) - 1, 1))

        heads = [worth(each, costs.inner.heads) for each in self.heads]
        neurons = [worth(each, costs.inner.neurons) for each in self.neurons]
        shares_N = self.open_share(self.layers).detach().double().cpu().numpy()
        whole = np.array([each.sum() + other.sum() for each, other in zip(heads, neurons, strict=True)])
        return Importance(heads, neurons, shares_N * whole, np.ones(self.hidden_size))

    def _masks(self, gate: Any) -> Masks:
        layers_N = gate(self.layers) if self.layers.requires_grad else torch.ones_like(self.layers)
        ones_H = torch.ones(self.hidden_size, device=layers_N.device)
        return Masks([gate(each) for each in self.heads], [gate(each) for each in self.neurons], layers_N, ones_H)

    def _draw(self, logarithms: Tensor) -> Tensor:
        chance = torch.rand_like(logarithms).clamp(1e-6, 1 - 1e-6)
        return _stretched(torch.sigmoid((chance.logit() + _scaled(logarithms, self.gain)) / BETA))

    def _settle(self, logarithms: Tensor) -> Tensor:
        return _stretched(torch.sigmoid(_scaled(logarithms, self.gain)))


@torch.no_grad()
def fold(model: PreTrainedModel, masks: Masks) -> None:
    """Multiplies heads and neurons by their gates, in place: the model without gates says what it said with them.

    Layers that are partly open cannot be folded: a LayerNorm follows.
    """
    for place, layer in enumerate(shapes.layers(model)):
        size = layer.attention.self.attention_head_size
        for linear, mask in (
            (layer.attention.output.dense, masks.heads[place].repeat_interleave(size)),
            (layer.output.dense, masks.neurons[place]),
        ):
            linear.weight.mul_(mask)


def _stretched(share: Tensor) -> Tensor:
    low, high = STRETCH
    return (share * (high - low) + low).clamp(0, 1)


def _line(part: Part, unit: str, count: Tensor) -> Tensor:
    """The cost of a number of units that need not be whole."""
    prices = torch.as_tensor(getattr(part, unit), dtype=torch.float32)
    below = int(count.detach().clamp(0, len(prices) - 1))
    above = min(below + 1, len(prices) - 1)
    line: Tensor = prices[below] + (count - below) * (prices[above] - prices[below])
    return line


def _scaled(parameter: Tensor, gain: float, slope: float = 1.0) -> Tensor:
    """The parameter times `gain`, with a gradient as if times `slope`: clipping sees no other size than weights'."""
    return slope * parameter + (gain * parameter - slope * parameter).detach()
