"""Whether company changes an answer: the same users asked alone, padded, and in a batch with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.workload import answerable
from compress.data.histories import MASKED
from compress.data.interactions import NOBODY
from compress.metrics import overlap

if TYPE_CHECKING:
    from compress.data.histories import Asked
    from compress.data.interactions import Interactions
    from deploy.recommender import Recommender
    from deploy.runtimes import Arrays, Ids, Outputs, Runtime, Scores

ASKED = 256
"""Users; fewer where one takes several calls."""

BATCH = 32

Json = dict[str, Any]


def invariance(recommender: Recommender, interactions: Interactions) -> Json:
    """How many test users get the same top 10, in order, as alone, and the mean share of it that they get.

    Padded: alone still, to the width of the widest of them (of candidates' texts, where those are what is padded).
    Batch: of histories of all lengths; None where a call answers one user.
    """
    users = answerable(interactions)
    calls = len(recommender.calls(interactions.asked("test", users[:1])))
    users = users[:: max(1, len(users) * calls // ASKED)]
    asked = interactions.asked("test", users)
    one_by_one = [asked.of([row]) for row in range(len(asked))]
    widest = _widths(recommender, one_by_one)
    alone = _top(recommender, recommender.runtime, one_by_one)
    padded = _top(recommender, _Padded(recommender, widest), one_by_one)
    batches = [asked.of(range(start, min(start + BATCH, len(asked)))) for start in range(0, len(asked), BATCH)]
    answers_together = len(recommender.calls(batches[0])) < len(batches[0]) or len(asked) == 1
    return {
        "users": len(asked),
        "padded": _agreement(padded, alone),
        "batch": _agreement(_top(recommender, recommender.runtime, batches), alone) if answers_together else None,
    }


def _widths(recommender: Recommender, one_by_one: Sequence[Asked]) -> dict[str, int]:
    """The most positions that any call has, by the name of the input."""
    found: dict[str, int] = {}
    for asked in one_by_one:
        for arrays in recommender.calls(asked):
            for name in _padded_names(arrays):
                found[name] = max(found.get(name, 0), arrays[name].shape[1])
    return found


def _padded_names(arrays: Arrays) -> list[str]:
    """Ids of several rows that the model reads."""
    return [name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind == "i" and name != "exclude"]


class _Padded:
    """A runtime whose inputs are all as wide as the widest: histories end together, texts begin together."""

    def __init__(self, recommender: Recommender, widths: Mapping[str, int]) -> None:
        self.runtime = recommender.runtime
        self.name, self.threads = self.runtime.name, self.runtime.threads
        self.pad = recommender.ranker.pad
        self.widths = widths

    def __call__(self, inputs: Arrays) -> Outputs:
        wide: dict[str, Any] = dict(inputs)
        for name in _padded_names(inputs):
            more = self.widths[name] - inputs[name].shape[1]
            sides = (more, 0) if name == "history" else (0, more)
            wide[name] = np.pad(inputs[name], ((0, 0), sides), constant_values=self.pad)
        return self.runtime(wide)


def _top(recommender: Recommender, runtime: Runtime, requests: Sequence[Asked]) -> Ids:
    def answered(ranked: tuple[Ids, Scores]) -> Ids:
        items, scores = ranked
        return np.where(scores > MASKED / 2, items, NOBODY)[:, :10]

    return np.concatenate([answered(recommender.ranker.rank(runtime, asked)) for asked in requests])


def _agreement(ours_UK: Ids, alone_UK: Ids) -> Json:
    return {
        "same": round(float((ours_UK == alone_UK).all(axis=1).mean()), 6),
        "overlap": round(float(overlap(ours_UK, alone_UK).mean()), 6),
    }
