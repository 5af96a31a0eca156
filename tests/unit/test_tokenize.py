"""The tokenize stage: templates over the columns of the items, what is missing, what is too long, and one line else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

import text_fakes
from compress.data.texts import FILES, TOKENIZER, rendered_texts
from compress.errors import DataError

ITEMS = text_fakes.table()
KIND = ITEMS["kind"].to_list()
TEXT = ITEMS["text"].to_list()


# --- templates ---


def test_columns_take_their_places_and_a_missing_value_leaves_its_own_empty(tmp_path: Path) -> None:
    texts, _ = text_fakes.tokenized(
        tmp_path, ITEMS, item="{text} ({year}; {{{kind}}})", history={"item": "{kind}/{kind}"}
    )
    candidates, parts = rendered_texts(texts.folder)
    assert candidates[0] == " (1900; {drama})"
    assert candidates[2] == f"{TEXT[2]} (1902; {{}})"
    assert candidates[5] == f"{TEXT[5]} (1905; {{sci-fi}})"
    assert parts[:4] == ["drama/drama", "sci-fi/sci-fi", "/", "film noir/film noir"]


def test_texts_stand_in_the_order_of_the_items(tmp_path: Path) -> None:
    texts, _ = text_fakes.tokenized(tmp_path, ITEMS.sample(fraction=1.0, shuffle=True, seed=1))
    assert rendered_texts(texts.folder)[0] == [text or "" for text in TEXT]


@pytest.mark.parametrize("where", ["item", "history.item"])
def test_an_unknown_column_is_one_line_that_names_the_ones_there_are(tmp_path: Path, where: str) -> None:
    template = "{text}, {genres}"
    options = {"item": template} if where == "item" else {"history": {"item": template}}
    with pytest.raises(DataError) as raised:
        text_fakes.tokenized(tmp_path, ITEMS, **options)
    assert str(raised.value) == (
        f"{where}: '{template}': there is no column 'genres'; there are item_id, text, kind, year"
    )


@pytest.mark.parametrize(
    "template",
    ["{text.__class__}", "{text[0]}", "{text!r}", "{text:>9}", "{}", "{0}", "{text", "no column", "{text:{kind}}", ""],
)
@pytest.mark.parametrize("where", ["item", "history"])
def test_a_template_that_does_more_than_name_columns_is_refused(template: str, where: str) -> None:
    options = {"item": template} if where == "item" else {"history": {"item": template}}
    with pytest.raises(ValidationError) as raised:
        text_fakes.section(**options)
    (error,) = raised.value.errors()
    assert error["loc"][-1] == "item"
    assert repr(template) in error["msg"]
    assert "\n" not in error["msg"]


@pytest.mark.parametrize("separator", ["", " ", "and", ", and ", "a, ", ",\n"])
def test_a_separator_that_could_grow_together_with_a_word_is_refused(separator: str) -> None:
    with pytest.raises(ValidationError, match="separator"):
        text_fakes.section(history={"separator": separator})


# --- tokens ---


def test_what_is_stated_is_a_recount(tmp_path: Path) -> None:
    texts, metrics = text_fakes.tokenized(tmp_path, ITEMS, tokenizer={"vocab_size": 100})
    whole = text_fakes.tokenizer(texts)
    ids = [whole.encode(text or "", add_special_tokens=False).ids for text in TEXT]
    lengths = [len(each) for each in ids]
    assert [texts.items[item].tolist() for item in range(len(ids))] == ids
    assert metrics["vocab_size"] == texts.layout.vocab_size == whole.get_vocab_size() <= 100
    assert metrics["longest_item"] == max(lengths)
    assert metrics["tokens_per_item"] == pytest.approx(np.mean(lengths), abs=5e-3)
    assert metrics["cut_items"] == 0
    unknown = sum(each.count(whole.token_to_id("[UNK]")) for each in ids)
    assert metrics["unknown_share"] == pytest.approx(unknown / sum(lengths), abs=1e-6)


def test_the_share_of_unknown_tokens_is_of_a_tokenizer_that_lacks_some(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    own = text_fakes.texts(tmp_path / "own", tokenizer={"vocab_size": 120})
    (folder / TOKENIZER).write_bytes((own.folder / TOKENIZER).read_bytes())
    items = pl.DataFrame(ITEMS).with_columns(text=pl.lit("red 漢 漢 moon"))
    _, metrics = text_fakes.tokenized(tmp_path, items, tokenizer=folder)
    assert metrics["unknown_share"] == 0.5


def test_too_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    whole = text_fakes.texts(tmp_path / "whole")
    lengths = whole.items.lengths
    limit = int(np.median(lengths))
    texts, metrics = text_fakes.tokenized(tmp_path / "cut", ITEMS, tokenizer=whole.folder, max_item_tokens=limit)
    for item, length in enumerate(lengths):
        assert texts.items[item].tolist() == whole.items[item].tolist()[:limit]
        assert texts.history[item].tolist() == whole.history[item].tolist()[:limit]
        assert len(texts.items[item]) == min(limit, length)
    assert metrics["longest_item"] == limit
    assert 0 < (lengths > limit).sum() < (lengths >= limit).sum()
    assert metrics["cut_items"] == (lengths > limit).sum()


def test_the_same_texts_give_the_same_tokenizer(tmp_path: Path) -> None:
    """Also where many pairs of letters are equally frequent and only some become tokens."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghij"), size=7)) for _ in range(ITEMS.height)]
    items = ITEMS.with_columns(text=pl.Series(words))
    made = [text_fakes.tokenized(tmp_path / str(time), items, tokenizer={"vocab_size": 100})[0] for time in range(5)]
    for name in FILES:
        assert len({(texts.folder / name).read_bytes() for texts in made}) == 1
    changed, _ = text_fakes.tokenized(tmp_path / "other", ITEMS.with_columns(text=pl.lit("quite another thing")))
    assert (changed.folder / TOKENIZER).read_bytes() != (made[0].folder / TOKENIZER).read_bytes()


