"""Recommending to everybody: whatever the batch, in the users' order, and never what they have seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import fakes
from compress.data.histories import Asked, Histories
from compress.data.interactions import IntArray, Interactions, Split
from compress.evaluation import NOBODY, evaluate, plain, recommend_all, served
from compress.methods.rounding import Rounding
from compress.metrics import ranking_metrics
from compress.models.bert4rec import Bert4Rec

SPLITS: tuple[Split, ...] = ("validation", "test")


@pytest.fixture
def people() -> Interactions:
    return fakes.interactions(users=23, items=30)


def just(histories: Histories) -> Asked:
    return Asked(histories, fakes.nothing(histories))


def echo(asked: Asked) -> NDArray[np.int64]:
    """Answers with the history itself: its length, then its latest items."""
    return np.array([[len(history), *history[-9:], *[-1] * (9 - len(history[-9:]))] for history in asked.histories])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("batch_size", [1, 2, 7, 23, 64])
def test_every_user_gets_the_answer_to_their_own_history(people: Interactions, split: Split, batch_size: int) -> None:
    expected = np.concatenate([echo(just([people.history(split, user)])) for user in range(people.user_count)])
    assert recommend_all(echo, people, split, batch_size).tolist() == expected.tolist()


def test_users_of_similar_length_share_a_batch(people: Interactions) -> None:
    lengths: list[int] = []

    def recommend(asked: Asked) -> NDArray[np.int64]:
        lengths.extend(len(history) for history in asked.histories)
        return echo(asked)

    recommend_all(recommend, people, "test", batch_size=5)
    assert lengths == sorted(lengths)
    assert len(lengths) == people.user_count


@pytest.fixture
def half_in_reach(people: Interactions) -> Interactions:
    """Every other user's targets are among their candidates."""
    lists = [people.items[people.offsets[user] :][:1] for user in range(people.user_count)]
    candidates: dict[Split, list[IntArray]] = {
        split: [
            np.append(few, target) if user % 2 else few
            for user, (few, target) in enumerate(zip(lists, people.targets(split), strict=True))
        ]
        for split in SPLITS
    }
    return replace(people, candidates=candidates)


def answered(people: Interactions, split: Split, users: list[int]) -> NDArray[np.int64]:
    """What `echo` says of them, as far as they have candidates to be answered with."""
    left = [people.catalogue_size - len(people.excluded(split, user)) for user in users]
    rows = echo(just([people.history(split, user) for user in users]))
    return np.where(np.arange(10) < np.array(left)[:, None], rows, NOBODY)


@pytest.mark.parametrize("split", SPLITS)
def test_users_whose_target_is_no_candidate_are_missed_without_being_asked(
    half_in_reach: Interactions, split: Split
) -> None:
    said: list[tuple[list[int], list[int]]] = []

    def recommend(asked: Asked) -> NDArray[np.int64]:
        said.extend(
            (history.tolist(), barred.tolist()) for history, barred in zip(asked.histories, asked.excluded, strict=True)
        )
        return echo(asked)

    top = recommend_all(recommend, half_in_reach, split, batch_size=5)
    odd = [user for user in range(23) if user % 2]
    expected = answered(half_in_reach, split, odd)
    assert top[1::2].tolist() == expected.tolist()
    assert (top[::2] == NOBODY).all()
    pairs = [(half_in_reach.history(split, user), half_in_reach.excluded(split, user)) for user in odd]
    assert sorted(said) == sorted((history.tolist(), barred.tolist()) for history, barred in pairs)
    assert all(not values[::2].any() for values in ranking_metrics(top, half_in_reach.targets(split)).values())


def test_users_who_are_named_are_asked_whatever_their_candidates(half_in_reach: Interactions) -> None:
    users = np.array([4, 1, 0])
    expected = answered(half_in_reach, "test", users.tolist())
    assert recommend_all(echo, half_in_reach, "test", users=users).tolist() == expected.tolist()


