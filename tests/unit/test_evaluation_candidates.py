"""Quality on given candidates, from lists on disk to means: who is out of reach is missed and not asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

import fakes
from compress.data.histories import Asked
from compress.data.interactions import CANDIDATES, PARTS, Interactions, Split
from compress.evaluation import NOBODY, evaluate, plain, recommend_all
from compress.metrics import overlap, ranking_metrics
from compress.models.bert4rec import Bert4Rec

SPLITS: tuple[Split, ...] = ("validation", "test")
ITEMS, USERS, LISTED = 40, 17, 14
Lists = dict[Split, list[list[int]]]


def drawn(people: Interactions, seed: int) -> list[list[int]]:
    """Unseen items and targets of each user; the targets of about half of them are left out."""
    random = np.random.default_rng(seed)
    return [random.permutation(ITEMS)[:LISTED].tolist() for _ in range(people.user_count)]


@pytest.fixture
def lists() -> Lists:
    people = fakes.interactions(users=USERS, items=ITEMS)
    return {"validation": drawn(people, 1), "test": drawn(people, 2)}


@pytest.fixture
def people(tmp_path: Path, lists: Lists) -> Interactions:
    """Judged on them, as a retrieve stage leaves them."""
    rows = [(user, item, PARTS[split]) for split in SPLITS for user, items in enumerate(lists[split]) for item in items]
    table = pl.DataFrame(rows, schema=["user", "item", "part"], orient="row")
    table.cast({"part": pl.UInt8}).write_parquet(tmp_path / CANDIDATES)
    return fakes.interactions(users=USERS, items=ITEMS).judged_on(tmp_path)


class Counting:
    """Ranks by item id, the highest first, and remembers whom it was asked about."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, asked: Asked) -> NDArray[np.int64]:
        self.asked.extend(history.tolist() for history in asked.histories)
        rows = [np.setdiff1d(np.arange(ITEMS), barred)[::-1][:10] for barred in asked.excluded]
        return np.array([[*row, *[NOBODY] * (10 - len(row))] for row in rows])


def ranked(people: Interactions, lists: Lists, split: Split, user: int) -> list[int]:
    """The same by hand."""
    unseen = set(lists[split][user]) - set(people.history(split, user).tolist())
    return sorted(unseen, reverse=True)[:10]


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_is_judged_on_its_own_lists(people: Interactions, lists: Lists, split: Split) -> None:
    top = recommend_all(Counting(), people, split, batch_size=4)
    reached = people.within_reach(split)
    targets = people.targets(split).tolist()
    assert reached.tolist() == [target in few for few, target in zip(lists[split], targets, strict=True)]
    assert 0 < reached.sum() < USERS
    for user in range(USERS):
        found = [item for item in top[user].tolist() if item != NOBODY]
        assert found == (ranked(people, lists, split, user) if reached[user] else [])


@pytest.mark.parametrize("split", SPLITS)
def test_only_users_in_reach_are_asked_and_the_others_count_as_misses(
    people: Interactions, lists: Lists, split: Split
) -> None:
    counting = Counting()
    found = evaluate(counting, people, split)
    reached = np.flatnonzero(people.within_reach(split)).tolist()
    expected = [people.history(split, user).tolist() for user in reached]
    assert sorted(counting.asked) == sorted(expected)
    targets = people.targets(split).tolist()
    hits = [targets[user] in ranked(people, lists, split, user) for user in range(USERS)]
    in_reach = [hits[user] for user in reached]
    assert found["recall@10"] == pytest.approx(sum(in_reach) / USERS, abs=1e-6)
    assert 0 < found["recall@10"] < sum(in_reach) / len(in_reach)


def test_if_nobody_is_in_reach_nobody_is_asked_and_everything_is_missed(people: Interactions, tmp_path: Path) -> None:
    pl.DataFrame({"user": [0], "item": [int(people.history("test", 0)[0])]}).write_parquet(tmp_path / CANDIDATES)
    unreachable = people.judged_on(tmp_path)
    counting = Counting()
    top = recommend_all(counting, unreachable, "test")
    assert counting.asked == []
    assert top.shape == (USERS, 10)
    assert (top == NOBODY).all()
    assert not any(values.any() for values in ranking_metrics(top, unreachable.targets("test")).values())


def test_a_model_ranks_the_candidates_as_it_ranks_them_in_the_catalogue(people: Interactions, lists: Lists) -> None:
    family, model = Bert4Rec(), fakes.tiny_model(items=ITEMS)
    top = recommend_all(plain(family, model, 5), people, "test")
    for user in np.flatnonzero(people.within_reach("test")).tolist():
        history = people.history("test", user)
        with torch.no_grad():
            scores = family.scorer(model)(Asked([history], fakes.nothing([history])))[0].tolist()
        unseen = set(lists["test"][user]) - set(history.tolist())
        assert top[user].tolist() == sorted(unseen, key=lambda item: -scores[item])[:5]


def test_agreement_is_of_the_users_who_were_asked(people: Interactions) -> None:
    def backwards(asked: Asked) -> NDArray[np.int64]:
        return Counting()(asked)[:, ::-1]

    one, other = (recommend_all(each, people, "test") for each in (Counting(), backwards))
    asked = people.within_reach("test") & (one >= 0).any(axis=1)
    assert overlap(one, other).tolist() == [1.0] * int(asked.sum())
    assert 0 < asked.sum() < USERS
