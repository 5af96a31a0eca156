"""Quality on held-out items: full catalogue, seen items filtered, per user."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PreTrainedModel

from compress.data.histories import Histories, left_padded
from compress.data.interactions import Interactions, Split
from compress.methods.rounding import Rounding
from compress.metrics import ranking_metrics
from compress.models.family import Family

Recommend = Callable[[Histories], NDArray[np.int64]]
"""Histories -> the 10 best items of each that are not in it, best first: (users, 10)."""


def recommend_all(
    recommend: Recommend, interactions: Interactions, split: Split, batch_size: int = 64
) -> NDArray[np.int64]:
    """The top 10 of every user, (U, 10), users of similar length together."""
    histories = [interactions.history(split, user) for user in range(interactions.user_count)]
    order = np.argsort([len(history) for history in histories], kind="stable")
    top_UK = np.empty((len(histories), 10), dtype=np.int64)
    for start in tqdm(range(0, len(order), batch_size), desc=f"{split} users", leave=False, disable=None):
        users = order[start : start + batch_size]
        top_UK[users] = recommend([histories[user] for user in users])
    return top_UK


def evaluate(recommend: Recommend, interactions: Interactions, split: Split) -> dict[str, float]:
    """Mean metrics over all users."""
    top_UK = recommend_all(recommend, interactions, split)
    per_user = ranking_metrics(top_UK, interactions.targets(split))
    return {name: round(float(values.mean()), 6) for name, values in per_user.items()}


def plain(family: Family, model: PreTrainedModel) -> Recommend:
    """A PyTorch model as a recommender: all scores, seen items struck out, the best 10."""

    @torch.no_grad()
    def recommend(histories: Histories) -> NDArray[np.int64]:
        model.eval()
        scores_BI = family.score(model, family.encode(model, histories).to(model.device))
        for row, history in zip(scores_BI, histories, strict=True):
            row[history.tolist()] = -torch.inf
        return scores_BI.topk(10).indices.cpu().numpy()

    return recommend


def served(family: Family, model: PreTrainedModel, rounding: Rounding) -> Recommend:
    """The graph that is exported as a recommender: `plain` with a fraction of its work."""
    graph = family.serve(model, 10, rounding).eval()

    @torch.no_grad()
    def recommend(histories: Histories) -> NDArray[np.int64]:
        exclude_BE = torch.from_numpy(left_padded(histories, max(map(len, histories)), graph.pad_id))
        items_BK: NDArray[np.int64] = graph(family.encode(model, histories), exclude_BE)[0].numpy()
        return items_BK

    return recommend
