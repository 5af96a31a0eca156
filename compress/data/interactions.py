"""Dense ids in order of time, what is held out of them, and who is asked about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from numpy.typing import NDArray

from compress.artifact import Artifact
from compress.data.histories import Asked, Attributes, FirstStage

IntArray = npt.NDArray[np.integer[Any]]

Split = Literal["validation", "test"]

TRAIN, VALIDATION, TEST = 0, 1, 2
"""Parts of a user's interactions, in the order in which they are stored."""

Candidates = Mapping[Split, Sequence[IntArray]]
"""Items of each user, (users) lists, by split."""

PARTS: dict[Split, int] = {"validation": VALIDATION, "test": TEST}

NOBODY = -1
"""Stands in a list of items where there is none."""

INTERACTIONS, ITEMS, USERS, CANDIDATES = "interactions.parquet", "items.parquet", "users.parquet", "candidates.parquet"

REHEARSALS = "rehearsals.parquet"

JUDGED = 100
"""Items of a user that quality is judged on, at most."""

ATTRIBUTES = "attributes.parquet"
"""What is known of each user besides the history: user and columns of strings."""


@dataclass(frozen=True, eq=False)
class Labels:
    """What users said yes and no to, where the data says both: then recommenders predict it."""

    users: IntArray
    """Of each interaction in training; (N), as the next three."""
    places: IntArray
    """How many items the user had said yes to before."""
    items: IntArray
    wanted: IntArray
    """1: yes, 0: no."""
    judged: Mapping[Split, Sequence[IntArray]]
    """Labels of each user's candidates, in their order."""


