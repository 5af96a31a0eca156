"""An exported graph answers as the PyTorch model it was made from, on real histories of several shapes, or fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.data.histories import MASKED, Asked
from compress.data.interactions import NOBODY
from compress.errors import ParityError
from compress.metrics import overlap
from deploy.runtimes import Ids, Scores

if TYPE_CHECKING:
    from compress.data.interactions import Interactions
    from deploy.recommender import Recommender

GAP = 1e-4
"""Two items whose scores differ by less may change places."""

SHAPES = (1, 3, 32)
"""Batch sizes; lengths are the histories' own."""


@dataclass(frozen=True)
class Parity:
    """How two ways to answer agree on the same requests."""

    requests: int
    same_top_k: float
    """Share of requests with the same items in the same order, near-ties excused."""
    overlap: float
    """Mean share of common items."""
    max_score_error: float
    """Largest difference of scores rank by rank."""

    def as_metrics(self) -> dict[str, Any]:
        return {name: round(value, 8) for name, value in asdict(self).items()}


USERS = 64

Rank = Callable[[Asked], tuple[Ids, Scores]]
"""As `Recommender.rank`."""


def requests(interactions: Interactions, recommender: Recommender) -> Asked:
    """Validation users; the fewer the more calls one takes."""
    users = interactions.users("validation")[interactions.within_reach("validation")]
    count = max(1, USERS // len(recommender.calls(interactions.asked("validation", users[:1]))))
    return interactions.asked("validation", users[:: max(1, len(users) // count)][:count])


def compare(ours: Rank, reference: Rank, asked: Asked) -> Parity:
    """Asks both about the same batches."""
    same: list[NDArray[np.bool_]] = []
    shared: list[NDArray[np.float64]] = []
    error = 0.0
    for rows in batches(len(asked)):
        some = asked.of(rows)
        items, scores = ours(some)
        expected_items, expected_scores = reference(some)
        real = expected_scores > MASKED / 2  # a tiny catalogue runs out of unseen items
        same.append(_same_order(items, scores, expected_items, expected_scores))
        answers = [
            np.where(found > MASKED / 2, ids, NOBODY)[:, :10]
            for ids, found in ((items, scores), (expected_items, expected_scores))
        ]
        shared.append(overlap(*answers))
        error = max(error, float(np.abs(scores - expected_scores)[real].max(initial=0)))
    agreeing = np.concatenate(same)
    return Parity(len(agreeing), float(agreeing.mean()), float(np.concatenate(shared).mean()), error)


OTHER_NUMBERS, SAME_INTEGERS = 0.5, 0.9
"""Least overlap of what is not exact.

Half of the items in common is far above chance and far below any working int8. Where both sides round alike, answers
differ by single steps: a difference of 1e-6 in floating point that falls on either side of a half.
"""


def check(parity: Parity, graph: str, *, exact: bool, least_overlap: float = OTHER_NUMBERS) -> None:
    """Raises ParityError unless the graph answers as its model.

    Args:
        exact: floating point with the same numbers; else integers, whose answers may differ but must be of the same
            recommender.
        least_overlap: mean share of common items of one that is not exact.

    """
    if exact and (parity.same_top_k < 1 or parity.max_score_error > GAP):
        raise ParityError(
            f"{graph}: {1 - parity.same_top_k:.1%} of {parity.requests} requests get other items than in PyTorch, "
            f"scores differ by up to {parity.max_score_error:.2g} (allowed {GAP}); nothing was exported"
        )
    if not exact and parity.overlap < least_overlap:
        raise ParityError(
            f"{graph}: int8 shares only {parity.overlap:.0%} of its items with PyTorch (at least {least_overlap:.0%}); "
            "use linear: none in the quantize stage"
        )


def batches(count: int) -> list[range]:
    """The same histories one by one, in threes and in one large batch, so that padding and batch mates differ."""
    return [range(start, min(start + size, count)) for size in SHAPES for start in range(0, min(count, 2 * size), size)]


def _same_order(items: Ids, scores: Scores, expected_items: Ids, expected_scores: Scores) -> NDArray[np.bool_]:
    """Per request: wherever the items differ, the scores at that rank are a near-tie."""
    close = np.abs(np.diff(expected_scores, axis=1)) < GAP  # ranks r and r + 1
    edge = np.ones((len(items), 1), dtype=bool)  # what would come after the last rank is not known
    near_tie = np.hstack([close, edge]) | np.hstack([~edge, close])
    same_score = np.abs(scores - expected_scores) < GAP
    agreeing: NDArray[np.bool_] = ((items == expected_items) | (near_tie & same_score)).all(axis=1)
    return agreeing
