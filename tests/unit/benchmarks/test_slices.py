"""Groups of users and what they are recommended, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.slices import describe_catalogue, describe_slices, popularity_percentiles, slice_users
from compress.metrics import compare


def test_users_fall_into_terciles_and_the_shortest_tenth_is_cold() -> None:
    lengths = np.arange(30) + 4
    slices = slice_users(lengths, lengths[::-1] * 10)
    assert [(part.name, part.by, np.flatnonzero(part.users_U).tolist()) for part in slices] == [
        ("history 4-13", "history length", list(range(10))),
        ("history 14-23", "history length", list(range(10, 20))),
        ("history 24-33", "history length", list(range(20, 30))),
        ("target seen 40-130 times", "target popularity", list(range(20, 30))),
        ("target seen 140-230 times", "target popularity", list(range(10, 20))),
        ("target seen 240-330 times", "target popularity", list(range(10))),
        ("cold users, history 4-6", "cold users", [0, 1, 2]),
    ]


def test_equal_users_stay_together() -> None:
    lengths = np.array([3] * 8 + [5, 7])
    slices = slice_users(lengths, np.full(10, 2))
    assert [(part.name, int(part.users_U.sum())) for part in slices] == [
        ("history 3", 8),
        ("history 5-7", 2),
        ("target seen 2 times", 10),
        ("cold users, history 3", 8),
    ]


def test_a_slice_is_compared_on_its_own_users() -> None:
    random = np.random.default_rng(0)
    ndcg = {"teacher": random.random((2, 60)), "student": random.random((2, 60))}
    slices = slice_users(np.arange(60), np.arange(60) % 7)
    rows = describe_slices(slices, ndcg, "teacher")
    for place, part in enumerate(slices):
        users = np.flatnonzero(part.users_U)
        alone = compare(ndcg["student"][:, users], ndcg["teacher"][:, users]).ratio
        assert rows["student"][place] == {
            "name": part.name,
            "by": part.by,
            "users": len(users),
            "ndcg@10": ndcg["student"][:, users].mean(),
            "vs_teacher": {"ratio": alone.mean, "ci95": [alone.low, alone.high]},
        }
        assert rows["teacher"][place]["vs_teacher"] == {"ratio": 1.0, "ci95": [1.0, 1.0]}


def test_no_ratio_is_formed_where_the_teacher_hits_nothing() -> None:
    teacher = np.zeros((1, 30))
    teacher[:, 20:] = 1
    rows = describe_slices(slice_users(np.arange(30), np.full(30, 1)), {"a": teacher / 2, "b": teacher}, "b")
    assert [row["vs_teacher"] and row["vs_teacher"]["ratio"] for row in rows["a"]] == [None, None, 0.5, 0.5, None]


def test_percentiles_of_equally_popular_items_are_their_mean() -> None:
    assert popularity_percentiles(np.array([9, 0, 4, 4, 1])).tolist() == [1.0, 0.0, 0.625, 0.625, 0.25]
    assert popularity_percentiles(np.full(7, 3)).tolist() == [0.5] * 7
    assert popularity_percentiles(np.array([3])).tolist() == [0.0]


def test_coverage_and_popularity_are_the_mean_of_the_seeds() -> None:
    popularity = np.arange(21)
    first = np.array([np.arange(10), np.arange(10)])
    second = np.array([np.arange(10), np.arange(10, 20)])
    found = describe_catalogue([first, second], popularity)
    assert found["coverage@10"] == pytest.approx((10 / 21 + 20 / 21) / 2)
    assert found["popularity@10"] == pytest.approx((4.5 / 20 + 9.5 / 20) / 2)


def test_an_eleventh_item_and_padding_are_not_recommended() -> None:
    top = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 11]])
    assert describe_catalogue([top], np.arange(12))["coverage@10"] == pytest.approx(9 / 12)


def test_recommending_the_most_popular_drifts_towards_one() -> None:
    popularity = np.random.default_rng(0).permutation(1000)
    top = np.argsort(-popularity)[None, :10]
    assert describe_catalogue([top], popularity) == {"coverage@10": 0.01, "popularity@10": pytest.approx(1 - 4.5 / 999)}
