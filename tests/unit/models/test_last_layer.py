"""The last layer at some positions alone: what it says there, and every gradient, is as with all of them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from compress.methods import shapes
from compress.methods.masks import Masks, masked
from compress.methods.shapes import LayerShape
from compress.models.attention import PRODUCTS
from compress.models.last_layer import only_at

SIZES = {"vocab_size": 40, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48, "num_hidden_layers": 2}


def encoder(attention: str = "sdpa", **changed: int) -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**(SIZES | changed), attn_implementation=attention), add_pooling_layer=False).eval()


def texts() -> tuple[Tensor, Tensor]:
    """Tokens and where they are, the shorter text padded."""
    ids_BL = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    real_BL = torch.ones(2, 7, dtype=torch.long)
    real_BL[1, 4:] = 0
    return ids_BL, real_BL


AT = torch.tensor([[0, 3], [2, 0]])


def read(bert: BertModel, *, alone: bool) -> Tensor:
    """States at two positions of each text, (2, 2, H)."""
    with only_at(bert, AT) if alone else nullcontext():
        states: Tensor = bert(*texts()).last_hidden_state
    return states.gather(1, AT[:, :, None].expand(-1, -1, 24))


@pytest.mark.parametrize("attention", ["sdpa", "eager", PRODUCTS])
@pytest.mark.parametrize("layers", [1, 2])
def test_its_state_and_gradients_are_those_of_all_positions(attention: str, layers: int) -> None:
    bert = encoder(attention, num_hidden_layers=layers)
    weights = list(bert.parameters())
    toward = torch.randn(2, 2, 24, generator=torch.Generator().manual_seed(2))
    found = [read(bert, alone=alone) for alone in (False, True)]
    plain, alone = ([state.detach(), *torch.autograd.grad((state * toward).sum(), weights)] for state in found)
    for expected, got in zip(plain, alone, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_other_positions_leave_the_last_layer_as_they_come() -> None:
    bert = encoder()
    with only_at(bert, AT):
        found = bert(*texts(), output_hidden_states=True)
    before, after = found.hidden_states[1], found.last_hidden_state
    others = torch.ones(2, 7, dtype=torch.bool).scatter(1, AT, 0)
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=0)
    assert not torch.allclose(after[~others], before[~others])
    assert not torch.allclose(bert(*texts()).last_hidden_state[others], before[others]), "outside all are computed"


@pytest.mark.parametrize("wanted", [LayerShape(0, 48), LayerShape(1, 0), LayerShape(2, 5)])
def test_pruned_layers_are_as_with_all_positions(wanted: LayerShape) -> None:
    bert = encoder()
    shapes.resize(bert.encoder.layer[-1], wanted)
    torch.testing.assert_close(read(bert, alone=True), read(bert, alone=False), atol=1e-5, rtol=1e-4)


def test_masks_multiply_as_with_all_positions() -> None:
    bert = encoder()
    masks = Masks.ones(bert)
    for mask in masks.all():
        mask[0] = 0.3
    with masked(bert, masks):
        torch.testing.assert_close(read(bert, alone=True), read(bert, alone=False), atol=1e-5, rtol=1e-4)


def test_half_precision_takes_the_mask_along() -> None:
    bert = encoder("eager")
    with torch.autocast("cpu", torch.bfloat16):
        found = read(bert, alone=True)
    torch.testing.assert_close(found.float(), read(bert, alone=False), atol=0.05, rtol=0.05)
