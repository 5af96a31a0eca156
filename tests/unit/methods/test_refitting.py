"""Least squares after a cut: what was cut is made good as far as what is left can."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import fakes
from compress.methods import shapes
from compress.methods.cutting import Kept, KeptLayer, cut, everything
from compress.methods.refitting import refit

BATCHES = [torch.randint(20, (4, 7), generator=torch.Generator().manual_seed(seed)) for seed in range(12)]


def _run(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(ids, attention_mask=torch.ones_like(ids)).logits
    return logits


def _error(whole: Any, ours: Any, kept: Kept) -> float:
    others = [torch.randint(20, (4, 7), generator=torch.Generator().manual_seed(seed)) for seed in range(50, 56)]
    with torch.no_grad():
        return float(sum((_run(whole, ids) - _run(ours, ids)).square().mean() for ids in others))


@pytest.mark.parametrize("attention", ["causal", "masked"])
def test_neurons_that_say_the_same_are_made_good(attention: str) -> None:
    whole = fakes.tiny_model(intermediate_size=24, attention=attention)
    layer = shapes.layers(whole)[0]
    with torch.no_grad():  # every neuron twice: half of them can say it all
        layer.intermediate.dense.weight[12:] = layer.intermediate.dense.weight[:12]
        layer.intermediate.dense.bias[12:] = layer.intermediate.dense.bias[:12]
    full = everything(whole).layers[0]
    kept = Kept((KeptLayer(full.heads, tuple(range(12))), full))
    left = copy.deepcopy(whole)
    cut(left, kept)
    before = _error(whole, left, kept)
    refit(whole, left, kept, BATCHES, _run, ridge=1e-6)
    assert _error(whole, left, kept) < 1e-4 * before


@pytest.mark.parametrize(
    "kept",
    [
        Kept((KeptLayer((1,), tuple(range(24))), KeptLayer((0, 1), tuple(range(24))))),
        Kept((KeptLayer((0, 1), tuple(range(12))), KeptLayer((0, 1), tuple(range(6, 24))))),
        Kept((None, KeptLayer((0, 1), tuple(range(24))))),
        Kept((KeptLayer((), tuple(range(24))), KeptLayer((0, 1), ()))),
    ],
    ids=["a head", "neurons", "a layer", "all of a part"],
)
def test_what_is_left_comes_nearer_to_the_whole(kept: Kept) -> None:
    whole = fakes.tiny_model(intermediate_size=24)
    left = copy.deepcopy(whole)
    cut(left, kept)
    before = _error(whole, left, kept)
    refit(whole, left, kept, BATCHES, _run, ridge=1e-3)
    assert _error(whole, left, kept) < before


def test_a_whole_model_stays_as_it_is() -> None:
    whole = fakes.tiny_model(intermediate_size=24)
    left, kept = copy.deepcopy(whole), everything(whole)
    refit(whole, left, kept, BATCHES, _run, ridge=1e-3)
    for ours, theirs in zip(left.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_padding_plays_no_part() -> None:
    whole = fakes.tiny_model(intermediate_size=24, attention="masked")
    full = everything(whole)
    kept = Kept((KeptLayer((0,), full.layers[0].neurons), full.layers[1]))
    pad = whole.config.pad_token_id
    fitted = []
    for width in (0, 5):
        left = copy.deepcopy(whole)
        cut(left, kept)
        padded = [torch.nn.functional.pad(ids, (0, width), value=pad) for ids in BATCHES]

        def run(model: Any, ids: Tensor) -> Tensor:
            logits: Tensor = model(
                ids, attention_mask=(ids != pad).long(), position_ids=torch.arange(ids.shape[1])[None] % 8
            ).logits
            return logits

        refit(whole, left, kept, padded, run, ridge=1e-3)
        fitted.append(shapes.layers(left)[0].attention.output.dense.weight)
    torch.testing.assert_close(*fitted, atol=1e-4, rtol=1e-4)