@dataclass(frozen=True, eq=False)
class Rehearsals:
    """What a first stage that had not seen some interactions in training found when asked about them; R of them."""

    users: IntArray
    places: IntArray
    """In the user's training part; what comes before is the history. (R), as the users."""
    found: Sequence[FirstStage]
    """The item in question among others, none of which the user has in training."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """Everyone's items in order of time, end to end."""

    items: IntArray
    """Dense item ids of user 0, then of user 1, ...; int32. Where there are labels, those with a yes alone."""
    timestamps: IntArray
    """When each was used; never falling within a user's part."""
    offsets: IntArray
    """Where each user begins, and the end; (users + 1)."""
    catalogue_size: int
    parts: IntArray
    """TRAIN, then VALIDATION and TEST of each user: at most one each unless there are labels."""
    candidates: Candidates | None = None
    """What each user may be recommended when quality is judged; None: the whole catalogue."""
    retrieved: Sequence[IntArray] | None = None
    """Of each user, what a first stage found when asked about the last training item; none of it is in training."""
    labels: Labels | None = None
    attributes: Sequence[Attributes] | None = None
    """Of each user."""
    first_stage: Mapping[Split, Sequence[FirstStage]] | None = None
    """Of each user, where a retrieve stage made the candidates."""
    rehearsals: Rehearsals | None = None

    @classmethod
    def from_table(cls, table: pl.DataFrame, catalogue_size: int, candidates: Candidates | None = None) -> Interactions:
        """From columns user, item, timestamp, part and maybe label with dense ids, sorted by user, part and time."""
        count = table.select(pl.col("user").max()).item() + 1
        used = table.filter(pl.col("label") == 1) if "label" in table.columns else table
        offsets = np.concatenate([[0], np.cumsum(np.bincount(used["user"].to_numpy(), minlength=count))])
        items, timestamps, parts = (used[column].to_numpy() for column in ("item", "timestamp", "part"))
        interactions = cls(items, timestamps, offsets, catalogue_size, parts, candidates)
        return interactions._labelled(table) if "label" in table.columns else interactions

    def _labelled(self, table: pl.DataFrame) -> Interactions:
        """Judged on what each user said yes or no to in a part."""
        train = table.filter(pl.col("part") == TRAIN)
        users, moments = (train[column].to_numpy() for column in ("user", "timestamp"))
        places = np.zeros(len(users), dtype=np.int64)
        for user, (start, end) in enumerate(pairwise(np.searchsorted(users, np.arange(self.user_count + 1)))):
            known = self.timestamps[self.offsets[user] : self.train_ends[user]]
            places[start:end] = np.searchsorted(known, moments[start:end])  # of one moment, none came before another
        parts = {split: table.filter(pl.col("part") == part) for split, part in PARTS.items()}
        judged = {split: self._of_each_user(own, "label") for split, own in parts.items()}
        asked = {split: self._of_each_user(own, "item") for split, own in parts.items()}
        labels = Labels(users, places, train["item"].to_numpy(), train["label"].to_numpy(), judged)
        return replace(self, labels=labels, candidates=asked)

    def _of_each_user(self, table: pl.DataFrame, column: str) -> list[IntArray]:
        """A column of a table sorted by user, cut into a list for each."""
        borders = np.searchsorted(table["user"].to_numpy(), np.arange(1, self.user_count))
        return np.split(table[column].to_numpy(), borders)

    @classmethod
    def load(cls, folder: Path) -> Interactions:
        """From the folder of a prepare stage."""
        catalogue_size = pl.scan_parquet(folder / ITEMS, glob=False).select(pl.len()).collect().item()
        table = pl.read_parquet(folder / INTERACTIONS, glob=False)
        interactions = cls.from_table(table, catalogue_size)
        if (folder / ATTRIBUTES).exists():
            known = pl.read_parquet(folder / ATTRIBUTES, glob=False).drop("user")
            interactions = replace(interactions, attributes=known.to_dicts())
        return interactions.judged_on(folder) if (folder / CANDIDATES).exists() else interactions

    @classmethod
    def of(cls, inputs: Mapping[str, Artifact]) -> Interactions:
        """Of a stage's inputs, judged on the lists of a retrieve stage if there is one among them."""
        interactions = cls.load(inputs["data"].folder)
        retrieved = [source for source in inputs.values() if source.manifest.kind == "retrieve"]
        return interactions.judged_on(retrieved[0].folder) if retrieved else interactions

    def judged_on(self, folder: Path) -> Interactions:
        """The same with the candidates in a folder: user, item, and part where each part has lists of its own.

        A user's items stand together, in any order.
        """
        lists = pl.read_parquet(folder / CANDIDATES, glob=False)

        def of_part(part: int) -> Sequence[IntArray]:
            own = lists.filter(pl.col("part") == part) if "part" in lists.columns else lists
            return self._of_each_user(own, "item")

        candidates = {split: of_part(part) for split, part in PARTS.items()}
        retrieved = of_part(TRAIN) if "part" in lists.columns else None
        if "score" not in lists.columns:
            return replace(self, candidates=candidates, retrieved=retrieved)
        scored = {part: self._of_each_user(lists.filter(pl.col("part") == part), "score") for part in PARTS.values()}
        first_stage = {split: _found(candidates[split], scored[part]) for split, part in PARTS.items()}
        rehearsals = _rehearsals(folder / REHEARSALS) if (folder / REHEARSALS).exists() else None
        return replace(
            self,
            candidates=candidates,
            retrieved=retrieved,
            first_stage=first_stage,
            rehearsals=rehearsals,
        )

    @property
    def user_count(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def train_ends(self) -> IntArray:
        """Where each user's training part ends; (users)."""
        return self._end_before(VALIDATION)

    def _end_before(self, part: int) -> IntArray:
        """Where all that comes before a part ends; (users)."""
        earlier = np.concatenate([[0], np.cumsum(self.parts < part)])
        return self.offsets[:-1] + np.diff(earlier[self.offsets])

    @cached_property
    def _ends(self) -> dict[Split, IntArray]:
        """Where what is known ends when a split is asked about, and its targets begin; (users)."""
        return {split: self._end_before(part) for split, part in PARTS.items()}

    @cached_property
    def _judged(self) -> dict[Split, IntArray]:
        """How many targets each user has in a split, or candidates if they have labels; (users)."""
        if self.labels:
            return {split: np.array([len(each) for each in lists]) for split, lists in self.labels.judged.items()}
        ends = [*self._ends.values(), self.offsets[1:]]
        return {split: after - before for split, (before, after) in zip(PARTS, pairwise(ends), strict=True)}

    def without_latest(self, count: int) -> Interactions:
        """The latest `count` training items of each user held out as well, all but the first at most."""
        ends = np.repeat(self.train_ends, np.diff(self.offsets))
        places = np.arange(len(self.items))
        late = (places >= ends - count) & (places > np.repeat(self.offsets[:-1], np.diff(self.offsets)))
        return replace(self, parts=np.where(late, np.maximum(self.parts, VALIDATION), self.parts))

    @cached_property
    def before_rehearsals(self) -> Interactions:
        """Without what a first stage rehearses: who learns from that must read nothing that knows the answers."""
        if self.rehearsals is None:
            return self
        lengths = self.train_ends - self.offsets[:-1]
        return self.without_latest(int((lengths[self.rehearsals.users] - self.rehearsals.places).max(initial=0)))

    def of_users(self, users: IntArray) -> Interactions:
        """These users alone, numbered from 0 in this order."""
        places = [np.arange(self.offsets[user], self.offsets[user + 1]) for user in users]
        together = np.concatenate(places)
        offsets = np.cumsum([0, *map(len, places)])
        candidates = self._candidates(lambda lists: [lists[user] for user in users])
        return Interactions(
            self.items[together],
            self.timestamps[together],
            offsets,
            self.catalogue_size,
            self.parts[together],
            candidates,
        )

    def renumbered(self, numbers: IntArray, catalogue_size: int) -> Interactions:
        """The same with other item ids: (catalogue_size) -> the new one of each."""
        candidates = self._candidates(lambda lists: [numbers[items] for items in lists])
        retrieved = self.retrieved and [numbers[items] for items in self.retrieved]
        items = numbers[self.items]
        return replace(self, items=items, catalogue_size=catalogue_size, candidates=candidates, retrieved=retrieved)

    def _candidates(self, change: Callable[[Sequence[IntArray]], Sequence[IntArray]]) -> Candidates | None:
        return self.candidates and {split: change(lists) for split, lists in self.candidates.items()}

    def train(self, user: int) -> IntArray:
        """All that is not held out."""
        return self.items[self.offsets[user] : self.train_ends[user]]

    def retold(self, user: int, random: np.random.Generator) -> IntArray:
        """The training part with items of one moment in a fresh order: which came first, nobody knows."""
        train = self.train(user)
        moments = self.timestamps[self.offsets[user] :][: len(train)]
        return train[np.lexsort((random.random(len(train)), moments))]

    def users(self, split: Split) -> IntArray:
        """Those with a target in the split; where there are labels, with any."""
        return np.flatnonzero(self._judged[split])

    def history(self, split: Split, user: int) -> IntArray:
        """What is known when the target of the split is guessed; test knows the validation target.

        Raises: ValueError if the user has none.
        """
        if not self._judged[split][user]:
            raise ValueError(f"user {user} has no {split} target")
        return self.items[self.offsets[user] : self._ends[split][user]]

    def excluded(self, split: Split, user: int) -> IntArray:
        """What is not recommended to the user when quality is judged: the history, and all that is no candidate."""
        history = self.history(split, user)
        if self.candidates is None:
            return history
        barred = np.ones(self.catalogue_size, dtype=bool)
        barred[self.candidates[split][user]] = False
        barred[history] = True
        return np.flatnonzero(barred)

    def history_lengths(self, split: Split, users: IntArray) -> IntArray:
        """Items that are known of each of these users when asked."""
        lengths: IntArray = self._ends[split][users] - self.offsets[users]
        return lengths

    def asked(self, split: Split, users: IntArray) -> Asked:
        """What a recommender is asked about these users when its quality is judged."""
        return Asked(
            [self.history(split, user) for user in users],
            [self.excluded(split, user) for user in users],
            self.attributes and [self.attributes[user] for user in users],
            [self.first_stage[split][user] for user in users] if self.first_stage else None,
        )

    @property
    def judged_items(self) -> int:
        """How many of the best items quality looks at: 10, or whole lists of candidates of up to JUDGED."""
        longest = max(map(self.longest_list, PARTS))
        return longest if 10 < longest <= JUDGED else 10

    def longest_list(self, split: Split) -> int:
        """Candidates of a user, at most."""
        return max(map(len, self.candidates[split])) if self.candidates else self.catalogue_size

    def within_reach(self, split: Split) -> NDArray[np.bool_]:
        """Which of `users(split)` have their target among their candidates: the others are missed by any ranking."""
        if self.candidates is None or self.labels:
            return np.ones(len(self.users(split)), dtype=bool)
        lists = self.candidates[split]
        pairs = zip(self.users(split), self.targets(split), strict=True)
        return np.array([target in lists[user] for user, target in pairs], dtype=bool)

    def targets(self, split: Split, users: IntArray | None = None) -> IntArray:
        """Of the users, by default `users(split)`, in that order; where there are labels, all with a yes: (users, R).

        Rows are filled up with NOBODY.
        """
        asked = self.users(split) if users is None else users
        if self.labels is None:
            return self.items[self._ends[split][asked]]
        assert self.candidates is not None
        lists, judged = self.candidates[split], self.labels.judged[split]
        wanted = [lists[user][judged[user] == 1] for user in asked]
        found = np.full((len(asked), max([1, *map(len, wanted)])), NOBODY, dtype=np.int64)
        for row, items in zip(found, wanted, strict=True):
            row[: len(items)] = items
        return found

    def popularity(self) -> IntArray:
        """How often each item occurs in the training parts; (catalogue_size)."""
        return np.bincount(self.items[self.parts == TRAIN], minlength=self.catalogue_size)


def _found(items: Sequence[IntArray], scores: Sequence[NDArray[Any]]) -> list[FirstStage]:
    pairs = zip(items, scores, strict=True)
    return [dict(zip(own.tolist(), said.tolist(), strict=True)) for own, said in pairs]


def _rehearsals(path: Path) -> Rehearsals:
    """From columns user, place, item and score; what was found at one place stands together."""
    table = pl.read_parquet(path, glob=False)
    keys = table.select("user", "place").to_numpy()
    begins = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])[: len(keys)]
    items, scores = (np.split(table[column].to_numpy(), begins[1:]) for column in ("item", "score"))
    users, places = keys[begins].T
    return Rehearsals(users, places, _found(items, scores) if len(keys) else [])


def leave_one_out(offsets: IntArray, asked: IntArray | None = None) -> IntArray:
    """Parts that hold out the last item of each user for test and the one before it for validation.

    Args:
        offsets: where each user begins, and the end; at least two interactions each.
        asked: users that anything is held out of; None: all.

    """
    parts = np.full(offsets[-1], TRAIN, dtype=np.uint8)
    ends = offsets[1:] if asked is None else offsets[1:][asked]
    parts[ends - 1], parts[ends - 2] = TEST, VALIDATION
    return parts
