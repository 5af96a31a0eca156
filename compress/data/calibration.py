"""Requests that a model is calibrated with: training histories of many lengths, of popular and of rare items.

And those of validation users that say which maps are better left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compress.data.histories import Asked
from compress.data.interactions import IntArray, Interactions
from compress.errors import DataError

PARTS = 4
"""Of users by length, and of each such part by popularity."""

CALIBRATED, CANDIDATES = 2, 16
"""Of a request, where candidates are ranked and not the catalogue: a thousand histories make texts enough to see what
inputs are like; what rounding does to a ranking takes lists."""


class CalibrationRequests(Sequence[Asked]):
    """One request each, made when it is asked for; what is held out for validation or test is in none.

    A history is all that a user has in training, as served before the next item is known; where a first stage rehearsed
    on training items, it is what came before one of those, with what the first stage found. Every sixteenth request in
    a row is of another mixture of length and popularity, so that the first ones are a sample too.

    Args:
        interactions: candidates that they are judged on are not looked at; that there are any says what requests are.
        count: requests at most.
        seed: of the sample.
    Raises: DataError if nothing is known of anybody in training.

    """

    def __init__(self, interactions: Interactions, count: int, seed: int) -> None:
        self.interactions = interactions
        self.seed = seed
        rehearsals = interactions.rehearsals
        users_R = np.arange(interactions.user_count) if rehearsals is None else rehearsals.users
        lengths_R = interactions.train_ends - interactions.offsets[:-1] if rehearsals is None else rehearsals.places
        rows = np.arange(len(users_R)) if interactions.attributes else np.flatnonzero(lengths_R)
        if not len(rows):
            raise DataError("data: no user has an item in training that calibration could read")
        popularity_R = _mean_popularity(interactions, users_R[rows], lengths_R[rows])
        self.rows = rows[_stratified(lengths_R[rows], popularity_R, count, seed)]
        self.users, self.lengths = users_R[self.rows], lengths_R[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Asked:  # type: ignore[override]  # slices are not asked for
        if not 0 <= place < len(self):
            raise IndexError(place)
        interactions, user = self.interactions, int(self.users[place])
        history = interactions.train(user)[: self.lengths[place]]
        rehearsals = interactions.rehearsals
        found = None if rehearsals is None else rehearsals.found[self.rows[place]]
        return Asked(
            [history],
            [self._excluded(place, history, None if found is None else np.array(list(found)))],
            interactions.attributes and [interactions.attributes[user]],
            None if found is None else [found],
        )

    def _excluded(self, place: int, history: IntArray, found: IntArray | None) -> IntArray:
        """The history, or all but a few candidates: of a first stage in training, else any."""
        interactions = self.interactions
        if interactions.candidates is None:
            return history
        if found is None and interactions.retrieved is not None:
            found = interactions.retrieved[self.users[place]]
        pool = np.arange(interactions.catalogue_size) if found is None or not len(found) else found
        return _all_but(CALIBRATED, pool, interactions.catalogue_size, np.random.default_rng((self.seed, place)))


def validation_requests(interactions: Interactions, count: int, seed: int) -> list[Asked]:
    """What validation users are asked about, one each, of a sample of at most `count`; of candidates a few, as above.

    Choices are made on them: scales are calibrated on training histories alone.
    """
    random = np.random.default_rng((seed, count))
    found = []
    for user in np.sort(random.permutation(interactions.users("validation"))[:count]):
        asked = interactions.asked("validation", np.array([user]))
        if interactions.candidates is not None:
            everything = np.arange(interactions.catalogue_size)
            left = np.setdiff1d(everything, asked.excluded[0])
            asked = replace(asked, excluded=[_all_but(CANDIDATES, left, len(everything), random)])
        found.append(asked)
    return found


def _all_but(few: int, pool: IntArray, catalogue_size: int, random: np.random.Generator) -> IntArray:
    barred = np.ones(catalogue_size, dtype=bool)
    barred[random.permutation(pool)[:few]] = False
    return np.flatnonzero(barred)


def _mean_popularity(interactions: Interactions, users_R: IntArray, lengths_R: IntArray) -> NDArray[np.float64]:
    """Of each history's items, on a logarithmic scale: (R)."""
    sums = np.concatenate([[0.0], np.cumsum(np.log1p(interactions.popularity())[interactions.items])])
    starts_R = interactions.offsets[users_R]
    mean_R: NDArray[np.float64] = (sums[starts_R + lengths_R] - sums[starts_R]) / np.maximum(1, lengths_R)
    return mean_R


def _stratified(lengths_R: IntArray, popularity_R: NDArray[np.float64], count: int, seed: int) -> IntArray:
    """Places of at most `count` histories, the strata in turn."""
    random = np.random.default_rng((seed, len(lengths_R)))
    strata = [
        random.permutation(stratum)
        for part in np.array_split(np.argsort(lengths_R, kind="stable"), PARTS)
        for stratum in np.array_split(part[np.argsort(popularity_R[part], kind="stable")], PARTS)
    ]
    turns = np.concatenate([np.arange(len(stratum)) for stratum in strata])
    chosen: IntArray = np.concatenate(strata)[np.argsort(turns, kind="stable")][:count]
    return chosen
