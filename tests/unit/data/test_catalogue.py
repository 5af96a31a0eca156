"""What a file may say about a catalogue, and the id map that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from compress.data.catalogue import extend, read_new_neighbours, read_new_texts, read_removed
from compress.errors import DataError

KNOWN = pl.DataFrame(
    {"item": [0, 1, 2], "item_id": ["007", "8", "nine"], "text": ["gun", None, "cloud"], "popularity": [5, 0, 2]},
    schema_overrides={"item": pl.Int32},
)
NOTHING = pl.DataFrame(schema={"item_id": pl.String})
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "file.csv"
        path.write_text(text)
        return path

    return written


def test_new_texts_come_in_the_order_of_their_file(write: Write) -> None:
    table = read_new_texts(write("text,item_id,price\nhat,11,3\n007 again,0070,4\n"), KNOWN)
    assert table.rows() == [("11", "hat"), ("0070", "007 again")]


def test_neighbours_are_gathered_by_item(write: Write) -> None:
    table = read_new_neighbours(write("item_id,neighbour_id\nb,nine\na,8\nb,007\n"), KNOWN)
    assert table.rows() == [("b", [2, 0]), ("a", [1])]


def test_removed_items_are_counted_once_and_unknown_ones_passed_over(write: Write) -> None:
    assert read_removed(write("item_id\nnine\n007\nnowhere\nnine\n"), KNOWN, NOTHING).tolist() == [0, 2]


def test_whole_numbers_of_a_parquet_file_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "gone.parquet"
    pl.DataFrame({"item_id": [8.0]}).write_parquet(path)
    assert read_removed(path, KNOWN, NOTHING).tolist() == [1]


def test_known_items_keep_their_places_and_new_ones_follow() -> None:
    added = pl.DataFrame({"item_id": ["b", "a"], "text": ["hat", "cap"]})
    found = extend(KNOWN, added, np.array([1]))
    assert found.select(KNOWN.columns).head(3).equals(KNOWN)
    assert found.rows()[3:] == [(3, "b", "hat", 0, True), (4, "a", "cap", 0, True)]
    assert found["recommendable"].to_list() == [True, False, True, True, True]


def test_items_of_neighbours_have_no_text() -> None:
    added = pl.DataFrame({"item_id": ["a"], "neighbours": [[0, 1]]})
    assert extend(KNOWN, added, np.array([], dtype=np.int32)).rows()[3:] == [(3, "a", None, 0, True)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item,text\na,b\n", "no column 'item_id'; columns: item, text"),
        ("item_id,text\n", "there are no rows in it"),
        ("item_id,text\na,b\n,c\n", "row 2: item_id is missing"),
        ("item_id,text\na,\n", "row 1: text is missing"),
        ("item_id,text\na,b\nc,d\na,e\n", "item 'a' is there twice; leave one of its texts"),
        ("item_id,text\na,b\n007,c\nnine,d\n", "item '007' is in the catalogue already (and 1 more)"),
    ],
)
def test_new_texts_that_do_not_fit_are_one_line(write: Write, text: str, said: str) -> None:
    path = write(text)
    with pytest.raises(DataError) as raised:
        read_new_texts(path, KNOWN)
    assert str(raised.value) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item_id,text\na,8\n", "no column 'neighbour_id'; columns: item_id, text"),
        ("item_id,neighbour_id\na,8\na,8\n", "the pair 'a', '8' is there twice; a neighbour counts once"),
        ("item_id,neighbour_id\na,8\na,b\n", "'b', a neighbour of 'a', is no item that the model knows"),
        ("item_id,neighbour_id\n8,nine\n8,007\n", "item '8' is in the catalogue already"),
    ],
)
def test_neighbours_that_do_not_fit_are_one_line(write: Write, text: str, said: str) -> None:
    path = write(text)
    with pytest.raises(DataError) as raised:
        read_new_neighbours(path, KNOWN)
    assert str(raised.value) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("item_id\nx\ny\n", "none of its 2 rows names an item that the model knows"),
        ("item_id\n8\nb\n", "item 'b' is to be added as well; one of them"),
    ],
)
def test_removals_that_do_not_fit_are_one_line(write: Write, text: str, said: str) -> None:
    path = write(text)
    with pytest.raises(DataError) as raised:
        read_removed(path, KNOWN, pl.DataFrame({"item_id": ["a", "b"]}))
    assert str(raised.value) == f"{path}: {said}"


def test_what_is_no_table_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "new.parquet").write_bytes(b"PAR?")
    with pytest.raises(DataError, match=r"new.parquet: cannot be read: [^\n]*$"):
        read_new_texts(tmp_path / "new.parquet", KNOWN)
