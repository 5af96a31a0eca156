"""A smaller vocabulary reads covered texts as the whole one does, and falls back to shorter pieces for others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fakes
import text_fakes
from compress import models
from compress.data.histories import Asked
from compress.data.texts import TOKENIZER, Ragged, Texts
from compress.data.vocabulary import trimmed, used
from compress.errors import DataError, RecipeError


def _pieces(texts: Texts, text: str) -> list[str]:
    tokens: list[str] = text_fakes.tokenizer(texts).encode(text, add_special_tokens=False).tokens
    return tokens


def test_covered_texts_are_read_as_before(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    kept = used(texts, [])
    small = trimmed(texts, kept, tmp_path / "small")
    assert small.layout.vocab_size == len(kept) < texts.layout.vocab_size
    whole, cut = text_fakes.tokenizer(texts), text_fakes.tokenizer(small)
    for item in range(len(texts.items)):
        assert kept[small.items[item]].tolist() == texts.items[item].tolist()
        told = [tokenizer.decode(part[item].tolist()) for tokenizer, part in ((whole, texts.items), (cut, small.items))]
        assert told[0] == told[1]
    again = cut.encode("wolf moon", "river")
    assert [whole.encode("wolf moon", "river").tokens, again.type_ids[-1]] == [again.tokens, 1]
    assert again.ids[0] == small.layout.cls


def test_other_texts_fall_back_to_shorter_pieces_and_to_unknown(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    few = trimmed(texts, used(_without_items(texts), []), tmp_path / "few")
    assert _pieces(texts, "wolf") == ["wolf"]
    assert _pieces(few, "wolf") == ["w", "##o", "##l", "##f"]
    assert _pieces(few, "wolf 火") == ["w", "##o", "##l", "##f", "[UNK]"]


def _without_items(texts: Texts) -> Texts:
    """As if all of them had the first item's text, which is empty."""
    empty = Ragged.of([[]] * len(texts.items))
    return replace(texts, items=empty, history=empty)


def test_what_users_are_told_of_is_kept(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    wolf = text_fakes.tokenizer(texts).get_vocab()["wolf"]
    assert wolf not in used(_without_items(texts), [])
    assert wolf in used(_without_items(texts), [[wolf]])


def test_a_trimmed_folder_comes_back(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    small = trimmed(texts, used(texts, []), tmp_path / "small")
    (tmp_path / "copy").mkdir()
    small.save(tmp_path / "copy")
    again = Texts.load(tmp_path / "copy")
    assert again.layout == small.layout
    assert again.items.tokens.tolist() == small.items.tokens.tolist()


@pytest.mark.parametrize("build", [text_fakes.cross_encoder, text_fakes.two_tower])
@torch.no_grad()
def test_a_trimmed_model_scores_bit_for_bit(tmp_path: Path, build: Any) -> None:
    model = build(text_fakes.texts(tmp_path))
    family = models.FAMILIES[model.config.recommender["family"]]
    histories = fakes.histories(6, 2, 1, items=text_fakes.COUNT)
    asked = Asked(histories, text_fakes.without(model.texts, [1, 5], [2, 3, 9], range(20)))
    before, rows = family.scorer(model)(asked), model.get_input_embeddings().weight.shape[0]
    people = fakes.interactions(items=text_fakes.COUNT)
    facts = family.trim(model, people, tmp_path / "scratch", vocabulary=True, positions=True)
    assert family.scorer(model)(asked).equal(before)
    assert facts["vocabulary"] == model.get_input_embeddings().weight.shape[0] < rows
    assert facts["positions"] == model.config.max_position_embeddings < 64
    (tmp_path / "model").mkdir()
    family.save(model, tmp_path / "model")
    assert family.scorer(models.load(tmp_path / "model")[1])(asked).equal(before)


@pytest.mark.parametrize("options", [{"attention": "causal"}, {"attention": "masked"}])
@torch.no_grad()
def test_a_trimmed_bert4rec_scores_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    model = fakes.tiny_model(max_length=30, **options)
    family = models.FAMILIES["bert4rec"]
    people = fakes.interactions()
    asked = people.asked("test", people.users("test"))
    before = family.scorer(model)(asked)
    facts = family.trim(model, people, tmp_path, vocabulary=False, positions=True)
    assert facts["positions"] < 30
    assert family.scorer(model)(asked).equal(before)
    with pytest.raises(RecipeError, match="tokens are its items"):
        family.trim(model, people, tmp_path, vocabulary=True, positions=False)


def test_another_tokenizer_is_one_line(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    described = json.loads((texts.folder / TOKENIZER).read_text())
    described["model"] = {"type": "WordLevel", "vocab": described["model"]["vocab"], "unk_token": "[UNK]"}
    (texts.folder / TOKENIZER).write_text(json.dumps(described))
    with pytest.raises(DataError, match="a WordLevel tokenizer cannot be cut; WordPiece can"):
        trimmed(texts, np.arange(50), tmp_path / "small")
