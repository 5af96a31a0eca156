"""What a model is calibrated with: training histories alone, of every length and popularity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fakes
from compress.data.calibration import CALIBRATED, CANDIDATES, CalibrationRequests, validation_requests
from compress.data.interactions import Interactions, Rehearsals
from compress.errors import DataError


@pytest.fixture
def people() -> Interactions:
    return fakes.interactions(users=200, items=60, longest=40)


def test_histories_are_the_training_parts(people: Interactions) -> None:
    requests = CalibrationRequests(people, 1000, seed=0)
    assert len(requests) == 200
    told = sorted(tuple(asked.histories[0]) for asked in requests)
    assert told == sorted(tuple(people.train(user)) for user in range(200))


def test_what_is_held_out_changes_nothing(people: Interactions) -> None:
    held_out = people.parts > 0
    other = replace(people, items=np.where(held_out, (people.items + 7) % 60, people.items))
    for ours, theirs in zip(CalibrationRequests(people, 50, 0), CalibrationRequests(other, 50, 0), strict=True):
        assert ours.histories[0].tolist() == theirs.histories[0].tolist()
        assert ours.excluded[0].tolist() == theirs.excluded[0].tolist()


def test_the_first_sixteen_are_of_every_length_and_popularity(people: Interactions) -> None:
    requests = CalibrationRequests(people, 16, seed=0)
    lengths = [len(asked.histories[0]) for asked in requests]
    everybody = people.train_ends - people.offsets[:-1]
    quarters = np.quantile(everybody, [0.25, 0.5, 0.75])
    assert np.bincount(np.searchsorted(quarters, lengths), minlength=4) == pytest.approx([4] * 4, abs=1)
    popularity = np.log1p(people.popularity())
    means = np.array([popularity[people.train(user)].mean() for user in range(200)])
    asked_means = [popularity[asked.histories[0]].mean() for asked in requests]
    assert min(asked_means) < np.quantile(means, 0.2) < np.quantile(means, 0.8) < max(asked_means)


def test_choices_are_made_on_validation_users_and_few_of_their_candidates(people: Interactions) -> None:
    lists = [np.arange(user % 20, 60) for user in range(200)]
    judged = replace(people, candidates={"validation": lists, "test": [np.arange(5)] * 200})
    requests = validation_requests(judged, 50, 0)
    told = [tuple(judged.history("validation", user)) for user in range(200)]
    assert len(requests) == 50
    for asked in requests:
        user = told.index(tuple(asked.histories[0]))
        left = np.setdiff1d(np.arange(60), asked.excluded[0])
        unknown = set(lists[user]) - set(told[user])
        assert len(left) == min(CANDIDATES, len(unknown))
        assert set(left) <= unknown
    whole = validation_requests(people, 500, 0)
    assert sorted(tuple(asked.histories[0]) for asked in whole) == sorted(told)
    assert all(asked.excluded[0].tolist() == asked.histories[0].tolist() for asked in whole)


def test_a_seed_is_a_sample_and_another_seed_another(people: Interactions) -> None:
    def drawn(seed: int) -> list[list[int]]:
        return [asked.histories[0].tolist() for asked in CalibrationRequests(people, 20, seed)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_a_catalogue_is_ranked_without_the_history(people: Interactions) -> None:
    for asked in CalibrationRequests(people, 20, 0):
        assert asked.excluded[0].tolist() == asked.histories[0].tolist()


def test_candidates_are_a_few_of_those_retrieved_in_training(people: Interactions) -> None:
    judged = {"validation": [np.array([0])] * 200, "test": [np.array([1])] * 200}
    retrieved = [np.arange(10 + user % 3, 40) for user in range(200)]
    for own in (None, retrieved):
        requests = CalibrationRequests(replace(people, candidates=judged, retrieved=own), 20, 0)
        for place, asked in enumerate(requests):
            candidates = np.setdiff1d(np.arange(60), asked.excluded[0])
            assert len(candidates) == CALIBRATED
            if own:
                assert np.isin(candidates, own[requests.users[place]]).all()


def test_a_rehearsal_is_asked_with_what_came_before_and_what_was_found(people: Interactions) -> None:
    users, places = np.array([3, 3, 5]), np.array([1, 0, 1])
    found = [{7: 0.5, 9: -1.0}, {8: 0.1}, {7: 2.0}]
    known = replace(people, rehearsals=Rehearsals(users, places, found), candidates={"validation": [], "test": []})
    requests = CalibrationRequests(known, 10, 0)
    assert sorted(requests.users) == [3, 5], "with nothing before it, nothing is known"
    for asked, user in zip(requests, requests.users, strict=True):
        assert asked.histories[0].tolist() == people.train(user)[:1].tolist()
        assert asked.first_stage is not None
        assert set(asked.first_stage[0]) == set(np.setdiff1d(np.arange(60), asked.excluded[0]))


def test_nobody_known_is_one_line() -> None:
    people = fakes.interactions_of([[1, 2], [3, 4]], 10)  # both items of each are held out
    with pytest.raises(DataError, match="no user has an item in training"):
        CalibrationRequests(people, 10, 0)
    known = replace(people, attributes=[{"age": "30"}, {"age": "40"}])
    assert [asked.attributes for asked in CalibrationRequests(known, 10, 0)] == [
        [known.attributes[user]] for user in CalibrationRequests(known, 10, 0).users
    ]
