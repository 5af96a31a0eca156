"""What is held out of whom, and who is asked, against a table worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import fakes
from compress import artifact
from compress.artifact import Artifact
from compress.data.interactions import CANDIDATES, INTERACTIONS, ITEMS, Interactions, leave_one_out


@pytest.fixture
def three_users() -> Interactions:
    """User 0: 4 1 2 0; user 1: 0 1 2; user 2: 2 3 4 1 0. Item 5 is nobody's."""
    items = np.array([4, 1, 2, 0, 0, 1, 2, 2, 3, 4, 1, 0], dtype=np.int32)
    offsets = np.array([0, 4, 7, 12])
    return Interactions(items, np.arange(12), offsets, 6, leave_one_out(offsets))


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


def test_retold_keeps_moments_in_order_and_draws_the_order_within() -> None:
    items = np.arange(10, dtype=np.int32)
    offsets = np.array([0, 10])
    people = Interactions(items, np.array([0, 0, 0, 0, 5, 5, 5, 7, 0, 1]), offsets, 10, leave_one_out(offsets))
    told = [people.retold(0, np.random.default_rng(seed)).tolist() for seed in range(20)]
    assert all((sorted(row[:4]), sorted(row[4:7]), row[7:]) == ([0, 1, 2, 3], [4, 5, 6], [7]) for row in told)
    assert len({tuple(row) for row in told}) > 10
    assert people.retold(0, np.random.default_rng(3)).tolist() == told[3]


def test_retold_is_each_users_own_training_part(three_users: Interactions) -> None:
    for user in range(3):
        assert three_users.retold(user, np.random.default_rng(0)).tolist() == three_users.train(user).tolist()


def saved(folder: Path, people: Interactions) -> Path:
    """What prepare writes."""
    users = np.repeat(np.arange(people.user_count, dtype=np.int32), np.diff(people.offsets))
    columns = {"user": users, "item": people.items, "timestamp": people.timestamps, "part": people.parts}
    pl.DataFrame(columns).write_parquet(folder / INTERACTIONS)
    pl.DataFrame({"item": np.arange(people.catalogue_size, dtype=np.int32)}).write_parquet(folder / ITEMS)
    return folder


def test_loaded_is_what_was_saved(tmp_path: Path, three_users: Interactions) -> None:
    loaded = Interactions.load(saved(tmp_path, three_users))
    for field in ("items", "offsets", "timestamps", "parts"):
        assert getattr(loaded, field).tolist() == getattr(three_users, field).tolist()
    assert loaded.catalogue_size == 6
    assert loaded.items.dtype == np.int32
    assert loaded.candidates is None


def test_some_users_are_themselves_in_the_order_asked_for() -> None:
    people = fakes.interactions(users=9)
    some = people.of_users(np.array([7, 0, 3]))
    for ours, theirs in enumerate([7, 0, 3]):
        assert some.history("test", ours).tolist() == people.history("test", theirs).tolist()
    assert some.targets("validation").tolist() == people.targets("validation")[[7, 0, 3]].tolist()
    assert (some.user_count, some.catalogue_size) == (3, people.catalogue_size)


@pytest.fixture
def some_asked() -> Interactions:
    """User 0: 4 1 | 2 | 0; user 1: 0 1 2, asked nothing; user 2: 2 3 4 1 | | 0."""
    items = np.array([4, 1, 2, 0, 0, 1, 2, 2, 3, 4, 1, 0], dtype=np.int32)
    parts = np.array([0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 2], dtype=np.uint8)
    return Interactions(items, np.arange(12), np.array([0, 4, 7, 12]), 6, parts)


def test_users_without_a_target_are_not_asked_and_train_on_everything(some_asked: Interactions) -> None:
    assert [some_asked.train(user).tolist() for user in range(3)] == [[4, 1], [0, 1, 2], [2, 3, 4, 1]]
    assert (some_asked.users("validation").tolist(), some_asked.users("test").tolist()) == ([0], [0, 2])
    assert (some_asked.targets("validation").tolist(), some_asked.targets("test").tolist()) == ([2], [0, 0])
    assert some_asked.history("test", 2).tolist() == [2, 3, 4, 1]
    assert some_asked.popularity().tolist() == [1, 3, 2, 1, 2, 0]
    with pytest.raises(ValueError, match="user 1 has no test target"):
        some_asked.history("test", 1)


