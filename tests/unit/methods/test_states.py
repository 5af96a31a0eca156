"""Losses of layers: what they are by hand and by PyTorch's own attention, and what they leave out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fakes
from compress.methods import states
from compress.models.bert4rec import Bert4Rec
from compress.models.observed import projections

REAL = torch.tensor([[True, True, False], [True, True, True]])


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_who_sees_whom() -> None:
    assert states.visible(REAL, causal=False)[0].tolist() == [[True, True, False]] * 2 + [[False] * 3]
    assert states.visible(REAL, causal=True)[1].tolist() == [[True, False, False], [True, True, False], [True] * 3]


def test_affinities_are_scaled_products_of_each_head() -> None:
    rows, columns = values(1, 2, 4), values(1, 2, 4, seed=1)
    found = states.affinities(rows, columns, heads=2)
    assert found.shape == (1, 2, 2, 2)
    assert found[0, 1, 0, 1].item() == pytest.approx(float(rows[0, 0, 2:] @ columns[0, 1, 2:]) / math.sqrt(2))
    with pytest.raises(ValueError, match="3 heads do not divide a width of 4"):
        states.affinities(rows, columns, heads=3)


def test_attention_is_the_mean_square_of_what_is_seen() -> None:
    student, teacher = values(2, 2, 3, 3), values(2, 2, 3, 3, seed=1)
    seen = states.visible(REAL, causal=True)
    errors = (student - teacher).square().mean(dim=1)
    rows = [errors[b, i][seen[b, i]].mean() for b, i in seen.any(dim=-1).nonzero()]
    expected = torch.stack(rows).mean()
    torch.testing.assert_close(states.attention(student, teacher, seen), expected)
    with pytest.raises(ValueError, match="the student has 2 heads, the teacher 3"):
        states.attention(student, values(2, 3, 3, 3), seen)


def test_relations_are_divergences_of_rows() -> None:
    student, teacher = (
        torch.tensor([[[[1.0, 3.0, 9.0], [1.0, 1.0, 9.0], [9.0, 9.0, 9.0]]]]).double().log(),
        torch.tensor([[[[1.0, 1.0, 9.0], [1.0, 1.0, 9.0], [9.0, 9.0, 9.0]]]]).double().log(),
    )
    row = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    found = states.relations(student, teacher, states.visible(REAL[:1], causal=False))
    assert found.item() == pytest.approx(row / 2), "of two positions the second agrees, the third is padding"


@pytest.mark.parametrize("name", ["attention", "relations"])
@pytest.mark.parametrize("causal", [False, True])
def test_what_is_not_seen_changes_nothing_and_gradients_are_right(name: str, causal: bool) -> None:
    loss, seen = getattr(states, name), states.visible(REAL, causal=causal)
    student, teacher = values(2, 2, 3, 3), values(2, 2, 3, 3, seed=1)
    changed = torch.where(seen[:, None], student, torch.full_like(student, 5.0))
    torch.testing.assert_close(loss(changed, teacher, seen), loss(student, teacher, seen))
    assert torch.autograd.gradcheck(lambda table: loss(table, teacher, seen), student.requires_grad_())
    assert loss(teacher, teacher, seen).item() == 0


@pytest.mark.parametrize("attention", ["causal", "masked"])
def test_what_is_observed_is_what_attention_is_made_of(attention: str) -> None:
    """With the observed queries, keys and values PyTorch's own attention gives the layer's output."""
    model, people = fakes.tiny_model(attention=attention), fakes.interactions()
    family = Bert4Rec()
    examples = family.examples(model, people, seed=0)
    batch = examples.collate([examples[index] for index in range(4)])
    contexts: list[Tensor] = []
    inner = model.bert.encoder.layer[0].attention.self
    handle = inner.register_forward_hook(lambda module, inputs, output: contexts.append(output[0]))
    with torch.no_grad():
        found = family.supervise(model, batch, layers=True)
    handle.remove()
    assert len(found.projected) == model.config.num_hidden_layers
    heads, seen = found.heads, states.visible(found.real_BL, causal=found.causal)
    query, key, value = found.projected[0]
    weights = states.affinities(query, key, heads).masked_fill(~seen[:, None], -1e9).softmax(-1)
    context = (weights @ value.view(*value.shape[:2], heads, -1).transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(context[found.real_BL], contexts[0][found.real_BL], atol=1e-5, rtol=1e-4)
    assert found.causal == (attention == "causal")


def test_nothing_is_observed_unless_asked_for_nor_afterwards() -> None:
    model, people = fakes.tiny_model(), fakes.interactions()
    family = Bert4Rec()
    examples = family.examples(model, people, seed=0)
    batch = examples.collate([examples[0]])
    assert family.supervise(model, batch).projected == ()
    with projections(model.bert) as found:
        family.supervise(model, batch)
    count = len(found)
    family.supervise(model, batch)
    assert len(found) == count == model.config.num_hidden_layers
    assert not any(layer.attention.self.query._forward_hooks for layer in model.bert.encoder.layer)
