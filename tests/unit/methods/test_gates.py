"""Gates: how often they are open, what that costs, and multipliers that ascend."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fakes
from compress.methods import shapes
from compress.methods.costs import Costs, Part
from compress.methods.gates import Gates, fold
from compress.methods.masks import Masks, masked
from compress.methods.shapes import LayerShape

COSTS = Costs(
    2.0,
    Part(0.5, np.array([0.0, 1.0, 3.0]), np.arange(13) * 0.25),
    Part(0.1, np.array([0.0, 0.4, 0.8]), np.arange(13) * 0.1),
)


def _gates(*, whole_layers: bool = True, gain: float = 100.0) -> Gates:
    return Gates(fakes.tiny_model(intermediate_size=12), gain, whole_layers=whole_layers)


def _set(gates: Gates, value: float) -> None:
    with torch.no_grad():
        for parameter in (*gates.heads, *gates.neurons, gates.layers):
            parameter.fill_(value / gates.gain)


def test_a_gate_is_open_as_often_as_it_says() -> None:
    gates = _gates()
    _set(gates, 0.4)
    torch.manual_seed(0)
    draws = torch.stack([gates.drawn().neurons[0] for _ in range(4000)])
    assert float((draws > 0).double().mean()) == pytest.approx(
        float(gates.open_share(gates.neurons[0].detach())[0]), abs=0.01
    )
    assert float(((draws > 0) & (draws < 1)).double().mean()) > 0.1, "some are between"
    assert draws.min() == 0
    assert draws.max() == 1


def test_open_gates_cost_what_the_model_costs_and_shut_ones_the_rest() -> None:
    gates = _gates()
    _set(gates, 50.0)
    assert float(gates.expected_cost(COSTS, [2])) == pytest.approx(COSTS.of([LayerShape(2, 12)] * 2), rel=1e-5)
    _set(gates, -50.0)
    assert float(gates.expected_cost(COSTS, [2])) == pytest.approx(COSTS.rest)
    kept = _gates(whole_layers=False)
    _set(kept, -50.0)
    assert float(kept.expected_cost(COSTS, [2])) == pytest.approx(COSTS.rest + 0.6)


def test_between_whole_units_lies_a_line() -> None:
    gates = _gates(whole_layers=False)
    _set(gates, 50.0)
    with torch.no_grad():
        gates.heads[0][0] = -50.0 / gates.gain
    one = float(gates.expected_cost(COSTS, [2]))
    assert one == pytest.approx(COSTS.of([LayerShape(1, 12), LayerShape(2, 12)]), rel=1e-5)
    with torch.no_grad():
        gates.heads[0][0] = 0.0
    open_ = float(gates.open_share(torch.zeros(1)))
    whole = COSTS.of([LayerShape(2, 12)] * 2)
    assert float(gates.expected_cost(COSTS, [2])) == pytest.approx(one + open_ * (whole - one), rel=1e-5)


def test_what_is_over_budget_shuts_gates_and_raises_multipliers() -> None:
    gates = _gates()
    gates.penalty(gates.expected_cost(COSTS, [2]) - 1.0).backward()
    assert gates.multipliers.grad is not None
    assert (gates.multipliers.grad < 0).all(), "a step down raises them"
    with torch.no_grad():
        gates.multipliers.fill_(1 / gates.gain)
    gates.zero_grad()
    gates.penalty(gates.expected_cost(COSTS, [2]) - 1.0).backward()
    assert all(float(each.grad.min()) > 0 for each in (*gates.heads, *gates.neurons)), "a step down shuts them"


def test_gates_that_are_folded_say_what_they_said() -> None:
    model, ids = fakes.tiny_model(intermediate_size=12), torch.arange(6)[None]
    masks = Masks.ones(model)
    masks.heads[0][1], masks.neurons[1][3] = 0.4, 0.7
    masks.heads[1][0] = masks.neurons[0][2] = 0.0  # shut, and maybe kept to fill a multiple
    with torch.no_grad(), masked(model, masks):
        expected = model(ids).logits
    fold(model, masks)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_open_gates_are_kept() -> None:
    gates = _gates()
    _set(gates, -20.0)
    with torch.no_grad():
        gates.heads[0][1] = gates.neurons[1][4] = 20.0 / gates.gain
    kept = gates.importance(COSTS).keep([(1, 0), (0, 1)])
    assert kept.layers[0] is not None
    assert kept.layers[1] is not None
    assert (kept.layers[0].heads, kept.layers[1].neurons) == ((1,), (4,))
    assert len(shapes.layers(fakes.tiny_model())) == 2