def test_candidates_alone_are_recommended_and_what_was_seen_among_them_is_not(
    tmp_path: Path, some_asked: Interactions
) -> None:
    folder = saved(tmp_path, some_asked)
    lists = {"user": np.array([0, 0, 2], dtype=np.int32), "item": np.array([4, 5, 0], dtype=np.int32)}
    pl.DataFrame(lists).write_parquet(folder / CANDIDATES)
    loaded = Interactions.load(folder)
    assert loaded.excluded("test", 0).tolist() == [0, 1, 2, 3, 4]
    assert loaded.excluded("test", 2).tolist() == [1, 2, 3, 4, 5]
    assert some_asked.excluded("test", 0).tolist() == [4, 1, 2]
    assert loaded.within_reach("test").tolist() == [False, True]
    assert some_asked.within_reach("test").tolist() == [True, True]


LISTS = {"user": [0, 0, 0, 0, 2, 2], "item": [2, 5, 0, 3, 1, 5], "part": [1, 1, 2, 2, 2, 2]}
"""Of validation: 2 5 of user 0; of test: 0 3 of user 0, 1 5 of user 2."""


def test_each_split_may_have_candidates_of_its_own(tmp_path: Path, some_asked: Interactions) -> None:
    types = {"user": pl.Int32, "item": pl.Int32, "part": pl.UInt8}
    pl.DataFrame(LISTS, schema=types).write_parquet(tmp_path / CANDIDATES)
    judged = some_asked.judged_on(tmp_path)
    assert judged.candidates
    assert {split: [items.tolist() for items in lists] for split, lists in judged.candidates.items()} == {
        "validation": [[2, 5], [], []],
        "test": [[0, 3], [], [1, 5]],
    }
    assert judged.excluded("validation", 0).tolist() == [0, 1, 3, 4]
    assert judged.excluded("test", 0).tolist() == [1, 2, 4, 5]
    assert (judged.within_reach("validation").tolist(), judged.within_reach("test").tolist()) == ([True], [True, False])
    assert some_asked.candidates is None
    one = judged.of_users(np.array([2]))
    assert (one.excluded("test", 0).tolist(), one.within_reach("test").tolist()) == ([0, 1, 2, 3, 4], [False])
    other = judged.renumbered(np.array([5, 4, 3, 2, 1, 0]), 6)
    assert other.excluded("test", 0).tolist() == [0, 1, 3, 4]


def artifact_of(folder: Path, kind: str) -> Artifact:
    """What a finished stage left in a folder."""
    facts: dict[str, Any] = {"fingerprint": "", "ingredients": {}, "metrics": {}, "environment": {}}
    return artifact.write(folder, name=folder.name, kind=kind, seed=0, seconds=0.0, **facts)


def test_a_stage_is_judged_on_the_lists_of_a_retrieve_stage_among_its_inputs(
    tmp_path: Path, some_asked: Interactions
) -> None:
    for name in ("data", "few", "teacher"):
        (tmp_path / name).mkdir()
    saved(tmp_path / "data", some_asked)
    pl.DataFrame(LISTS).write_parquet(tmp_path / "few" / CANDIDATES)
    data, few, teacher = (
        artifact_of(tmp_path / name, kind)
        for name, kind in (("data", "prepare"), ("few", "retrieve"), ("teacher", "finetune"))
    )
    assert Interactions.of({"data": data, "teacher": teacher}).candidates is None
    judged = Interactions.of({"data": data, "few": few, "teacher": teacher})
    assert judged.excluded("test", 0).tolist() == [1, 2, 4, 5]


def test_leave_one_out_of_some_users_leaves_the_others_whole() -> None:
    offsets = np.array([0, 3, 6, 9])
    assert leave_one_out(offsets).tolist() == [0, 1, 2] * 3
    assert leave_one_out(offsets, np.array([1])).tolist() == [0, 0, 0, 0, 1, 2, 0, 0, 0]
