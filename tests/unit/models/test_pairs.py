"""Pairs read one way: a user's tokens see no item, in rows of a pair, packed or served, and all of them score alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fakes
import text_fakes
from compress import models
from compress.data.histories import Asked
from compress.data.texts import Texts, padded
from compress.methods import cutting
from compress.methods.cutting import Kept
from compress.methods.masks import Masks, masked
from compress.methods.rounding import Rounding
from compress.models import cross_encoder, pairs
from compress.models.cross_encoder import CrossEncoder

ITEMS = text_fakes.COUNT
family = CrossEncoder()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return text_fakes.texts(tmp_path_factory.mktemp("texts"))


def users(texts: Texts) -> Tensor:
    """Texts of three users, the shorter ones padded: (3, U)."""
    some = [texts.user(history, 60) for history in fakes.histories(1, 6, 3, items=ITEMS)]
    return torch.from_numpy(padded(some, texts.layout.pad))


def items(texts: Texts, count: int) -> Tensor:
    """Candidates of each, (3, count, T)."""
    drawn = np.random.default_rng(0).integers(0, ITEMS, 3 * count)
    return torch.from_numpy(texts.candidates(drawn)).unflatten(0, (3, count))


def plain(model: object, user_BU: Tensor, items_BCT: Tensor, pad: int) -> Tensor:
    rows = user_BU.repeat_interleave(items_BCT.shape[1], dim=0)
    return pairs.plain_states(model, *pairs.joined(rows, items_BCT.flatten(0, 1), pad))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["both_ways", "one_way"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("packed", [1, 4096])
def test_cls_is_as_with_every_position_computed(
    texts: Texts, attention: str, layers: int, packed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "PACKED_TOKENS", packed)
    model = text_fakes.cross_encoder(texts, attention=attention, num_hidden_layers=layers)
    user_BU, items_BCT = users(texts), items(texts, 5)
    expected = plain(model, user_BU, items_BCT, texts.layout.pad)
    close(pairs.cls_states(model, user_BU, items_BCT), expected)
    weights = [model.bert.embeddings.word_embeddings.weight, model.bert.encoder.layer[0].attention.self.key.weight]
    toward = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((pairs.cls_states(model, user_BU, items_BCT) * toward).sum(), weights)
    for ours, theirs in zip(found, torch.autograd.grad((expected * toward).sum(), weights), strict=True):
        close(ours, theirs)


@torch.no_grad()
def test_a_users_tokens_are_the_same_beside_any_item(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts, attention="one_way", num_hidden_layers=2)
    user_BU = users(texts)
    length = int((user_BU[1] != texts.layout.pad).sum())
    states = []
    for drawn in items(texts, 2)[1]:
        ids, types = pairs.joined(user_BU[1:2, :length], drawn[None], texts.layout.pad)
        mask = pairs.visible(model.config, (ids != texts.layout.pad).long(), types)
        states.append(model.bert(ids, mask, types).last_hidden_state[0, :length])
    close(states[0][1:], states[1][1:])
    assert not torch.allclose(states[0][0], states[1][0], atol=1e-3), "[CLS] has seen the item"


@torch.no_grad()
def test_one_way_scores_differ_from_both_ways_ones(texts: Texts) -> None:
    one, both = (
        text_fakes.cross_encoder(texts, attention=each, num_hidden_layers=2) for each in ("one_way", "both_ways")
    )
    both.load_state_dict(one.state_dict())
    user_BU, items_BCT = users(texts), items(texts, 3)
    assert not torch.allclose(pairs.cls_states(one, user_BU, items_BCT), pairs.cls_states(both, user_BU, items_BCT))


@torch.no_grad()
def test_a_user_of_no_more_than_cls_is_answered(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts, attention="one_way", num_hidden_layers=3)
    graph = family.serve(model, 10, Rounding()).eval()
    user_1, items_PT = torch.tensor([texts.layout.cls]), items(texts, 4)[0]
    expected = family.plain(model, 10, {"user": user_1, "items": items_PT})[0]
    close(graph(user_1, items_PT)[0], expected)


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_the_served_graph_answers_as_the_model_does(texts: Texts, layers: int) -> None:
    model = text_fakes.cross_encoder(texts, attention="one_way", num_hidden_layers=layers)
    graph = family.serve(model, 10, Rounding()).eval()
    for history, few in zip(fakes.histories(1, 6, 0, 3, items=ITEMS), ([3], range(ITEMS), [9, 0], [0]), strict=True):
        asked = Asked([history], text_fakes.without(texts, few))
        inputs = family.inputs(model, asked)
        (found,) = graph(*inputs.values())
        close(found, family.plain(model, 10, inputs)[0])
        close(found, family.scorer(model)(asked)[0, sorted(few)])


def test_a_pruned_model_is_served_as_it_scores(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts, attention="one_way", num_hidden_layers=3)
    first, second, third = cutting.everything(model).layers
    assert first is not None
    assert third is not None
    cutting.cut(model, Kept((replace(first, heads=()), second, replace(third, neurons=(2, 3)))))
    inputs = family.inputs(model, Asked(fakes.histories(4, items=ITEMS), text_fakes.without(texts, range(9))))
    with torch.no_grad():
        served = family.serve(model, 10, Rounding()).eval()(*inputs.values())[0]
        close(served, family.plain(model, 10, inputs)[0])


@torch.no_grad()
def test_rows_that_are_filled_up_add_no_scores(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_fakes.cross_encoder(texts, attention="one_way")
    histories = fakes.histories(1, 6, 3, items=ITEMS)
    asked = Asked(histories, text_fakes.without(texts, range(7), [], [1, 5, 8]))
    expected = family.scorer(model)(asked)
    monkeypatch.setattr(cross_encoder, "SCORED_TOGETHER", 3)
    found = family.scorer(model)(asked)
    close(found, expected)
    assert found.isfinite().sum(dim=1).tolist() == [7, 0, 3]


def test_masks_multiply_packed_rows_as_pairs(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts, attention="one_way", num_hidden_layers=2)
    masks = Masks.ones(model)
    for mask in masks.all():
        mask[0] = 0.4
    user_BU, items_BCT = users(texts), items(texts, 3)
    with masked(model, masks), torch.no_grad():
        expected = plain(model, user_BU, items_BCT, texts.layout.pad)
        close(pairs.cls_states(model, user_BU, items_BCT), expected)


def test_a_saved_model_reads_as_before(texts: Texts, tmp_path: Path) -> None:
    model = text_fakes.cross_encoder(texts, attention="one_way")
    family.save(model, tmp_path)
    again = models.load(tmp_path)[1]
    assert pairs.reads_one_way(again.config)
    user_BU, items_BCT = users(texts), items(texts, 2)
    assert pairs.cls_states(again, user_BU, items_BCT).equal(pairs.cls_states(model, user_BU, items_BCT))


def test_a_model_from_before_there_was_a_choice_reads_both_ways(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts)
    del model.config.recommender["attention"]
    assert not pairs.reads_one_way(model.config)
