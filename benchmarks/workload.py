"""What is timed: real requests, as calls of a runtime alone and of a whole recommender, and how much work one is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy.clock import Call

if TYPE_CHECKING:  # torch is loaded when there is work, not to find out that there is none
    from compress.data.histories import Asked
    from compress.data.interactions import IntArray, Interactions
    from deploy.recommender import Recommender, Request
    from deploy.runtimes import Arrays

TIMED_INPUTS = 64
"""Different real requests that timings rotate through."""

COUNTED_INPUTS = 4
"""Of those, how many an eager model's operations are counted on."""


def requests(interactions: Interactions, batch: int) -> list[Asked]:
    """Real test histories of real lengths, a batch for each call; the same for every variant."""
    drawn = np.random.default_rng(0).choice(answerable(interactions), size=(TIMED_INPUTS, batch))
    return [interactions.asked("test", users) for users in drawn]


def answerable(interactions: Interactions) -> IntArray:
    """Test users whom a model answers: of whom nothing is known, the answer is what is popular, without one."""
    users = interactions.users("test")[interactions.within_reach("test")]
    if interactions.attributes is None:
        users = users[interactions.history_lengths("test", users) > 0]
    return users


def _model_calls(recommender: Recommender, asked_for: Sequence[Asked]) -> list[Call]:
    """The runtime alone: arrays in, arrays out."""

    def run(calls: list[Arrays]) -> None:
        for arrays in calls:
            recommender.runtime(arrays)

    return [partial(run, recommender.calls(asked)) for asked in asked_for]


def _request_calls(recommender: Recommender, asked_for: Sequence[Asked]) -> list[Call]:
    """From raw item ids to ranked raw item ids."""
    from deploy.recommender import Request

    def raw(items: NDArray[Any]) -> list[str]:
        return [recommender.item_ids[item] for item in items]

    def allowed(history: NDArray[Any], barred: NDArray[Any]) -> list[str] | None:
        if np.isin(barred, history).all():
            return None
        return raw(np.setdiff1d(np.arange(len(recommender.item_ids)), barred))

    def scored(asked: Asked, row: int) -> dict[str | int, float] | None:
        if not recommender.ranker.reads_first_stage or asked.first_stage is None:
            return None
        return {recommender.item_ids[item]: score for item, score in asked.first_stage[row].items()}

    def batch(asked: Asked) -> list[Request]:
        return [
            Request(
                raw(history), allow=scored(asked, row) or allowed(history, barred), attributes=asked.attributes_of(row)
            )
            for row, (history, barred) in enumerate(zip(asked.histories, asked.excluded, strict=True))
        ]

    return [partial(recommender.answer, batch(asked)) for asked in asked_for]


CALLS = {"model": _model_calls, "request": _request_calls}


def flops(described: Any, recommender: Recommender, asked_for: Sequence[Asked]) -> int:
    """Of a batch, on average. What only PyTorch executes is counted on a few of them."""
    from deploy.flops import counted, evaluated

    if described is None:
        return round(float(np.mean([counted(call) for call in _model_calls(recommender, asked_for[:COUNTED_INPUTS])])))
    axes = {name: tuple(names) for name, names in described["inputs"].items()}
    each = [evaluated(described, axes, recommender.calls(asked)) for asked in asked_for]
    return round(float(np.mean(each)))


def shape(recommender: Recommender, asked_for: Sequence[Asked]) -> tuple[float, float]:
    """Positions of a row that the runtime reads, on average, and which share of them is padding."""
    rows = positions = padded = 0
    for asked in asked_for:
        for arrays in recommender.calls(asked):
            read = [array for name, array in arrays.items() if name != "exclude" and array.dtype.kind == "i"]
            if not read:  # another tool, which is given texts
                return 0.0, 0.0
            count = max(len(array) for array in read if array.ndim > 1)
            rows += count
            positions += count * sum(array.shape[-1] for array in read)
            padded += sum(int((array == recommender.ranker.pad).sum()) for array in read)
    return round(positions / rows, 2), round(padded / positions, 4)
