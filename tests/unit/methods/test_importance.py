"""What a model would miss: hand-computed gradients, and that importance finds what matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fakes
from compress.methods import importance, shapes
from compress.methods.masks import Masks, masked

IDS = [torch.tensor([[1, 2, 3, 4]]), torch.tensor([[5, 6, 7, 8]]), torch.tensor([[2, 9, 4, 1]])]


def _model() -> Any:
    return fakes.tiny_model(intermediate_size=12)


def _loss(model: Any) -> Any:
    def loss(ids: Tensor) -> Tensor:
        scores: Tensor = model(ids).logits[:, -1].log_softmax(dim=-1)[:, 0]
        return scores.mean()

    return loss


def _derivatives(model: Any, part: str, layer: int, unit: int) -> np.ndarray:
    """Of the loss of each example by one mask, by central differences."""
    found = []
    for ids in IDS:
        ends = []
        for step in (1e-2, -1e-2):
            masks = Masks.ones(model)
            (
                masks.layers_N
                if part == "layers_N"
                else masks.hidden_H
                if part == "hidden_H"
                else getattr(masks, part)[layer]
            )[unit] += step
            with masked(
                model.double(),
                Masks(*[_double(each) for each in (masks.heads, masks.neurons, masks.layers_N, masks.hidden_H)]),
            ):
                ends.append(float(_loss(model)(ids)))
        found.append((ends[0] - ends[1]) / 2e-2)
    return np.array(found)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else [each.double() for each in value]


@pytest.mark.parametrize(
    ("part", "layer", "unit"), [("heads", 0, 1), ("neurons", 1, 5), ("layers_N", 0, 1), ("hidden_H", 0, 3)]
)
def test_fisher_and_taylor_are_moments_of_the_masks_gradient(part: str, layer: int, unit: int) -> None:
    model = _model()
    fisher = importance.fisher(model, IDS, _loss(model))
    taylor = importance.taylor(model, IDS, _loss(model))
    with torch.no_grad():
        slopes = _derivatives(model, part, layer, unit)

    def of(found: Any) -> float:
        values = getattr(found, part)
        return float(values[unit] if part in ("layers_N", "hidden_H") else values[layer][unit])

    assert of(fisher) == pytest.approx((slopes**2).mean() / 2, rel=2e-2)
    assert of(taylor) == pytest.approx(abs(slopes.mean()), rel=2e-2)


def test_parameters_want_gradients_as_before() -> None:
    model = _model()
    model.bert.embeddings.requires_grad_(requires_grad=False)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    importance.fisher(model, IDS, _loss(model))
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("find", ["fisher", "taylor", "magnitude"])
def test_a_unit_that_does_nothing_is_the_least_important(find: str) -> None:
    model = _model()
    layer = shapes.layers(model)[1]
    size = layer.attention.self.attention_head_size
    with torch.no_grad():
        layer.attention.output.dense.weight[:, :size] = 0
        layer.output.dense.weight[:, 7] = 0
    found = importance.magnitude(model) if find == "magnitude" else getattr(importance, find)(model, IDS, _loss(model))
    assert found.heads[1][0] == pytest.approx(0, abs=1e-9)
    assert found.neurons[1].argmin() == 7
    kept = found.keep([(2, 12), (1, 11)])
    assert kept.layers[1].heads == (1,)
    assert 7 not in kept.layers[1].neurons
    assert kept.hidden is None


def test_chance_is_the_seeds_alone() -> None:
    model = _model()
    first, second, other = (importance.chance(model, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.neurons[0], second.neurons[0])
    assert not np.array_equal(first.neurons[0], other.neurons[0])


def test_what_narrowing_loses_is_the_smallest_dimensions() -> None:
    found = importance.Importance([], [], np.array([]), np.array([3.0, 1.0, 2.0, 5.0]))
    assert found.narrowing_loss(2) == 3.0
    assert found.keep([], 2).hidden == (0, 3)
