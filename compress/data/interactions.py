"""Dense ids in order of time, what is held out of them, and who is asked about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from numpy.typing import NDArray

from compress.artifact import Artifact

IntArray = npt.NDArray[np.integer[Any]]

Split = Literal["validation", "test"]

TRAIN, VALIDATION, TEST = 0, 1, 2
"""Parts of a user's interactions, in the order in which they are stored."""

Candidates = Mapping[Split, Sequence[IntArray]]
"""Items of each user, (users) lists, by split."""

PARTS: dict[Split, int] = {"validation": VALIDATION, "test": TEST}

INTERACTIONS, ITEMS, USERS, CANDIDATES = "interactions.parquet", "items.parquet", "users.parquet", "candidates.parquet"


@dataclass(frozen=True, eq=False)
class Interactions:
    """Everyone's items in order of time, end to end."""

    items: IntArray
    """Dense item ids of user 0, then of user 1, ...; int32."""
    timestamps: IntArray
    """When each was used; never falling within a user's part."""
    offsets: IntArray
    """Where each user begins, and the end; (users + 1)."""
    catalogue_size: int
    parts: IntArray
    """TRAIN, then at most one VALIDATION and at most one TEST of each user."""
    candidates: Candidates | None = None
    """What each user may be recommended when quality is judged; None: the whole catalogue."""
    retrieved: Sequence[IntArray] | None = None
    """Of each user, what a first stage found when asked about the last training item; none of it is in training."""

    @classmethod
    def from_table(cls, table: pl.DataFrame, catalogue_size: int, candidates: Candidates | None = None) -> Interactions:
        """From columns user, item, timestamp, part with dense ids, sorted by user, part and time."""
        offsets = np.concatenate([[0], np.cumsum(np.bincount(table["user"].to_numpy()))])
        items, timestamps, parts = (table[column].to_numpy() for column in ("item", "timestamp", "part"))
        return cls(items, timestamps, offsets, catalogue_size, parts, candidates)

    @classmethod
    def load(cls, folder: Path) -> Interactions:
        """From the folder of a prepare stage."""
        catalogue_size = pl.scan_parquet(folder / ITEMS, glob=False).select(pl.len()).collect().item()
        table = pl.read_parquet(folder / INTERACTIONS, glob=False)
        interactions = cls.from_table(table, catalogue_size)
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
            borders = np.searchsorted(own["user"].to_numpy(), np.arange(1, self.user_count))
            return np.split(own["item"].to_numpy(), borders)

        retrieved = of_part(TRAIN) if "part" in lists.columns else None
        return replace(self, candidates={split: of_part(part) for split, part in PARTS.items()}, retrieved=retrieved)

    @property
    def user_count(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def train_ends(self) -> IntArray:
        """Where each user's training part ends; (users)."""
        trained = np.concatenate([[0], np.cumsum(self.parts == TRAIN)])
        return self.offsets[:-1] + np.diff(trained[self.offsets])

    @cached_property
    def _targets(self) -> dict[Split, IntArray]:
        """Where the target of each split stands; (users), -1 for a user without one."""
        found: dict[Split, IntArray] = {}
        for split, part in PARTS.items():
            places = np.flatnonzero(self.parts == part)
            found[split] = np.full(self.user_count, -1)
            found[split][np.searchsorted(self.offsets, places, side="right") - 1] = places
        return found

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
        """Those with a target in the split."""
        return np.flatnonzero(self._targets[split] >= 0)

    def history(self, split: Split, user: int) -> IntArray:
        """What is known when the target of the split is guessed; test knows the validation target.

        Raises: ValueError if the user has none.
        """
        place = self._targets[split][user]
        if place < 0:
            raise ValueError(f"user {user} has no {split} target")
        return self.items[self.offsets[user] : place]

    def excluded(self, split: Split, user: int) -> IntArray:
        """What is not recommended to the user when quality is judged: the history, and all that is no candidate."""
        history = self.history(split, user)
        if self.candidates is None:
            return history
        barred = np.ones(self.catalogue_size, dtype=bool)
        barred[self.candidates[split][user]] = False
        barred[history] = True
        return np.flatnonzero(barred)

    def within_reach(self, split: Split) -> NDArray[np.bool_]:
        """Which of `users(split)` have their target among their candidates: the others are missed by any ranking."""
        if self.candidates is None:
            return np.ones(len(self.users(split)), dtype=bool)
        lists = self.candidates[split]
        pairs = zip(self.users(split), self.targets(split), strict=True)
        return np.array([target in lists[user] for user, target in pairs], dtype=bool)

    def targets(self, split: Split, users: IntArray | None = None) -> IntArray:
        """Of the users, by default `users(split)`, in that order."""
        return self.items[self._targets[split][self.users(split) if users is None else users]]

    def popularity(self) -> IntArray:
        """How often each item occurs in the training parts; (catalogue_size)."""
        return np.bincount(self.items[self.parts == TRAIN], minlength=self.catalogue_size)


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
