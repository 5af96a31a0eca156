"""A bundle, loaded and ready: raw item ids in, ranked raw item ids out.

recommender = Recommender.load("runs/ml100k-quickstart/seed-0/served/student")
recommender.top_k(["50", "181", "174"], k=5)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from compress.data.histories import MASKED, Asked, Attributes, FirstStage
from compress.errors import ArtifactError, RecPressError
from compress.provenance import hardware
from deploy import bundle
from deploy.rankers import RANKERS, Ranker
from deploy.rankers.buckets import Buckets
from deploy.runtimes import Arrays, Ids, MadeBefore, PreparesShapes, Runtime, Scores
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu


class Recommendation(NamedTuple):
    """An item and its score; scores compare within one answer only."""

    item_id: str
    score: float


class Request(NamedTuple):
    """What one user is asked for; raw ids, and unknown ones are skipped."""

    history: Sequence[str | int]
    """Oldest first."""
    k: int = 10
    allow: Collection[str | int] | Mapping[str | int, float] | None = None
    """Nothing else is recommended; None allows the whole catalogue. A mapping says how a first stage scored each."""
    deny: Collection[str | int] = ()
    """Not recommended, allowed or not."""
    attributes: Mapping[str, str | int] = {}
    """What else is known of the user, by column; a model reads those that its texts name."""


class Recommender:
    """Answers requests; every odd one has a stated answer.

    No item of the history known, nor an attribute that the model reads: the most popular items, scores their share of
    training interactions. Longer than the
    model reads: its latest items are read, all of them are excluded. Unknown items are skipped. Repeated items count as
    often as they come. Items that a refresh took out are read and never recommended. Fewer than k items left after
    history, allow and deny: those that are left.
    """

    def __init__(self, runtime: Runtime, ranker: Ranker, description: bundle.Bundle, items: pl.DataFrame) -> None:
        self.runtime = runtime
        self.ranker = ranker
        self._asked = Buckets(runtime, ranker.fills) if isinstance(runtime, PreparesShapes) else runtime
        self.description = description
        self.item_ids: list[str] = items["item_id"].to_list()
        self._dense = {item_id: dense for dense, item_id in enumerate(self.item_ids)}
        popularity = items["popularity"].to_numpy()
        order = np.argsort(-popularity, kind="stable")
        # What a refresh took out is known in histories, and in the graph has a score that is never answered.
        self._by_popularity = order[items["recommendable"].to_numpy()[order]] if "recommendable" in items else order
        self._shares = popularity / max(1, popularity.sum())

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        threads: int = 1,
        target: str = "onnxruntime-cpu",
        runtime: Runtime | None = None,
        rankers: Mapping[str, type[Ranker]] = RANKERS,
    ) -> Recommender:
        """The recommender in a bundle folder.

        Args:
            runtime: answers instead of the bundle's own graph, of which it must be made: ids are the bundle's.
            rankers: ask it, by family.
        Raises: ArtifactError if the folder is no bundle, a file is damaged, or the runtime says that it was made of
            another bundle; RecPressError if it has no graph for the target or this processor.

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
        made_of = runtime.standard_sha256 if isinstance(runtime, MadeBefore) else None
        if made_of is not None and made_of != description.sha256.get(bundle.STANDARD):
            raise ArtifactError(
                f"{folder}: the {runtime.name} runtime was made of another {bundle.STANDARD}; run the build stage "
                "again, and give it what that writes of this bundle"
            )
        ranker = rankers[description.family](folder, description)
        return cls(runtime, ranker, description, pl.read_parquet(folder / bundle.ITEMS, glob=False).sort("item"))

    def top_k(
        self,
        history: Sequence[str | int],
        k: int = 10,
        *,
        allow: Collection[str | int] | None = None,
        deny: Collection[str | int] = (),
    ) -> list[Recommendation]:
        """The k best items that are not in `history`, as a `Request` says."""
        return self.answer([Request(history, k, allow, deny)])[0]

    def top_k_batch(self, histories: Sequence[Sequence[str | int]], k: int = 10) -> list[list[Recommendation]]:
        """`top_k` of several users in one call of the runtime."""
        return self.answer([Request(history, k) for history in histories])

    def answer(self, requests: Sequence[Request]) -> list[list[Recommendation]]:
        """The answer to each request, in as few calls of the runtime as its graph allows.

        Raises: RecPressError if a k is below 1 or above the bundle's top_k.
        """
        for request in requests:
            if not 1 <= request.k <= self.description.top_k:
                raise RecPressError(
                    f"k = {request.k}: this bundle answers 1 to {self.description.top_k}; export with a larger top_k"
                )
            if self.ranker.reads_first_stage and not isinstance(request.allow, Mapping):
                raise RecPressError("allow: this model reads a first stage's scores: give a mapping from item to score")
        known = [self._known(request.history) for request in requests]
        excluded = [self._excluded(request, history) for request, history in zip(requests, known, strict=True)]
        answers: list[list[Recommendation]] = [[] for _ in requests]
        told = [self._told(request.attributes) for request in requests]
        rows = [row for row, history in enumerate(known) if len(history) or told[row]]
        for row in set(range(len(requests))) - set(rows):
            answers[row] = self._popular(requests[row].k, excluded[row])
        if rows:
            found = None
            if self.ranker.reads_first_stage:
                found = [self._found(request.allow, own) for request, own in zip(requests, excluded, strict=True)]
            ranked = self.rank(Asked(known, excluded, told, found).of(rows))
            for row, items, scores in zip(rows, *(part.tolist() for part in ranked), strict=True):
                answers[row] = [
                    Recommendation(self.item_ids[item], score)
                    for item, score in zip(items[: requests[row].k], scores, strict=False)
                    if score > MASKED / 2
                ]
        return answers

    def rank(self, asked: Asked) -> tuple[Ids, Scores]:
        """The top_k items and scores of users in dense ids, (users, top_k) each."""
        return self.ranker.rank(self._asked, asked)

    def calls(self, asked: Asked) -> list[Arrays]:
        """What the runtime is asked for that, a call each."""
        return self.ranker.calls(asked)

    def _told(self, attributes: Mapping[str, str | int]) -> Attributes:
        told = {name: str(attributes[name]) for name in self.ranker.attributes if attributes.get(name) is not None}
        return {name: value for name, value in told.items() if value}

    def _found(self, allow: Any, excluded: Ids) -> FirstStage:
        """What a first stage says of what may be recommended; of the rest it says nothing, as in training."""
        barred, by_id = set(excluded.tolist()), {str(item): score for item, score in allow.items()}
        scores = {self._dense[item]: float(score) for item, score in by_id.items() if item in self._dense}
        if not np.isfinite(list(scores.values())).all():
            raise RecPressError("allow: a first stage's scores are finite numbers")
        return {item: score for item, score in scores.items() if item not in barred}

    def _known(self, ids: Iterable[str | int]) -> Ids:
        dense = self._dense
        return np.array([dense[item] for item in map(str, ids) if item in dense], dtype=np.int64)

    def _excluded(self, request: Request, history: Ids) -> Ids:
        if request.allow is None and not request.deny:
            return history
        barred = np.zeros(len(self.item_ids), dtype=bool)
        if request.allow is not None:
            barred[:] = True
            barred[self._known(request.allow)] = False
        barred[self._known(request.deny)] = True
        barred[history] = True
        return np.flatnonzero(barred)

    def _popular(self, k: int, excluded: Ids) -> list[Recommendation]:
        head = self._by_popularity[: k + len(excluded)]
        kept = head[~np.isin(head, excluded)] if len(excluded) else head
        return [Recommendation(self.item_ids[item], float(self._shares[item])) for item in kept[:k]]
