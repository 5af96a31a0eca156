"""What each row recommends to test users, beside what the first one does.

U: users, K: length of the recommended list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.gpu.loaded import Loaded, reason
from compress.data.interactions import Interactions
from compress.evaluation import recommend_all
from compress.metrics import compare, estimate, overlap, ranking_metrics

BATCH = 64
"""Users that are asked about at once, unless the largest batch is smaller."""

Json = dict[str, Any]


def judged(rows: Sequence[Loaded], interactions: Interactions, largest_batch: int) -> tuple[list[Loaded], list[Json]]:
    """Adds NDCG@10, its paired ratio to the first row's and the shared part of the top 10 to the facts of each row.

    Returns: the rows that answered everyone, and why the others did not.
    """
    targets = interactions.targets("test")
    kept: list[Loaded] = []
    failed: list[Json] = []
    lists: list[NDArray[np.int64]] = []
    for loaded in tqdm(rows, desc="quality", disable=None):
        try:
            lists.append(recommend_all(loaded.recommend, interactions, "test", min(BATCH, largest_batch)))
            kept.append(loaded)
        except Exception as error:  # as at its start: a shape may need what the first request did not
            failed.append({"row": loaded.row.name, "why": reason(error)})
    scores = [ranking_metrics(top_UK, targets)["ndcg@10"] for top_UK in lists]
    for loaded, top_UK, score_U in zip(kept, lists, scores, strict=True):
        mean = estimate(score_U)
        loaded.facts["ndcg@10"] = {"mean": mean.mean, "ci95": [mean.low, mean.high]}
        loaded.facts["vs_reference"] = {
            "ndcg@10": _ratio(score_U, scores[0]),
            "overlap@10": float(overlap(top_UK[:, :10], lists[0][:, :10]).mean()),
        }
    return kept, failed


def _ratio(ours_U: NDArray[np.float64], theirs_U: NDArray[np.float64]) -> Json | None:
    """None if the reference hits nothing."""
    if not np.nan_to_num(theirs_U).any():
        return None
    ratio = compare(ours_U, theirs_U).ratio
    return {"ratio": ratio.mean, "ci95": [ratio.low, ratio.high]}
