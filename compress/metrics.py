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
from scipy.special import expit

Floats = NDArray[np.float64]
Ids = NDArray[np.integer[Any]]

RESAMPLES = 2_000

CALIBRATION_BINS = 15


def ranking_metrics(top_UK: Ids, targets: Ids, *, whole: bool = False) -> dict[str, Floats]:
    """NDCG, recall and reciprocal rank at 10 of each user, (U,) each; NaN for a user who has no target.

    Recall is of the targets that could be among so many. Recall at 100 comes with lists so long, and if lists are whole
    the area under the ROC curve: how often a target stands before a candidate that is none. It is 0 for a user whose
    target is no candidate, and NaN for one who has nothing but targets.

    Args:
        top_UK: recommended items, best first, at least 10; negative where there is none.
        targets: the held-out item, (U,), or several of each user, (U, R), filled up with negative ones.
        whole: whether the lists hold all of each user's candidates.
    Source: Järvelin & Kekäläinen 2002; Hanley & McNeil 1982.

    """
    wanted_UR = targets[:, None] if targets.ndim == 1 else targets
    counts_U = (wanted_UR >= 0).sum(axis=1)
    hits = (top_UK >= 0) & (top_UK[:, :, None] == wanted_UR[:, None, :]).any(axis=2)
    ten = hits[:, :10]
    gains = 1 / np.log2(np.arange(10) + 2)
    reachable_U = np.minimum(counts_U, 10)
    asked_U = np.where(counts_U > 0, 1.0, np.nan)
    found = {
        "ndcg@10": asked_U * (ten @ gains) / np.array([1, *np.cumsum(gains)])[reachable_U],
        "recall@10": asked_U * ten.sum(axis=1) / np.maximum(1, reachable_U),
        "mrr@10": asked_U * np.where(ten.any(axis=1), 1 / (ten.argmax(axis=1) + 1), 0),
    }
    if whole:
        found["auc"] = _area(hits, (top_UK >= 0).sum(axis=1), counts_U)
    if top_UK.shape[1] >= 100:
        found["recall@100"] = asked_U * hits[:, :100].sum(axis=1) / np.maximum(1, np.minimum(counts_U, 100))
    return found


