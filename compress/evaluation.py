"""Quality on held-out items: the catalogue or given candidates, seen items filtered, per user."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from compress.data.histories import Histories, Recommend
from compress.data.interactions import IntArray, Interactions, Split
from compress.methods.rounding import Rounding
from compress.metrics import ranking_metrics
from compress.models.family import Family, Score

NOBODY = -1
"""Stands for the items of a user who is not asked."""

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
    ranking: they are not asked, and their row is NOBODY.
    """
    asked = (interactions.users(split) if users is None else users).tolist()
    histories = [interactions.history(split, user) for user in asked]
    order: IntArray = np.argsort([len(history) for history in histories], kind="stable")
    if users is None:
        order = order[interactions.within_reach(split)[order]]
    found: list[tuple[IntArray, IntArray]] = []
    batch_size = min(batch_size, max(1, SCORES // interactions.catalogue_size))
    for start in tqdm(range(0, len(order), batch_size), desc=f"{split} users", leave=False, disable=None):
        rows = order[start : start + batch_size]
        excluded = [interactions.excluded(split, asked[row]) for row in rows]
        found.append((rows, recommend([histories[row] for row in rows], excluded)))
    top_UK = np.full((len(histories), found[0][1].shape[1] if found else 10), NOBODY, dtype=np.int64)
    for rows, best in found:
        top_UK[rows] = best
    return top_UK


def evaluate(recommend: Recommend, interactions: Interactions, split: Split) -> dict[str, float]:
    """Mean metrics over all users."""
    top_UK = recommend_all(recommend, interactions, split)
    per_user = ranking_metrics(top_UK, interactions.targets(split))
    return {name: round(float(values.mean()), 6) for name, values in per_user.items()}


def plain(family: Family, model: PreTrainedModel, k: int = 10) -> Recommend:
    """A PyTorch model as a recommender: the scores of all that is not excluded, and the best k."""

    @cache
    def score() -> Score:
        return family.scorer(model.eval())

    @torch.no_grad()
    def recommend(histories: Histories, excluded: Histories) -> NDArray[np.int64]:
        scores_BI = score()(histories, excluded)
        return scores_BI.topk(k).indices.cpu().numpy()

    return recommend


def served(family: Family, model: PreTrainedModel, rounding: Rounding) -> Recommend:
    """The graph that is exported as a recommender: `plain` with a fraction of its work."""
    graph = family.serve(model, 10, rounding).eval()

    @torch.no_grad()
    def recommend(histories: Histories, excluded: Histories) -> NDArray[np.int64]:
        items_BK: NDArray[np.int64] = graph(*family.inputs(model, histories, excluded).values())[0].numpy()
        return items_BK

    return recommend
