"""Runtimes: one call, `history, exclude -> items, scores`, whatever executes it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]


class Runtime(Protocol):
    """Something that answers a batch of requests.

    B: requests, L: history items, E: excluded items, K: recommended items.
    """

    name: str
    """As in a report's `runtime`: torch-eager, onnxruntime-cpu, ..."""
    threads: int

    def __call__(self, history_BL: Ids, exclude_BE: Ids) -> tuple[Ids, Scores]:
        """Items and scores, (B, K) each, best first.

        Args:
            history_BL: dense item ids, oldest first, right-aligned, padded on the left with the pad id.
            exclude_BE: dense item ids that must not be recommended, padded with the pad id.

        """
