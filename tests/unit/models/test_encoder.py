"""The encoder rewritten for serving against Hugging Face's layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers.models.bert.modeling_bert import BertLayer

import fakes
from compress.data.histories import MASKED
from compress.models.encoder import FullLayer, Positions, SingleQueryLayer, serving_layers, transposed
from compress.models.family import Weight

LENGTH = 7
HEADS = (1, 2, 4, 8)


def layers_and_inputs(heads: int) -> tuple[BertLayer, torch.nn.LayerNorm, Tensor, Tensor]:
    """A layer, the LayerNorm before it, sums that this one is given, (3, 7, 16), and which of the positions count."""
    model = fakes.tiny_model(num_attention_heads=heads, attention="masked", num_hidden_layers=1)
    y_BLH = torch.randn(3, LENGTH, 16, generator=torch.Generator().manual_seed(1)) * 2 + 1
    real_BL = torch.arange(LENGTH) >= torch.tensor([[0], [3], [6]])
    return model.bert.encoder.layer[0], model.bert.embeddings.LayerNorm, y_BLH, real_BL


def bias(real_BL: Tensor) -> Tensor:
    return (~real_BL).float()[:, None] * MASKED


@pytest.mark.parametrize("heads", HEADS)
@torch.no_grad()
def test_a_single_query_answers_as_the_last_row_of_the_whole_layer(heads: int) -> None:
    layer, norm, y_BLH, real_BL = layers_and_inputs(heads)
    single = SingleQueryLayer(layer, norm)
    expected = layer(norm(y_BLH), attention_mask=bias(real_BL)[:, None])[:, -1]
    torch.testing.assert_close(single(y_BLH, y_BLH[:, -1], bias(real_BL)), expected, atol=2e-5, rtol=1e-4)


def test_many_heads_are_kept_as_factors_and_few_are_merged() -> None:
    for heads, merged in zip(HEADS, (True, True, True, False), strict=True):
        layer, norm, _, _ = layers_and_inputs(heads)
        assert SingleQueryLayer(layer, norm).merged is merged


@torch.no_grad()
def test_a_row_of_one_number_is_no_nan() -> None:
    layer, norm, _, _ = layers_and_inputs(2)
    y_BLH = (9 * torch.rand(1000, LENGTH, 1)).expand(-1, -1, 16)
    assert ((y_BLH * y_BLH).mean(dim=2) < y_BLH.mean(dim=2) ** 2).any()  # how the layer takes its variance
    assert SingleQueryLayer(layer, norm)(y_BLH, y_BLH[:, -1], torch.zeros(1000, 1, LENGTH)).isfinite().all()


@torch.no_grad()
def test_any_row_may_ask() -> None:
    layer, norm, y_BLH, real_BL = layers_and_inputs(2)
    whole = layer(norm(y_BLH), attention_mask=bias(real_BL)[:, None])
    single = SingleQueryLayer(layer, norm)
    for row in range(LENGTH):
        torch.testing.assert_close(single(y_BLH, y_BLH[:, row], bias(real_BL)), whole[:, row], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", HEADS)
@torch.no_grad()
def test_sums_far_from_zero_cost_little_precision(heads: int) -> None:
    layer, norm, y_BLH, real_BL = layers_and_inputs(heads)
    expected = layer(norm(y_BLH), attention_mask=bias(real_BL)[:, None])[:, -1]
    moved = y_BLH + 20  # LayerNorm takes it off again
    found = SingleQueryLayer(layer, norm)(moved, moved[:, -1], bias(real_BL))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("heads", HEADS)
@torch.no_grad()
def test_a_full_layer_hands_on_what_its_last_norm_makes_the_layers_output(heads: int) -> None:
    layer, norm, y_BLH, real_BL = layers_and_inputs(heads)
    mask = bias(real_BL)[:, None]
    made = layer.output.LayerNorm(FullLayer(layer, norm)(y_BLH, mask))
    torch.testing.assert_close(made, layer(norm(y_BLH), attention_mask=mask), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_positions_are_those_of_the_end() -> None:
    embeddings = fakes.tiny_model(max_length=8).bert.embeddings
    items = torch.tensor([[3, 1, 2]])
    made = embeddings.LayerNorm(Positions(embeddings, "right")(embeddings.word_embeddings(items), items < 0))
    torch.testing.assert_close(made, embeddings(items, position_ids=torch.tensor([[5, 6, 7]])))


@torch.no_grad()
def test_all_layers_together_are_the_model() -> None:
    bert = fakes.tiny_model(num_hidden_layers=3, attention="masked", max_length=6).bert
    items = torch.randint(20, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    real_BL = torch.arange(LENGTH) >= torch.tensor([[0], [3], [6]])
    full, last = serving_layers(bert)
    y_BLH = Positions(bert.embeddings, "right")(bert.embeddings.word_embeddings(items), items < 0)
    for layer in full:
        y_BLH = layer(y_BLH, bias(real_BL)[:, None])
    expected = bert(items, attention_mask=real_BL.long()).last_hidden_state[:, -1]
    assert len(full) == 2
    torch.testing.assert_close(last(y_BLH, y_BLH[:, -1], bias(real_BL)), expected, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_a_weight_is_its_linear_layer_transposed() -> None:
    linear = torch.nn.Linear(3, 5)
    x = torch.randn(2, 3)
    weight = transposed(linear)
    assert isinstance(weight, Weight)
    assert weight.weight().shape == (3, 5)
    torch.testing.assert_close(weight(x), linear(x))
