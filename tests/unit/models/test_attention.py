"""Attention by plain products: the fused kernel's answers and gradients, whatever the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

from compress.models import attention

SIZES = {"vocab_size": 40, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48, "num_hidden_layers": 2}

LENGTH = 6


def encoder(**changed: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(**SIZES, attn_implementation="sdpa", **changed)
    return BertModel(config, add_pooling_layer=False).eval()


def padded() -> Tensor:
    real_BL = torch.ones(2, LENGTH, dtype=torch.long)
    real_BL[1, 4:] = 0
    return real_BL


def first_apart() -> Tensor:
    """A mask of one's own: nobody but the first position sees the last."""
    sees_BLL = torch.ones(2, LENGTH, LENGTH, dtype=torch.bool)
    sees_BLL[:, 1:, -1] = False
    return sees_BLL.unsqueeze(1)


def states_and_gradients(bert: PreTrainedModel, mask: Tensor | None) -> list[Tensor]:
    ids_BL = torch.randint(0, 40, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    states_BLH = bert(ids_BL, mask).last_hidden_state
    if mask is not None and mask.dim() == 2:
        states_BLH = states_BLH * mask[:, :, None]
    toward = torch.randn(states_BLH.shape, generator=torch.Generator().manual_seed(2))
    return [states_BLH.detach(), *torch.autograd.grad((states_BLH * toward).sum(), list(bert.parameters()))]


@pytest.mark.parametrize("longest", [LENGTH, LENGTH - 1])
@pytest.mark.parametrize("mask", [None, padded(), first_apart(), torch.randn(2, 1, 1, LENGTH)])
@pytest.mark.parametrize("causal", [False, True])
def test_it_answers_as_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, causal: bool, mask: Tensor | None, longest: int
) -> None:
    monkeypatch.setattr(attention, "LONGEST", longest)
    bert = encoder(is_decoder=causal)
    expected = states_and_gradients(bert, mask)
    bert.set_attn_implementation(attention.PRODUCTS)
    for got, wanted in zip(states_and_gradients(bert, mask), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_shares_are_dropped_in_training_alone() -> None:
    bert = encoder(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    bert.set_attn_implementation(attention.PRODUCTS)
    twice = [states_and_gradients(bert, None)[0] for _ in range(2)]
    assert torch.equal(*twice)
    bert.train()
    assert not torch.equal(*(states_and_gradients(bert, None)[0] for _ in range(2)))


@pytest.mark.parametrize(("precision", "named"), [("bf16", attention.PRODUCTS), ("fp32", "sdpa")])
def test_bfloat16_on_a_cpu_trains_with_it_and_forgets_it(
    monkeypatch: pytest.MonkeyPatch, precision: str, named: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    student, teacher = encoder(), encoder()
    with attention.suited([student, teacher], precision):
        assert {each.config._attn_implementation for each in (student, teacher)} == {named}
    assert {each.config._attn_implementation for each in (student, teacher)} == {"sdpa"}
    assert "attn" not in "".join(student.config.to_dict())
