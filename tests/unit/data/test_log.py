"""Filters, numbering, order and splits of a log, against tables worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from compress.data import log
from compress.data.interactions import TEST, TRAIN, VALIDATION
from compress.data.log import Counts, filter_interactions, hold_out, number, order_by_time
from compress.recipe.data import Columns, Table

SCHEMA = {"user": pl.String, "item": pl.String, "timestamp": pl.Int64, "rating": pl.Float64, "part": pl.UInt8}


def table(*rows: tuple[Any, ...]) -> pl.DataFrame:
    return pl.DataFrame([(*row, *(None, TRAIN)[len(row) - 3 :]) for row in rows], schema=SCHEMA, orient="row")


def section(**options: Any) -> Table:
    columns = Columns(rating="rating")
    return Table(source="csv", path=Path("x.csv"), columns=columns, min_interactions=3, **options)


def grid(users: str, items: str) -> list[tuple[Any, ...]]:
    """Every user with every item, in the order of the items."""
    return [(user, item, time, 5.0) for user in users for time, item in enumerate(items)]


def rows(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return sorted(frame.select(pl.col("user", "item").cast(pl.String), "timestamp").rows())


def test_each_step_counts_what_it_drops() -> None:
    raw = table(
        *grid("abc", "xyz"),
        (None, "x", 1, 5.0),  # missing, three ways
        ("a", None, 1, 5.0),
        ("a", "x", None, 5.0),
        ("d", "x", 1, 2.0),  # rated too low, and not at all
        ("d", "y", 1, None),
        ("a", "x", 9, 5.0),  # a repeat
        ("e", "x", 1, 5.0),  # outside the core
    )
    kept, dropped = filter_interactions([raw], section(min_rating=3))
    assert rows(kept) == rows(table(*grid("abc", "xyz")).select("user", "item", "timestamp"))
    assert dropped == Counts(missing=3, rating=2, duplicate=1, core=1)


def test_ratings_do_not_matter_without_a_threshold() -> None:
    raw = table(*[(user, item, 1, None) for user in "abc" for item in "xyz"])
    assert filter_interactions([raw], section())[1] == Counts(0, 0, 0, 0)


@pytest.mark.parametrize(("which", "time"), [("first", 0), ("last", 7)])
def test_of_repeats_the_first_or_the_last_is_kept(which: str, time: int) -> None:
    raw = table(("a", "x", 7), ("a", "x", 3), *grid("abc", "xyz"))
    kept, dropped = filter_interactions([raw], section(duplicates=which))
    assert ("a", "x", time) in rows(kept)
    assert dropped.duplicate == 2


def test_a_repeat_rated_too_low_does_not_hide_a_good_one() -> None:
    raw = table(*grid("abc", "xyz"), ("a", "x", -1, 1.0))
    assert ("a", "x", 0) in rows(filter_interactions([raw], section(min_rating=3))[0])


def test_the_core_is_a_fixed_point() -> None:
    # w has d, e and a; d has x, y and w: e goes for want of items, then w of users, then d of items; the grid stays.
    chain = [("d", "x", 1), ("d", "y", 1), ("d", "w", 1), ("e", "w", 1), ("a", "w", 3)]
    kept, dropped = filter_interactions([table(*grid("abc", "xyz"), *chain)], section())
    assert rows(kept) == rows(table(*grid("abc", "xyz")).select("user", "item", "timestamp"))
    assert dropped.core == 5


def test_nothing_left_is_an_empty_table() -> None:
    assert filter_interactions([table(("a", "x", 1))], section())[0].is_empty()


@pytest.mark.parametrize(
    ("ids", "ordered"),
    [
        (["10", "9", "100", "9"], ["9", "10", "100"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["7", "007", "08"], ["007", "7", "08"]),
        (["99999999999999999999", "5"], ["5", "99999999999999999999"]),  # too long for an integer: by string
    ],
)
def test_ids_are_numbered_in_their_order(ids: list[str], ordered: list[str]) -> None:
    numbered = number(pl.Series("item", ids))
    assert numbered["item_id"].to_list() == ordered
    assert numbered["item"].to_list() == list(range(len(ordered)))
    assert numbered.schema == {"item": pl.Int32, "item_id": pl.String}


def numbers(*rows: tuple[int, ...]) -> pl.DataFrame:
    """user, item, timestamp, part; in training where the part is not given."""
    schema = {"user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64, "part": pl.UInt8}
    return pl.DataFrame([(*row, TRAIN)[:4] for row in rows], schema=schema, orient="row")


def test_interactions_come_by_user_then_time() -> None:
    ordered = order_by_time(numbers((1, 5, 20), (0, 7, 9), (1, 3, 10), (0, 2, 8)), seed=0)
    assert ordered.drop("part").rows() == [(0, 2, 8), (0, 7, 9), (1, 3, 10), (1, 5, 20)]


def test_ties_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    tied = numbers(*[(user, item, item // 10) for user in range(5) for item in range(40)])
    shuffled = tied.sample(fraction=1, shuffle=True, seed=3)
    one, other = order_by_time(tied, seed=0), order_by_time(tied, seed=1)
    assert order_by_time(shuffled, seed=0).equals(one)
    assert not other.equals(one)
    assert not one.equals(tied)
    assert one.select("user", "timestamp").equals(tied.select("user", "timestamp"))


def test_digits_of_other_scripts_are_strings() -> None:
    assert number(pl.Series("item", ["10", "٣", "9"]))["item_id"].to_list() == ["10", "9", "٣"]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "BLOCK", 7)


def made(batches: list[pl.DataFrame], seed: int = 0) -> list[tuple[Any, ...]]:
    kept, _ = filter_interactions(batches, section())
    (user, _), (item, _) = log.dense(kept["user"]), log.dense(kept["item"])
    return order_by_time(kept.with_columns(user, item), seed).rows()


def test_batches_and_blocks_change_nothing(request: pytest.FixtureRequest) -> None:
    random = np.random.default_rng(0)
    raw = table(*[(f"u{random.integers(9)}", f"i{random.integers(12)}", int(random.integers(4))) for _ in range(200)])
    whole = made([raw])
    assert len(whole) > 50
    request.getfixturevalue("small_blocks")
    assert made([raw]) == whole
    assert made([raw[start : start + 13] for start in range(0, 200, 13)]) == whole


def test_times_that_are_whole_in_one_batch_and_not_in_another_keep_their_order() -> None:
    halves = table(*grid("abc", "xyz")).with_columns(pl.col("timestamp") + 0.5)
    kept, _ = filter_interactions([table(*grid("abc", "w")), halves], section())
    assert kept["timestamp"].dtype == pl.Float64
    assert kept.sort("timestamp")["item"].cast(pl.String).to_list()[:3] == ["w"] * 3


def test_dense_numbers_lead_back_to_their_ids_under_the_names_given() -> None:
    column = pl.Series("user", ["b", "a", "b"]).cast(pl.Categorical)
    assert [each.to_list() for each in (log.dense(column)[0], log.dense(column)[1]["user_id"])] == [
        [1, 0, 1],
        ["a", "b"],
    ]
    renamed, ids = log.dense(column, {"a": "z", "b": "y"}.__getitem__)
    assert (renamed.to_list(), ids.rows()) == ([0, 1, 0], [(0, "y"), (1, "z")])


def test_what_is_held_out_of_a_user_who_stays_stays_and_teaches_no_core() -> None:
    held = [("a", "new", 9, 5.0, TEST), ("e", "x", 9, 5.0, TEST), ("a", "x", 9, 5.0, TEST)]
    kept, dropped = filter_interactions([table(*grid("abc", "xyz"), *held)], given(test=Path("test.csv")))
    assert rows(kept) == sorted([*rows(table(*grid("abc", "xyz"))), ("a", "new", 9)])
    assert (dropped.duplicate, dropped.core) == (1, 1), "the training part keeps an item that is in both"


def given(**options: Any) -> Table:
    columns = Columns(rating="rating", split=None if "test" in options else "part")
    return Table(source="csv", path=Path("x.csv"), columns=columns, split="given", min_interactions=3, **options)


def parts(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return frame.select("user", "item", "part").rows()


def test_of_a_given_split_the_first_item_of_each_part_counts() -> None:
    ordered = numbers(
        (0, 1, 1), (0, 2, 2), (0, 3, 3, 1), (0, 4, 4, 1), (0, 5, 5, 2), (1, 1, 1), (1, 2, 2, 2), (1, 3, 3, 2)
    )
    assert parts(hold_out(ordered, given())) == [
        *((0, 1, TRAIN), (0, 2, TRAIN), (0, 3, VALIDATION), (0, 5, TEST)),
        *((1, 1, TRAIN), (1, 2, TEST)),
    ]


def test_without_validation_the_last_training_item_of_tested_users_is_it() -> None:
    ordered = numbers((0, 1, 1), (0, 2, 2), (0, 3, 3, 2), (1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 4, 2, 2))
    assert parts(hold_out(ordered, given())) == [
        *((0, 1, TRAIN), (0, 2, VALIDATION), (0, 3, TEST)),
        *((1, 1, TRAIN), (1, 2, TRAIN)),
        *((2, 1, TRAIN), (2, 4, TEST)),
    ]


def test_evaluation_users_of_a_given_split_are_of_those_with_something_held_out() -> None:
    tested, others = range(12), range(12, 400)
    lines = [(user, item, item) for user in (*tested, *others) for item in range(3)]
    ordered = numbers(*lines, *((user, 3, 3, TEST) for user in tested))
    split = hold_out(ordered, given(evaluation_users=10))
    judged = split.filter(pl.col("part") == TEST)["user"].to_list()
    assert len(judged) == len(set(judged)) == 10
    assert split.filter(pl.col("part") == VALIDATION)["user"].to_list() == judged
    assert split.filter(pl.col("part") == TRAIN).height == 3 * 400 - 10, "of the others all that is training stays it"


def test_evaluation_users_are_drawn_by_the_seed_and_the_others_are_training() -> None:
    ordered = numbers(*[(user, item, item) for user in range(40) for item in range(3)])
    one, again, other = (hold_out(ordered, section(evaluation_users=10, seed=seed)) for seed in (0, 0, 1))
    assert one.equals(again)
    assert not one.equals(other)
    for split in (one, other):
        assert split["part"].to_list().count(TEST) == split["part"].to_list().count(VALIDATION) == 10
        assert split.filter(pl.col("part") == TEST)["item"].to_list() == [2] * 10
