"""Histories as arrays: what a request looks like to a model, in training, evaluation and serving alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Histories = Sequence[NDArray[np.integer[Any]]]
"""Item ids of some users, oldest first."""

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
