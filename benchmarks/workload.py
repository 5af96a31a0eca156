"""What is timed: real requests, as calls of a runtime alone and of a whole recommender, and how much work one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy.clock import Call

if TYPE_CHECKING:  # torch is loaded when there is work, not to find out that there is none
    from compress.data.histories import Histories
    from compress.data.interactions import Interactions
    from deploy.recommender import Recommender, Request
    from deploy.runtimes import Arrays

TIMED_INPUTS = 64
"""Different real requests that timings rotate through."""

COUNTED_INPUTS = 4
"""Of those, how many an eager model's operations are counted on."""


@dataclass(frozen=True)
class Asked:
    """A batch of users: dense ids."""

    histories: Histories
    excluded: Histories
    candidates: Histories | None
    """What each may be recommended; None: everything that is not in the history."""


def requests(interactions: Interactions, batch: int) -> list[Asked]:
    """Real test histories of real lengths, a batch for each call; the same for every variant."""
    random = np.random.default_rng(0)
    answerable = interactions.users("test")[interactions.within_reach("test")]
    lists = interactions.candidates and interactions.candidates["test"]
    return [
        Asked(
            [interactions.history("test", user) for user in users],
            [interactions.excluded("test", user) for user in users],
            [lists[user] for user in users] if lists else None,
        )
        for users in random.choice(answerable, size=(TIMED_INPUTS, batch)).tolist()
    ]


def _model_calls(recommender: Recommender, asked_for: Sequence[Asked]) -> list[Call]:
    """The runtime alone: arrays in, arrays out."""

    def run(calls: list[Arrays]) -> None:
        for arrays in calls:
            recommender.runtime(arrays)

    return [partial(run, recommender.calls(asked.histories, asked.excluded)) for asked in asked_for]


def _request_calls(recommender: Recommender, asked_for: Sequence[Asked]) -> list[Call]:
    """From raw item ids to ranked raw item ids."""
    from deploy.recommender import Request

    def raw(items: NDArray[Any]) -> list[str]:
        return [recommender.item_ids[item] for item in items]

    def batch(asked: Asked) -> list[Request]:
        histories = [raw(history) for history in asked.histories]
        if asked.candidates is None:
            return [Request(history) for history in histories]
        return [Request(history, allow=raw(items)) for history, items in zip(histories, asked.candidates, strict=True)]

    return [partial(recommender.answer, batch(asked)) for asked in asked_for]


CALLS = {"model": _model_calls, "request": _request_calls}


def flops(described: Any, recommender: Recommender, asked_for: Sequence[Asked]) -> int:
    """Of a batch, on average. What only PyTorch executes is counted on a few of them."""
    from deploy.flops import counted, evaluated

    if described is None:
        return round(float(np.mean([counted(call) for call in _model_calls(recommender, asked_for[:COUNTED_INPUTS])])))
    axes = {name: tuple(names) for name, names in described["inputs"].items()}
    each = [evaluated(described, axes, recommender.calls(asked.histories, asked.excluded)) for asked in asked_for]
    return round(float(np.mean(each)))


def shape(recommender: Recommender, asked_for: Sequence[Asked]) -> tuple[float, float]:
    """Positions of a row that the runtime reads, on average, and which share of them is padding."""
    rows = positions = padded = 0
    for asked in asked_for:
        for arrays in recommender.calls(asked.histories, asked.excluded):
            read = [array for name, array in arrays.items() if name != "exclude" and array.dtype.kind == "i"]
            if not read:  # another tool, which is given texts
                return 0.0, 0.0
            count = max(len(array) for array in read if array.ndim > 1)
            rows += count
            positions += count * sum(array.shape[-1] for array in read)
            padded += sum(int((array == recommender.ranker.pad).sum()) for array in read)
    return round(positions / rows, 2), round(padded / positions, 4)