def test_ones_own_tokenizer_is_taken_as_it_is(tmp_path: Path) -> None:
    trained = text_fakes.texts(tmp_path / "trained")
    whole = text_fakes.tokenizer(trained)
    whole.enable_truncation(3)
    whole.enable_padding(length=50)
    (tmp_path / "theirs").mkdir()
    whole.save(str(tmp_path / "theirs" / TOKENIZER))
    texts, metrics = text_fakes.tokenized(tmp_path / "own", ITEMS, tokenizer=tmp_path / "theirs")
    assert texts.layout == trained.layout
    assert texts.items.tokens.tolist() == trained.items.tokens.tolist()
    assert metrics["longest_item"] == trained.items.longest > 3, "its padding and truncation are not ours"


def test_the_special_tokens_are_the_tokenizers(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    names = {name: text_fakes.tokenizer(texts).token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]")}
    assert (texts.layout.cls, texts.layout.sep, texts.layout.pad) == tuple(names.values())
    assert len(set(names.values())) == 3


@pytest.mark.parametrize("name", ["[PAD]", "[SEP]", "[CLS]"])
def test_a_text_that_names_a_special_token_holds_none(tmp_path: Path, name: str) -> None:
    items = ITEMS.with_columns(text=pl.lit(f"red {name} moon"))
    texts, _ = text_fakes.tokenized(tmp_path, items)
    special = {texts.layout.cls, texts.layout.sep, texts.layout.pad}
    assert not special & set(texts.items[1].tolist())


# --- one line ---


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path / TOKENIZER}: no tokenizer: [^\n]*$"):
        text_fakes.tokenized(tmp_path / "own", ITEMS, tokenizer=tmp_path)


def test_a_tokenizer_without_berts_special_tokens_is_one_line(tmp_path: Path) -> None:
    theirs = Tokenizer(WordPiece({"[PAD]": 0, "[UNK]": 1, "red": 2}, unk_token="[UNK]"))
    theirs.save(str(tmp_path / TOKENIZER))
    with pytest.raises(DataError, match=r"no BERT tokenizer: WordPiece, without \[CLS\], \[SEP\]$"):
        text_fakes.tokenized(tmp_path / "own", ITEMS, tokenizer=tmp_path)


def test_items_without_any_text_are_one_line(tmp_path: Path) -> None:
    items = ITEMS.with_columns(text=pl.lit(None, pl.String))
    with pytest.raises(DataError) as raised:
        text_fakes.tokenized(tmp_path, items)
    assert "\n" not in str(raised.value)
