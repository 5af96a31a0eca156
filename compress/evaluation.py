"""Quality on held-out items: the catalogue or given candidates, seen items filtered, per user."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from compress.data.histories import Asked, Recommend
from compress.data.interactions import NOBODY, IntArray, Interactions, Split
from compress.methods.rounding import Rounding
from compress.metrics import ranking_metrics
from compress.models.family import Family, Score

VALIDATION = "validation.npz"
"""What a model recommends to each validation user: a teacher's lists are kept, for its students are held to them."""

SCORES = 2**26
"""Scores that a batch of users may have at most: a quarter of a GiB in float32."""


def recommend_all(
    recommend: Recommend,
    interactions: Interactions,
    split: Split,
    batch_size: int = 64,
    users: IntArray | None = None,
) -> NDArray[np.int64]:
    """What `recommend` says of each of the users, by default `interactions.users(split)`: (U, K).

    Users of similar length share a batch. Of all of them, those whose target is no candidate are missed whatever the
    ranking: they are not asked, and their row is NOBODY, as is the end of a row that is longer than there are answers.
    """
    everyone = interactions.users(split) if users is None else users
    order: IntArray = np.argsort(interactions.history_lengths(split, everyone), kind="stable")
    if users is None:
        order = order[interactions.within_reach(split)[order]]
    found: list[tuple[IntArray, IntArray]] = []
    batch_size = min(batch_size, max(1, SCORES // interactions.catalogue_size))
    for start in tqdm(range(0, len(order), batch_size), desc=f"{split} users", leave=False, disable=None):
        rows = order[start : start + batch_size]
        asked = interactions.asked(split, everyone[rows])
        best_BK = recommend(asked)
        left_B = np.array([interactions.catalogue_size - len(np.unique(items)) for items in asked.excluded])
        found.append((rows, np.where(np.arange(best_BK.shape[1]) < left_B[:, None], best_BK, NOBODY)))
    top_UK = np.full((len(everyone), found[0][1].shape[1] if found else 10), NOBODY, dtype=np.int64)
    for rows, best in found:
        top_UK[rows] = best
    return top_UK


def evaluate(recommend: Recommend, interactions: Interactions, split: Split) -> dict[str, float]:
    """Mean metrics over all users."""
    return _mean_metrics(recommend_all(recommend, interactions, split), interactions, split)


def validate(recommend: Recommend, interactions: Interactions, folder: Path) -> dict[str, float]:
    """Mean metrics over validation users; their lists stay in the folder, for `validated`."""
    top_UK = recommend_all(recommend, interactions, "validation")
    np.savez_compressed(folder / VALIDATION, allow_pickle=False, top=top_UK.astype(np.int32))
    return _mean_metrics(top_UK, interactions, "validation")


def validated(folder: Path) -> NDArray[np.int32]:
    """The lists of validation users that `validate` left in a stage's folder: (U, K)."""
    with np.load(folder / VALIDATION, allow_pickle=False) as arrays:
        top_UK: NDArray[np.int32] = arrays["top"]
    return top_UK


def _mean_metrics(top_UK: NDArray[np.int64], interactions: Interactions, split: Split) -> dict[str, float]:
    whole = top_UK.shape[1] >= interactions.longest_list(split)
    per_user = ranking_metrics(top_UK, interactions.targets(split), whole=whole)
    return {
        name: round(float(np.nanmean(values)), 6) for name, values in per_user.items() if not np.isnan(values).all()
    }


def plain(family: Family, model: PreTrainedModel, k: int = 10) -> Recommend:
    """A PyTorch model as a recommender: the scores of all that is not excluded, and the best k of at least as many."""

    @cache
    def score() -> Score:
        return family.scorer(model.eval())

    @torch.no_grad()
    def recommend(asked: Asked) -> NDArray[np.int64]:
        scores_BI = score()(asked)
        return scores_BI.topk(k).indices.cpu().numpy()

    return recommend


def served(family: Family, model: PreTrainedModel, rounding: Rounding, k: int = 10) -> Recommend:
    """The graph that is exported as a recommender, its products as integers round: `plain` with less work.

    Scales of dynamic products are those of a batch of users here; served, they are those of a request.
    """
    graph = family.serve(model, k, rounding).eval()
    graph.fake_quantize(rounding.maps)
    if rounding.linear == "dynamic":
        graph.fake_quantize_by_call()

    def answer(asked: Asked) -> dict[str, NDArray[np.int64]]:
        outputs = graph(*family.inputs(model, asked).values())
        return {name: output.numpy() for name, output in zip(graph.outputs, outputs, strict=True)}

    def rank(asked: Asked) -> NDArray[np.int64]:
        """One user's candidates by their scores, best first, filled up with NOBODY."""
        items = np.setdiff1d(np.arange(graph.catalogue_size), asked.excluded[0])
        if len(items):
            items = items[np.argsort(-answer(asked)["scores"], kind="stable")[:k]]
        return np.pad(items, (0, k - len(items)), constant_values=NOBODY)

    @torch.no_grad()
    def recommend(asked: Asked) -> NDArray[np.int64]:
        if "items" in graph.outputs:
            return answer(asked)["items"]
        return np.stack([rank(asked.of([row])) for row in range(len(asked))])

    return recommend