def test_evaluation_is_the_mean_over_users(people: Interactions) -> None:
    answers = iter([True, False] * 12)

    def right_for_every_other(asked: Asked) -> NDArray[np.int64]:
        """The target at rank 2 of every other user."""
        top = np.full((len(asked), 10), -1)
        for row, history in zip(top, asked.histories, strict=True):
            user = next(u for u in range(people.user_count) if people.history("test", u).tolist() == history.tolist())
            row[1] = people.targets("test")[user] if next(answers) else -1
        return top

    found = evaluate(right_for_every_other, people, "test")
    assert found == {
        "ndcg@10": round(12 / 23 / np.log2(3), 6),
        "recall@10": round(12 / 23, 6),
        "mrr@10": round(6 / 23, 6),
    }


@pytest.mark.parametrize("attention", ["causal", "masked"])
def test_a_plain_recommendation_is_the_brute_force_one(people: Interactions, attention: str) -> None:
    family, model = Bert4Rec(), fakes.tiny_model(items=30, attention=attention)
    top = recommend_all(plain(family, model), people, "test")
    for user in range(people.user_count):
        history = people.history("test", user)
        with torch.no_grad():
            scores = family.score(model, Asked([history], fakes.nothing([history])))[0]
        unseen = [(score, item) for item, score in enumerate(scores.tolist()) if item not in history]
        assert top[user].tolist() == [item for _, item in sorted(unseen, reverse=True)[:10]]


def test_as_many_items_are_recommended_as_asked_for(people: Interactions) -> None:
    family, model = Bert4Rec(), fakes.tiny_model(items=30)
    ten, twelve = (recommend_all(plain(family, model, k), people, "test", 5) for k in (10, 12))
    assert twelve.shape == (23, 12)
    assert twelve[:, :10].tolist() == ten.tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_seen_items_are_never_recommended(people: Interactions, split: Split) -> None:
    top = recommend_all(plain(Bert4Rec(), fakes.tiny_model(items=30)), people, split)
    for user in range(people.user_count):
        assert not set(top[user].tolist()) & set(people.history(split, user).tolist())


def test_items_older_than_the_model_reads_are_still_seen() -> None:
    model = fakes.tiny_model(items=30, max_length=4)
    history = fakes.histories(20, items=30)[0]
    top = plain(Bert4Rec(), model)(Asked([history], [history]))
    assert sorted(top[0].tolist()) == sorted(set(range(30)) - set(history.tolist()))


def test_an_empty_history_is_answered() -> None:
    for attention in ("causal", "masked"):
        histories = fakes.histories(0, 5, items=30)
        top = plain(Bert4Rec(), fakes.tiny_model(items=30, attention=attention))(Asked(histories, histories))
        assert top.shape == (2, 10)
        assert len(set(top[0].tolist())) == 10


def test_a_model_is_judged_in_eval_mode(people: Interactions) -> None:
    model = fakes.tiny_model(items=30, dropout=0.5).train()
    recommend = plain(Bert4Rec(), model)
    history = [people.history("test", 0)]
    assert recommend(Asked(history, history)).tolist() == recommend(Asked(history, history)).tolist()
    assert not model.training


def test_the_target_is_not_in_the_history_that_is_asked(people: Interactions) -> None:
    for split in SPLITS:
        said: list[list[int]] = []

        def recommend(asked: Asked, said: list[list[int]] = said) -> NDArray[np.int64]:
            said.extend(history.tolist() for history in asked.histories)
            return echo(asked)

        recommend_all(recommend, people, split)
        whole = [
            people.items[start:end].tolist() for start, end in zip(people.offsets, people.offsets[1:], strict=False)
        ]
        assert sorted(said) == sorted(items[: -{"validation": 2, "test": 1}[split]] for items in whole)


def test_an_oracle_scores_one(people: Interactions) -> None:
    top = np.full((23, 10), NOBODY)
    top[:, 0] = people.targets("validation")
    assert all(values.tolist() == [1.0] * 23 for values in ranking_metrics(top, people.targets("validation")).values())


@pytest.mark.parametrize("attention", ["causal", "masked"])
def test_the_served_graph_recommends_as_the_plain_model(people: Interactions, attention: str) -> None:
    family, model = Bert4Rec(), fakes.tiny_model(items=30, attention=attention)
    expected = recommend_all(plain(family, model), people, "validation")
    assert recommend_all(served(family, model, Rounding()), people, "validation", 7).tolist() == expected.tolist()
