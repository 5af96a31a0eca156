"""Filters, numbering, order and the leave-one-out split, against tables worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import fakes
from compress.data.interactions import Counts, Interactions, filter_interactions, number, order_by_time, save
from compress.recipe.data import Columns, Table

SCHEMA = {"user": pl.String, "item": pl.String, "timestamp": pl.Int64, "rating": pl.Float64}


def table(*rows: tuple[Any, ...]) -> pl.DataFrame:
    return pl.DataFrame([(*row, None)[:4] for row in rows], schema=SCHEMA, orient="row")


def section(**options: Any) -> Table:
    columns = Columns(rating="rating")
    return Table(source="csv", path=Path("x.csv"), columns=columns, min_interactions=3, **options)


def grid(users: str, items: str) -> list[tuple[Any, ...]]:
    """Every user with every item, in the order of the items."""
    return [(user, item, time, 5.0) for user in users for time, item in enumerate(items)]


def rows(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return sorted(frame.rows())


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
    kept, dropped = filter_interactions(raw, section(min_rating=3))
    assert rows(kept) == rows(table(*grid("abc", "xyz")).drop("rating"))
    assert dropped == Counts(missing=3, rating=2, duplicate=1, core=1)


def test_ratings_do_not_matter_without_a_threshold() -> None:
    raw = table(*[(user, item, 1, None) for user in "abc" for item in "xyz"])
    assert filter_interactions(raw, section())[1] == Counts(0, 0, 0, 0)


@pytest.mark.parametrize(("which", "time"), [("first", 0), ("last", 7)])
def test_of_repeats_the_first_or_the_last_is_kept(which: str, time: int) -> None:
    raw = table(("a", "x", 7), ("a", "x", 3), *grid("abc", "xyz"))
    kept, dropped = filter_interactions(raw, section(duplicates=which))
    assert kept.filter(user="a", item="x")["timestamp"].to_list() == [time]
    assert dropped.duplicate == 2


def test_a_repeat_rated_too_low_does_not_hide_a_good_one() -> None:
    raw = table(*grid("abc", "xyz"), ("a", "x", -1, 1.0))
    assert filter_interactions(raw, section(min_rating=3))[0].filter(user="a", item="x")["timestamp"].to_list() == [0]


def test_the_core_is_a_fixed_point() -> None:
    # w has d, e and a; d has x, y and w: e goes for want of items, then w of users, then d of items; the grid stays.
    chain = [("d", "x", 1), ("d", "y", 1), ("d", "w", 1), ("e", "w", 1), ("a", "w", 3)]
    kept, dropped = filter_interactions(table(*grid("abc", "xyz"), *chain), section())
    assert rows(kept) == rows(table(*grid("abc", "xyz")).drop("rating"))
    assert dropped.core == 5


def test_nothing_left_is_an_empty_table() -> None:
    assert filter_interactions(table(("a", "x", 1)), section())[0].is_empty()


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


def dense(*triples: tuple[int, int, int]) -> pl.DataFrame:
    return pl.DataFrame(triples, schema={"user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64}, orient="row")


def test_interactions_come_by_user_then_time() -> None:
    ordered = order_by_time(dense((1, 5, 20), (0, 7, 9), (1, 3, 10), (0, 2, 8)), seed=0)
    assert ordered.rows() == [(0, 2, 8), (0, 7, 9), (1, 3, 10), (1, 5, 20)]


def test_ties_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    tied = dense(*[(user, item, item // 10) for user in range(5) for item in range(40)])
    shuffled = tied.sample(fraction=1, shuffle=True, seed=3)
    one, other = order_by_time(tied, seed=0), order_by_time(tied, seed=1)
    assert order_by_time(shuffled, seed=0).equals(one)
    assert not other.equals(one)
    assert not one.equals(tied)
    assert one.select("user", "timestamp").equals(tied.select("user", "timestamp"))


@pytest.fixture
def three_users() -> Interactions:
    """User 0: 4 1 2 0; user 1: 0 1 2; user 2: 2 3 4 1 0. Item 5 is nobody's."""
    items = np.array([4, 1, 2, 0, 0, 1, 2, 2, 3, 4, 1, 0], dtype=np.int32)
    return Interactions(items, np.arange(12), offsets=np.array([0, 4, 7, 12]), catalogue_size=6)


def test_the_last_two_of_each_user_are_held_out(three_users: Interactions) -> None:
    assert three_users.user_count == 3
    assert [three_users.train(user).tolist() for user in range(3)] == [[4, 1], [0], [2, 3, 4]]
    assert [three_users.history("validation", user).tolist() for user in range(3)] == [[4, 1], [0], [2, 3, 4]]
    assert [three_users.history("test", user).tolist() for user in range(3)] == [[4, 1, 2], [0, 1], [2, 3, 4, 1]]
    assert three_users.targets("validation").tolist() == [2, 1, 1]
    assert three_users.targets("test").tolist() == [0, 2, 0]


def test_popularity_counts_training_parts_only(three_users: Interactions) -> None:
    assert three_users.popularity().tolist() == [1, 1, 1, 1, 2, 0]
    parts = np.concatenate([three_users.train(user) for user in range(3)])
    assert three_users.popularity().tolist() == np.bincount(parts, minlength=6).tolist()


def test_digits_of_other_scripts_are_strings() -> None:
    assert number(pl.Series("item", ["10", "٣", "9"]))["item_id"].to_list() == ["10", "9", "٣"]


def test_retold_keeps_moments_in_order_and_draws_the_order_within() -> None:
    items = np.arange(10, dtype=np.int32)
    people = Interactions(items, np.array([0, 0, 0, 0, 5, 5, 5, 7, 0, 1]), np.array([0, 10]), 10)
    told = [people.retold(0, np.random.default_rng(seed)).tolist() for seed in range(20)]
    assert all((sorted(row[:4]), sorted(row[4:7]), row[7:]) == ([0, 1, 2, 3], [4, 5, 6], [7]) for row in told)
    assert len({tuple(row) for row in told}) > 10
    assert people.retold(0, np.random.default_rng(3)).tolist() == told[3]


def test_retold_is_each_users_own_training_part(three_users: Interactions) -> None:
    for user in range(3):
        assert three_users.retold(user, np.random.default_rng(0)).tolist() == three_users.train(user).tolist()


def test_loaded_is_what_was_saved(tmp_path: Path, three_users: Interactions) -> None:
    users = np.repeat(np.arange(3, dtype=np.int32), np.diff(three_users.offsets))
    interactions = pl.DataFrame({"user": users, "item": three_users.items, "timestamp": np.arange(12)})
    catalogue = pl.DataFrame({"item": np.arange(6, dtype=np.int32)})
    save(tmp_path, interactions, pl.DataFrame({"user": [0, 1, 2]}), catalogue)
    loaded = Interactions.load(tmp_path)
    assert loaded.items.tolist() == three_users.items.tolist()
    assert loaded.offsets.tolist() == three_users.offsets.tolist()
    assert loaded.timestamps.tolist() == list(range(12))
    assert loaded.catalogue_size == 6
    assert loaded.items.dtype == np.int32


def test_some_users_are_themselves_in_the_order_asked_for() -> None:
    people = fakes.interactions(users=9)
    some = people.of_users(np.array([7, 0, 3]))
    for ours, theirs in enumerate([7, 0, 3]):
        assert some.history("test", ours).tolist() == people.history("test", theirs).tolist()
    assert some.targets("validation").tolist() == people.targets("validation")[[7, 0, 3]].tolist()
    assert (some.user_count, some.catalogue_size) == (3, people.catalogue_size)
