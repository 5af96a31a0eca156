"""Popularity and the Markov chain: worked out by hand, recomputed in loops, tuned without a look at test."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

import fakes
from compress.baselines import DECAYS, SMOOTHINGS, Markov, MarkovChain, popularity, tune_markov
from compress.data.histories import Asked
from compress.data.interactions import Interactions
from compress.evaluation import evaluate, recommend_all

ITEMS = 14


@pytest.fixture
def toy() -> Interactions:
    """Training parts 0 1 2 3 4 and 1 2; each user's last two are held out."""
    return fakes.interactions_of([[0, 1, 2, 3, 4, 9, 10], [1, 2, 11, 12]], ITEMS)


@pytest.fixture
def people() -> Interactions:
    return fakes.interactions(users=40, items=30, shortest=5, longest=16)


def markov_scores(people: Interactions, parameters: Markov, history: NDArray[np.integer]) -> NDArray[np.float64]:
    """The chain in loops: what follows what within the window, smoothed by popularity, latest items decayed."""
    counts = np.zeros((people.catalogue_size, people.catalogue_size))
    for user in range(people.user_count):
        part = people.train(user).tolist()
        for place, item in enumerate(part):
            for later in part[place + 1 : place + 1 + parameters.window]:
                counts[item, later] += 1
    popular = people.popularity() / people.popularity().sum()
    scores = np.zeros(people.catalogue_size)
    for age, item in enumerate(reversed(history[-parameters.items :].tolist())):
        row = counts[item]
        smoothed = (row + parameters.smoothing * popular) / (row.sum() + parameters.smoothing)
        scores += parameters.decay**age * smoothed
    scores[history] = -np.inf
    return scores


def test_followers_within_three_steps_are_counted(toy: Interactions) -> None:
    expected = np.zeros((ITEMS, ITEMS))
    for first, second in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4), (1, 2)]:
        expected[first, second] += 1
    chain = MarkovChain(toy)
    assert chain.counts_II.toarray().tolist() == expected.tolist()
    assert chain.totals_I.tolist() == expected.sum(axis=1).tolist()
    assert chain.popularity_I.tolist() == pytest.approx([1 / 7, 2 / 7, 2 / 7, 1 / 7, 1 / 7] + [0] * 9)


def test_the_answer_to_a_history_worked_out_by_hand(toy: Interactions) -> None:
    # History 0 1, smoothing 7 = popularity counts as they are, decay 1/2:
    # row 1: 2:2 3:1 4:1 of 4, smoothed (2: 4, 3: 2, 4: 2)/11; row 0: 1:1 2:1 3:1 of 3, smoothed (2: 3, 3: 2, 4: 1)/10.
    # Item 2: 4/11 + 3/20; item 3: 2/11 + 2/20; item 4: 2/11 + 1/20; the others 0.
    parameters = Markov(smoothing=7, decay=0.5)
    scores = markov_scores(toy, parameters, np.array([0, 1]))
    assert scores[2:5].tolist() == pytest.approx([4 / 11 + 3 / 20, 2 / 11 + 2 / 20, 2 / 11 + 1 / 20])
    assert MarkovChain(toy).recommend(parameters)(Asked(*2 * [[np.array([0, 1])]]))[0, :3].tolist() == [2, 3, 4]


def test_decay_and_smoothing_change_the_answer_as_they_should() -> None:
    # 0 is followed by 2, 1 by 3; 4 is popular and follows nothing within the window.
    lists = [[0, 2, 9, 10], [1, 3, 11, 12], *[[4, 9, 10]] * 5]
    chain = MarkovChain(fakes.interactions_of(lists, ITEMS), window=1)
    history = [np.array([0, 1])]
    assert chain.recommend(Markov(smoothing=0.1, decay=0.5))(Asked(history, history))[0, :2].tolist() == [3, 2]
    assert chain.recommend(Markov(smoothing=0.1, decay=2.0))(Asked(history, history))[0, :2].tolist() == [2, 3]
    assert chain.recommend(Markov(smoothing=1e3))(Asked(history, history))[0, 0] == 4
    assert chain.recommend(Markov(smoothing=0.1, items=1))(Asked(history, history))[0, 0] == 3


@pytest.mark.parametrize(
    "parameters", [Markov(), Markov(smoothing=2.5, decay=1.0), Markov(window=1, items=5, decay=0.3)]
)
def test_the_chain_recommends_what_the_loops_do(people: Interactions, parameters: Markov) -> None:
    recommend = MarkovChain(people, parameters.window).recommend(parameters)
    top = recommend_all(recommend, people, "test", batch_size=7)
    for user in range(people.user_count):
        scores = markov_scores(people, parameters, people.history("test", user))
        best = np.sort(scores)[::-1][:10]  # by score: equal ones may change places
        np.testing.assert_allclose(scores[top[user]], best, rtol=1e-12)
        assert len(set(top[user].tolist())) == 10


def test_popularity_recommends_the_most_frequent_unseen_items(people: Interactions) -> None:
    counts = people.popularity()
    top = recommend_all(popularity(people), people, "test")
    for user in range(people.user_count):
        history = people.history("test", user)
        unseen = sorted(np.delete(counts, history), reverse=True)
        assert counts[top[user]].tolist() == unseen[:10]
        assert not set(top[user].tolist()) & set(history.tolist())


def test_popularity_is_the_chain_that_trusts_nothing(people: Interactions) -> None:
    counts = people.popularity()
    chain = recommend_all(MarkovChain(people).recommend(Markov(smoothing=1e12)), people, "test")
    popular = recommend_all(popularity(people), people, "test")
    assert counts[chain].tolist() == counts[popular].tolist()


def test_tuning_finds_the_best_of_the_grid(people: Interactions) -> None:
    best, recommend = tune_markov(people)
    chain = MarkovChain(people)
    grid = [Markov(smoothing=smoothing, decay=decay) for smoothing, decay in product(SMOOTHINGS, DECAYS)]
    quality = [evaluate(chain.recommend(each), people, "validation")["ndcg@10"] for each in grid]
    assert evaluate(recommend, people, "validation")["ndcg@10"] == max(quality)
    assert best in grid


def test_changing_every_test_item_changes_nothing_that_was_learnt(people: Interactions) -> None:
    items = people.items.copy()
    for start, end in zip(people.offsets, people.offsets[1:], strict=False):
        items[end - 1] = min(set(range(people.catalogue_size)) - set(items[start:end].tolist()))
    other = Interactions(items, people.timestamps, people.offsets, people.catalogue_size, people.parts)
    assert (other.targets("test") != people.targets("test")).all()

    (ours, recommend), (theirs, recommend_other) = tune_markov(people), tune_markov(other)
    assert ours == theirs
    one, two = MarkovChain(people), MarkovChain(other)
    assert one.counts_II.toarray().tolist() == two.counts_II.toarray().tolist()
    assert one.popularity_I.tolist() == two.popularity_I.tolist()
    histories = [people.history("test", user) for user in range(people.user_count)]
    assert recommend(Asked(histories, histories)).tolist() == recommend_other(Asked(histories, histories)).tolist()
    assert (
        popularity(people)(Asked(histories, histories)).tolist()
        == popularity(other)(Asked(histories, histories)).tolist()
    )


def test_parameters_are_written_as_they_are() -> None:
    assert Markov(smoothing=5, decay=0.3).as_dict() == {"window": 3, "items": 3, "smoothing": 5, "decay": 0.3}