def _area(hits_UK: NDArray[np.bool_], listed_U: Ids, counts_U: Ids) -> Floats:
    """As `ranking_metrics` says. Args: listed_U, counts_U: candidates and targets of each user."""
    found_U = hits_UK.sum(axis=1)
    others_U = listed_U - found_U
    before_UK = np.arange(hits_UK.shape[1]) - (np.cumsum(hits_UK, axis=1) - hits_UK)  # candidates that are no target
    won_U = np.where(hits_UK, others_U[:, None] - before_UK, 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        area_U = won_U / (counts_U * others_U)
    return np.where((found_U == 0) & (counts_U > 0), 0.0, area_U)


def prediction_metrics(scores_N: Floats, wanted_N: Ids) -> dict[str, Any]:
    """How well probabilities of a yes fit the labels, all users together.

    AUC, log loss, the expected calibration error (Guo et al. 2017, arXiv 1706.04599: 15 bins of equal width), and
    scikit-learn's classification report, whose yes is a probability of one half or more.

    Args:
        scores_N: log odds.
        wanted_N: 1 or 0, both of them there.

    """
    from sklearn.metrics import classification_report, log_loss, roc_auc_score

    probabilities_N = expit(scores_N.astype(np.float64))
    bins_N = np.minimum((probabilities_N * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins_N, probabilities_N - wanted_N, minlength=CALIBRATION_BINS)
    return {
        "auc": float(roc_auc_score(wanted_N, probabilities_N)),
        "log_loss": float(log_loss(wanted_N, probabilities_N)),
        "calibration_error": float(np.abs(gaps).sum() / len(wanted_N)),
        "classification": classification_report(
            wanted_N, probabilities_N >= 0.5, target_names=["no", "yes"], output_dict=True, zero_division=0
        ),
    }


def overlap(ours_UK: Ids, theirs_UK: Ids) -> Floats:
    """Share of their items that are ours as well, 0 to 1, of each user who was told any (a negative one is none)."""
    told = (theirs_UK >= 0).any(axis=1)
    theirs_UK, ours_UK = theirs_UK[told], ours_UK[told]
    shared_UK = (theirs_UK >= 0) & (theirs_UK[:, :, None] == ours_UK[:, None, :]).any(axis=2)
    shared: Floats = shared_UK.sum(axis=1) / (theirs_UK >= 0).sum(axis=1)
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
    """The mean over users and seeds; users are resampled as clusters, each with all of its seeds; NaN is nobody.

    Args:
        values_SU: one row per training seed, or (U,) for a single one.

    """
    users = np.atleast_2d(values_SU).mean(axis=0)
    users = users[~np.isnan(users)]
    means = _resampled_means(users[:, None], seed)[:, 0]
    return Estimate(float(users.mean()), *_interval(means))


def compare(ours_SU: Floats, theirs_SU: Floats, seed: int = 0) -> Comparison:
    """A paired comparison: both models are resampled with the same users.

    Args:
        ours_SU, theirs_SU: (S, U) or (U,), the same users in the same order; NaN in both is nobody.
        seed: of the resampling.
    Raises: ValueError if the users differ in number or the reference is zero everywhere.
    Source: Efron & Tibshirani 1993, chapter 13 (percentile interval).

    """
    ours, theirs = np.atleast_2d(ours_SU).mean(axis=0), np.atleast_2d(theirs_SU).mean(axis=0)
    if ours.shape != theirs.shape:
        raise ValueError(f"{len(ours)} users against {len(theirs)}")
    some = ~np.isnan(ours)
    ours, theirs = ours[some], theirs[some]
    if not theirs.any():
        raise ValueError("the reference scores zero for every user; no ratio can be formed")
    means = _resampled_means(np.stack([ours, theirs], axis=1), seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(means[:, 0] / means[:, 1], posinf=np.finfo(float).max)
    return Comparison(
        Estimate(float(ours.mean() / theirs.mean()), *_interval(ratios)),
        Estimate(float((ours - theirs).mean()), *_interval(means[:, 0] - means[:, 1])),
    )


def ratio_of_medians(slow: Sequence[Floats], fast: Sequence[Floats], *, turn: int = 1, seed: int = 0) -> Estimate:
    """How many times shorter `fast`'s median is: the geometric mean of each run's ratio, with a bootstrap interval.

    Args:
        slow, fast: samples of each run, in any one unit; times of different runs are never compared.
        turn: samples in a row that were taken at one moment, and are drawn together.

    """
    random = np.random.default_rng(seed)
    logs = np.zeros(RESAMPLES)
    log = 0.0
    for sign, runs in ((1, slow), (-1, fast)):
        for values in runs:
            logs += sign * np.log(np.median(_drawn(values, turn, random), axis=1)) / len(runs)
            log += sign * float(np.log(np.median(values))) / len(runs)
    return Estimate(float(np.exp(log)), *_interval(np.exp(logs)))


def quantile_interval(values: Floats, quantile: float, *, turn: int = 1, seed: int = 0) -> Estimate:
    """A quantile of a sample with its bootstrap interval. Args: turn: see `ratio_of_medians`."""
    resampled = np.quantile(_drawn(values, turn, np.random.default_rng(seed)), quantile, axis=1)
    return Estimate(float(np.quantile(values, quantile)), *_interval(resampled))


def _drawn(values: Floats, turn: int, random: np.random.Generator) -> Floats:
    """Samples drawn anew with replacement, whole turns at a time: (RESAMPLES, samples).

    Raises: ValueError if the samples are no whole number of turns.
    Source: Kuensch 1989 (block bootstrap).
    """
    turns = values.reshape(-1, turn)
    return turns[random.integers(len(turns), size=(RESAMPLES, len(turns)))].reshape(RESAMPLES, -1)


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
