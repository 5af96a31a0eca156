"""A bundle, loaded and ready: raw item ids in, ranked raw item ids out.

recommender = Recommender.load("runs/ml100k-quickstart/seed-0/served/student")
recommender.top_k(["50", "181", "174"], k=5)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from compress.data.histories import MASKED, Histories, left_padded
from compress.errors import RecPressError
from compress.provenance import hardware
from deploy import bundle
from deploy.runtimes import Ids, Runtime, Scores
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu


class Recommendation(NamedTuple):
    """An item and its score; scores compare within one answer only."""

    item_id: str
    score: float


class Recommender:
    """Answers requests; every odd history has a stated answer.

    Empty, or no item known: the most popular items, scores their share of training interactions. Longer than the model
    reads: its latest items are read, all of them are excluded. Unknown items are skipped. Repeated items count as often
    as they come.
    """

    def __init__(self, runtime: Runtime, description: bundle.Bundle, items: pl.DataFrame) -> None:
        self.runtime = runtime
        self.description = description
        self.item_ids: list[str] = items["item_id"].to_list()
        self._dense = {item_id: dense for dense, item_id in enumerate(self.item_ids)}
        popularity = items["popularity"].to_numpy()
        order = np.argsort(-popularity, kind="stable")[: description.top_k]
        shares = popularity[order] / max(1, popularity.sum())
        self._popular = [
            Recommendation(self.item_ids[item], float(share)) for item, share in zip(order, shares, strict=True)
        ]

    @classmethod
    def load(
        cls, folder: str | Path, *, threads: int = 1, target: str = "onnxruntime-cpu", runtime: Runtime | None = None
    ) -> Recommender:
        """The recommender in a bundle folder.

        Args:
            runtime: answers instead of the bundle's own graph.
        Raises: ArtifactError if the folder is no bundle or a file is damaged; RecPressError if it has no graph for the
            target or this processor.

        """
        folder = Path(folder)
        description = bundle.read(folder)
        if runtime is None:
            if target not in description.targets:
                raise RecPressError(f"{folder}: no graph for {target}; it has {', '.join(description.targets)}")
            if description.needs_vnni and hardware().get("vnni") == "false":
                raise RecPressError(
                    f"{folder}: exported on a processor with VNNI; int8 products overflow on this one; export it here"
                )
            runtime = OnnxRuntimeCpu(folder / description.targets[target], threads)
        return cls(runtime, description, pl.read_parquet(folder / bundle.ITEMS, glob=False).sort("item"))

    def top_k(self, history: Sequence[str | int], k: int = 10) -> list[Recommendation]:
        """The k best items that are not in `history` (raw ids, oldest first)."""
        return self.top_k_batch([history], k)[0]

    def top_k_batch(self, histories: Sequence[Sequence[str | int]], k: int = 10) -> list[list[Recommendation]]:
        """`top_k` of several users in one call of the runtime; fewer than k where the catalogue is used up.

        Raises: RecPressError if k is below 1 or above the bundle's top_k.
        """
        if not 1 <= k <= self.description.top_k:
            raise RecPressError(
                f"k = {k}: this bundle answers 1 to {self.description.top_k}; export with a larger top_k"
            )
        known = [self._known(history) for history in histories]
        asked = [row for row, history in enumerate(known) if len(history)]
        answers = [self._popular[:k] for _ in histories]
        if asked:
            items_BK, scores_BK = self.rank([known[row] for row in asked])
            for row, items, scores in zip(asked, items_BK[:, :k].tolist(), scores_BK[:, :k].tolist(), strict=True):
                answers[row] = [
                    Recommendation(self.item_ids[item], score)
                    for item, score in zip(items, scores, strict=True)
                    if score > MASKED / 2
                ]
        return answers

    def rank(self, histories: Histories) -> tuple[Ids, Scores]:
        """The top_k items and scores of histories of dense ids, (histories, top_k), as the runtime gives them."""
        return self.runtime(*self.arrays(histories))

    def arrays(self, histories: Histories) -> tuple[Ids, Ids]:
        """What the runtime reads: the latest items of each history, and all of them to be excluded."""
        pad_id = self.description.pad_id
        longest = max(map(len, histories))
        return left_padded(histories, self.description.max_length, pad_id), left_padded(histories, longest, pad_id)

    def _known(self, history: Sequence[str | int]) -> Ids:
        dense = self._dense
        return np.array([dense[item] for item in map(str, history) if item in dense], dtype=np.int64)
