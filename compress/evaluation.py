"""Quality on held-out items: the catalogue or given candidates, seen items filtered, per user."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from compress.data.histories import Histories, left_padded
from compress.data.interactions import IntArray, Interactions, Split
from compress.methods.rounding import Rounding
from compress.metrics import ranking_metrics
from compress.models.family import Family

Recommend = Callable[[Histories, Histories], NDArray[np.int64]]
"""Histories, excluded items of each -> the 10 best of the others, best first: (users, 10)."""

SCORES = 2**26
"""Scores that a batch of users may have at most: a quarter of a GiB in float32."""


def recommend_all(
    recommend: Recommend,
    interactions: Interactions,
    split: Split,
    batch_size: int = 64,
    users: IntArray | None = None,
) -> NDArray[np.int64]:
    """The top 10 of each of the users, by default `interactions.users(split)`: (U, 10).

    Users of similar length share a batch.
    """
    asked = (interactions.users(split) if users is None else users).tolist()
    histories = [interactions.history(split, user) for user in asked]
    order = np.argsort([len(history) for history in histories], kind="stable")
    top_UK = np.empty((len(histories), 10), dtype=np.int64)
    batch_size = min(batch_size, max(1, SCORES // interactions.catalogue_size))
    for start in tqdm(range(0, len(order), batch_size), desc=f"{split} users", leave=False, disable=None):
        rows = order[start : start + batch_size]
        excluded = [interactions.excluded(split, asked[row]) for row in rows]
        top_UK[rows] = recommend([histories[row] for row in rows], excluded)
    return top_UK


def evaluate(recommend: Recommend, interactions: Interactions, split: Split) -> dict[str, float]:
    """Mean metrics over all users."""
    top_UK = recommend_all(recommend, interactions, split)
    per_user = ranking_metrics(top_UK, interactions.targets(split))
    return {name: round(float(values.mean()), 6) for name, values in per_user.items()}


def plain(family: Family, model: PreTrainedModel) -> Recommend:
    """A PyTorch model as a recommender: all scores, excluded items struck out, the best 10."""

    @torch.no_grad()
    def recommend(histories: Histories, excluded: Histories) -> NDArray[np.int64]:
        model.eval()
        history_BL = family.encode(model, histories).to(model.device)
        logits = history_BL.shape[1] * model.get_input_embeddings().num_embeddings  # of a user, at every position
        size = max(1, 4 * SCORES // logits)
        starts = range(0, len(history_BL), size)
        scores_BI = torch.cat([family.score(model, history_BL[start : start + size]) for start in starts])
        for row, items in zip(scores_BI, excluded, strict=True):
            row[torch.from_numpy(items.astype(np.int64))] = -torch.inf
        return scores_BI.topk(10).indices.cpu().numpy()

    return recommend


def served(family: Family, model: PreTrainedModel, rounding: Rounding) -> Recommend:
    """The graph that is exported as a recommender: `plain` with a fraction of its work."""
    graph = family.serve(model, 10, rounding).eval()

    @torch.no_grad()
    def recommend(histories: Histories, excluded: Histories) -> NDArray[np.int64]:
        exclude_BE = torch.from_numpy(left_padded(excluded, max(map(len, excluded)), graph.pad_id))
        items_BK: NDArray[np.int64] = graph(family.encode(model, histories), exclude_BE)[0].numpy()
        return items_BK

    return recommend
