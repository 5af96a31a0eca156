"""Histories as arrays: what a request looks like to a model, in training, evaluation and serving alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Histories = Sequence[NDArray[np.integer[Any]]]
"""Item ids of some users, oldest first."""

Attributes = Mapping[str, str]
"""What is known of a user besides the history, by column: an age, a query."""

FirstStage = Mapping[int, float]
"""What a user's first stage found, and how it scored that, on a scale of its own."""


@dataclass(frozen=True)
class Asked:
    """What a recommender is asked at once: some users, each with a history, and what it must not answer."""

    histories: Histories
    excluded: Histories
    """Items of each that are no answer, in any order; often the history itself."""
    attributes: Sequence[Attributes] | None = None
    """None: nothing is known, as if every column were empty."""
    first_stage: Sequence[FirstStage] | None = None

    def __len__(self) -> int:
        return len(self.histories)

    def of(self, rows: Sequence[int]) -> Asked:
        """These users alone, in this order."""
        return Asked(
            [self.histories[row] for row in rows],
            [self.excluded[row] for row in rows],
            self.attributes and [self.attributes[row] for row in rows],
            self.first_stage and [self.first_stage[row] for row in rows],
        )

    def attributes_of(self, row: int) -> Attributes:
        return self.attributes[row] if self.attributes else {}


Recommend = Callable[[Asked], NDArray[np.int64]]
"""The K best items of each user that are not excluded, best first: (users, K); K is 10 unless said."""

MASKED = -1e9
"""The score of what must not be recommended or attended to. Finite: -inf makes NaN of a row that is all padding."""


def left_padded(histories: Histories, limit: int, pad_id: int) -> NDArray[np.int64]:
    """The latest `limit` items of each history, right-aligned: (histories, longest of them and at least 1)."""
    kept = [history[-limit:] for history in histories]
    ids = np.full((len(kept), max([1, *map(len, kept)])), pad_id, dtype=np.int64)
    for row, history in zip(ids, kept, strict=True):
        if len(history):
            row[-len(history) :] = history
    return ids


def best_items(scores_UI: NDArray[np.float64], excluded: Histories, k: int = 10) -> NDArray[np.int64]:
    """The k best items of each row that are not excluded, best first."""
    for row, items in zip(scores_UI, excluded, strict=True):
        row[items] = -np.inf
    k = min(k, scores_UI.shape[1])
    top = np.argpartition(-scores_UI, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores_UI, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top, order, axis=1)
