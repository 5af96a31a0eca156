"""Histories as arrays: what a request looks like to a model, in training, evaluation and serving alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Histories = Sequence[NDArray[np.integer[Any]]]
"""Item ids of some users, oldest first."""

Recommend = Callable[[Histories, Histories], NDArray[np.int64]]
"""Histories, excluded items of each -> the K best of the others, best first: (users, K); K is 10 unless said."""

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
