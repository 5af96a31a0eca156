"""Costs by hand, and a budget that is spent as well as trying everything would."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import fakes
from compress.methods import shapes
from compress.methods.costs import Costs, Part, cheapest_loss, counted, measured
from compress.methods.cutting import Kept, KeptLayer, cut
from compress.methods.importance import Importance
from compress.methods.shapes import LayerShape


def _importance(layers: int, heads: int, neurons: int, seed: int) -> Importance:
    random = np.random.default_rng(seed)
    return Importance(
        [random.random(heads) for _ in range(layers)],
        [random.random(neurons) / 4 for _ in range(layers)],
        random.random(layers) * heads,
        random.random(8),
    )


def _costs(heads: int, neurons: int) -> Costs:
    inner = Part(0.5, np.arange(heads + 1) * 1.0, np.arange(neurons + 1) * 0.25)
    last = Part(0.2, np.arange(heads + 1) * 0.4, np.arange(neurons + 1) * 0.1)
    return Costs(1.0, inner, last)


def _lost(importance: Importance, kept: list[tuple[int, int] | None]) -> float:
    total = 0.0
    for layer, sizes in enumerate(kept):
        if sizes is None:
            total += float(importance.layers_N[layer])
        else:
            for values, count in zip((importance.heads[layer], importance.neurons[layer]), sizes, strict=True):
                total += float(np.sort(values)[: len(values) - count].sum())
    return total


def _cost(costs: Costs, kept: list[tuple[int, int] | None]) -> float:
    return costs.of([LayerShape(*sizes) for sizes in kept if sizes is not None])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
@pytest.mark.parametrize("whole_layers", [True, False])
def test_a_budget_is_spent_as_well_as_trying_everything(seed: int, share: float, whole_layers: bool) -> None:
    importance, costs, counts = _importance(3, 2, 4, seed), _costs(2, 4), [0, 2, 4]
    budget = share * costs.of([LayerShape(2, 4)] * 3)
    options: list[tuple[int, int] | None] = list(itertools.product(range(3), counts))
    if whole_layers:
        options.append(None)
    best = min(
        _lost(importance, list(kept))
        for kept in itertools.product(options, repeat=3)
        if any(kept) and _cost(costs, list(kept)) <= budget
    )
    found = cheapest_loss(importance, costs, budget, [3], [counts] * 3, whole_layers=whole_layers)
    assert found is not None
    lost, kept = found
    assert lost == pytest.approx(_lost(importance, kept))
    assert _cost(costs, kept) <= budget * (1 + 1e-9)
    assert lost <= best * 1.02 + 1e-9  # a budget is spent in 2,000 steps, each layer rounded up


def test_a_budget_that_nothing_meets_is_none() -> None:
    importance, costs = _importance(2, 2, 4, 0), _costs(2, 4)
    assert cheapest_loss(importance, costs, 1.1, [2], [[0, 4]] * 2, whole_layers=True) is None
    assert cheapest_loss(importance, costs, 0.5, [2], [[0, 4]] * 2, whole_layers=True) is None


def test_each_tower_meets_the_budget() -> None:
    importance, costs = _importance(4, 2, 4, 1), _costs(2, 4)
    budget = 0.5 * costs.of([LayerShape(2, 4)] * 2)
    found = cheapest_loss(importance, costs, budget, [2, 2], [[0, 2, 4]] * 4, whole_layers=True)
    assert found is not None
    assert _cost(costs, found[1][:2]) <= budget
    assert _cost(costs, found[1][2:]) <= budget


def test_counted_parameters_are_the_models() -> None:
    model = fakes.tiny_model(intermediate_size=24)
    inside = sum(weight.numel() for layer in shapes.layers(model) for weight in layer.parameters())
    rest = model.num_parameters() - inside
    kept = Kept((KeptLayer((1,), tuple(range(10))), KeptLayer((0, 1), ())))
    costs = counted("parameters", 16, 8, LayerShape(2, 24), 0, rest)
    assert costs.of([LayerShape(2, 24)] * 2) == model.num_parameters()
    assert counted("bytes", 16, 8, LayerShape(2, 24), 0, rest).of([LayerShape(2, 24)] * 2) == 4 * model.num_parameters()
    cut(model, kept)
    assert costs.of([LayerShape(1, 10), LayerShape(2, 0)]) == model.num_parameters()


def test_counted_operations_are_those_of_the_products() -> None:
    from deploy.flops import counted as run

    model = fakes.tiny_model(intermediate_size=24, attention="masked")
    costs = counted("flops", 16, 8, LayerShape(2, 24), 6, 0)
    with torch.no_grad():
        layer = shapes.layers(model)[0]
        operations = run(lambda: layer(torch.zeros(1, 6, 16)))
    assert 6 * costs.inner.of(LayerShape(2, 24)) == operations


def test_between_what_was_timed_lies_a_line() -> None:
    part = {"layer": 0.1, "heads": {"1": 1.0, "3": 2.0}, "neurons": {"4": 8.0}}
    costs = measured({"hidden": {"16": {"rest": 2.0, "inner": part, "last": part}}}, 16)
    assert costs.inner.of(LayerShape(2, 1)) == pytest.approx(0.1 + 1.5 + 2.0)
    assert costs.of([LayerShape(3, 4), LayerShape(0, 0)]) == pytest.approx(2.0 + 0.1 + 2.0 + 8.0 + 0.1)
