"""What an average hides: quality by groups of users, and how much of the catalogue is recommended.

U: users, I: items of the catalogue, K: length of the recommended list, S: seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from compress.metrics import Floats, Ids, compare

Json = dict[str, Any]

COLD = 0.1
"""Share of the users, those with the shortest histories, who are called cold."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Users that something sets apart."""

    name: str
    by: str
    """What sets them apart: history length, target popularity or cold users."""
    users_U: NDArray[np.bool_]


def slice_users(lengths_U: Ids, seen_U: Ids) -> list[Slice]:
    """Terciles of both, and the cold users; equal users stay together, so that a slice may be missing or larger.

    Args:
        lengths_U: items in each user's test history.
        seen_U: how often the training part has each user's test target.

    """
    cold_U = lengths_U <= np.quantile(lengths_U, COLD, method="lower")
    return [
        *_terciles("history length", "history {}", lengths_U),
        *_terciles("target popularity", "target seen {} times", seen_U),
        Slice(f"cold users, history {_span(lengths_U[cold_U])}", "cold users", cold_U),
    ]


def _terciles(by: str, name: str, values_U: Ids) -> Iterator[Slice]:
    groups_U = np.searchsorted(np.quantile(values_U, (1 / 3, 2 / 3), method="lower"), values_U)
    for group in np.unique(groups_U):
        users_U = groups_U == group
        yield Slice(name.format(_span(values_U[users_U])), by, users_U)


def _span(values: Ids) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low}-{high}"


def describe_slices(slices: Sequence[Slice], ndcg_SU: Mapping[str, Floats], teacher: str) -> dict[str, list[Json]]:
    """The rows of each variant: its NDCG@10 in every slice, and its ratio to the teacher's, paired by user.

    Users without a value, who wanted nothing, are in no slice.

    Args:
        ndcg_SU: variant -> a value of each seed and user.

    """
    rows: dict[str, list[Json]] = {name: [] for name in ndcg_SU}
    judged_U = ~np.isnan(ndcg_SU[teacher]).any(axis=0)
    for part in slices:  # outside, because all variants share a slice's resamples
        users_U = part.users_U & judged_U
        if not users_U.any():
            continue
        theirs = ndcg_SU[teacher][:, users_U]
        for name, values in ndcg_SU.items():
            ours = values[:, users_U]
            rows[name].append(
                {
                    "name": part.name,
                    "by": part.by,
                    "users": int(users_U.sum()),
                    "ndcg@10": float(ours.mean()),
                    "vs_teacher": _ratio(ours, theirs),
                }
            )
    return rows


def _ratio(ours_SU: Floats, theirs_SU: Floats) -> Json | None:
    """Null where the teacher hits nothing and no ratio can be formed."""
    if not theirs_SU.any():
        return None
    ratio = compare(ours_SU, theirs_SU).ratio
    return {"ratio": ratio.mean, "ci95": [ratio.low, ratio.high]}


def popularity_percentiles(popularity_I: Ids) -> Floats:
    """Where each item stands among all, 0 (least popular) to 1; equally popular items share their mean."""
    percentiles: Floats = (rankdata(popularity_I) - 1) / max(1, len(popularity_I) - 1)
    return percentiles


def describe_catalogue(top_UK: Sequence[Ids], popularity_I: Ids) -> dict[str, float]:
    """Coverage and mean popularity percentile of what is recommended; the mean of the seeds.

    Args:
        top_UK: of each seed, best first; ten of them count.
        popularity_I: how often the training part has each item.

    """
    percentiles_I = popularity_percentiles(popularity_I)
    # Padding is no item: a user who has had nearly everything is left with fewer than ten; who was not asked has none.
    tens = [top[:, :10] for top in top_UK]
    recommended = [ten[(ten >= 0) & (ten < len(popularity_I))] for ten in tens]
    return {
        "coverage@10": float(np.mean([len(np.unique(items)) / len(popularity_I) for items in recommended])),
        "popularity@10": float(np.mean([percentiles_I[items].mean() if len(items) else 0 for items in recommended])),
    }
