"""Ranking metrics per user, and what a difference between two models is worth.

U: users, K: length of the recommended list, S: seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.integer[Any]]

RESAMPLES = 2_000


def ranking_metrics(top_UK: Ids, targets_U: Ids) -> dict[str, Floats]:
    """NDCG, recall and reciprocal rank at 10 of each user's one target, (U,) each; recall at 100 of lists so long.

    Args:
        top_UK: recommended items, best first, at least 10.
        targets_U: the held-out item.

    """
    hits = top_UK == targets_U[:, None]
    ten = hits[:, :10]
    ranks = np.where(ten.any(axis=1), ten.argmax(axis=1), np.inf)
    found = {
        "ndcg@10": 1 / np.log2(ranks + 2),
        "recall@10": np.isfinite(ranks).astype(np.float64),
        "mrr@10": 1 / (ranks + 1),
    }
    if top_UK.shape[1] >= 100:
        found["recall@100"] = hits[:, :100].any(axis=1).astype(np.float64)
    return found


def overlap(ours_UK: Ids, theirs_UK: Ids) -> Floats:
    """Share of one list's items that are in the other, 0 to 1, of each user who was asked (no item is negative)."""
    asked = (theirs_UK >= 0).all(axis=1)
    shared: Floats = (ours_UK[asked, :, None] == theirs_UK[asked, None, :]).any(axis=2).mean(axis=1)
    return shared


@dataclass(frozen=True)
class Estimate:
    """A mean and its bootstrap 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A model against a reference on the same users: ratio and difference of means with 95% intervals."""

    ratio: Estimate
    difference: Estimate


def estimate(values_SU: Floats, seed: int = 0) -> Estimate:
    """The mean over users and seeds; users are resampled as clusters, each with all of its seeds.

    Args:
        values_SU: one row per training seed, or (U,) for a single one.

    """
    users = np.atleast_2d(values_SU).mean(axis=0)
    means = _resampled_means(users[:, None], seed)[:, 0]
    return Estimate(float(users.mean()), *_interval(means))


def compare(ours_SU: Floats, theirs_SU: Floats, seed: int = 0) -> Comparison:
    """A paired comparison: both models are resampled with the same users.

    Args:
        ours_SU, theirs_SU: (S, U) or (U,), the same users in the same order.
        seed: of the resampling.
    Raises: ValueError if the users differ in number or the reference is zero everywhere.
    Source: Efron & Tibshirani 1993, chapter 13 (percentile interval).

    """
    ours, theirs = np.atleast_2d(ours_SU).mean(axis=0), np.atleast_2d(theirs_SU).mean(axis=0)
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} users against {len(theirs)}")
    if not theirs.any():
        raise ValueError("the reference scores zero for every user; no ratio can be formed")
    means = _resampled_means(np.stack([ours, theirs], axis=1), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(means[:, 0] / means[:, 1], posinf=np.finfo(float).max)
    return Comparison(
        Estimate(float(ours.mean() / theirs.mean()), *_interval(ratios)),
        Estimate(float((ours - theirs).mean()), *_interval(means[:, 0] - means[:, 1])),
    )


def ratio_of_medians(slow: Sequence[Floats], fast: Sequence[Floats], seed: int = 0) -> Estimate:
    """How many times shorter `fast`'s median is: the geometric mean of each run's ratio, with a bootstrap interval.

    Args:
        slow, fast: samples of each run, in any one unit; times of different runs are never compared.

    """
    random = np.random.default_rng(seed)
    logs = np.zeros(RESAMPLES)
    log = 0.0
    for sign, runs in ((1, slow), (-1, fast)):
        for values in runs:
            drawn = values[random.integers(len(values), size=(RESAMPLES, len(values)))]
            logs += sign * np.log(np.median(drawn, axis=1)) / len(runs)
            log += sign * float(np.log(np.median(values))) / len(runs)
    return Estimate(float(np.exp(log)), *_interval(np.exp(logs)))


def quantile_interval(values: Floats, quantile: float, seed: int = 0) -> Estimate:
    """A quantile of a sample with its bootstrap interval."""
    random = np.random.default_rng(seed)
    resampled = np.quantile(values[random.integers(len(values), size=(RESAMPLES, len(values)))], quantile, axis=1)
    return Estimate(float(np.quantile(values, quantile)), *_interval(resampled))


def _resampled_means(values_UM: Floats, seed: int) -> Floats:
    """Means of columns over users drawn with replacement: (RESAMPLES, M), the same draws for every column."""
    means: Floats = _resamples(len(values_UM), seed) @ values_UM / len(values_UM)
    return means


@lru_cache(maxsize=1)  # a report compares dozens of times over the same users
def _resamples(users: int, seed: int) -> Floats:
    """How often each resample draws each user: (RESAMPLES, users)."""
    drawn = np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), size=RESAMPLES)
    return drawn.astype(np.float64)


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
