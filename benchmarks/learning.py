"""How fast variants learned: what training took, and when they were as good as they became."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Json = dict[str, Any]

CONVERGED = 0.98
"""Share of the last NDCG@10 at which a model has learned what it will."""


def describe_training(seeds: Sequence[Json | None]) -> Json | None:
    """The mean of what each seed's stage says of its training; None of a variant whose stage trains nothing.

    The curve is of means, pairs of a step and NDCG@10 of validation users; without one, `converged` is None.
    """
    told = [facts for facts in seeds if facts]
    if not told:
        return None
    steps = told[0]["steps"]  # the same data and recipe
    seconds, teacher_seconds, memory = (
        float(np.mean([facts.get(key, 0) for facts in told]))
        for key in ("train_seconds", "teacher_seconds", "peak_memory_bytes")
    )
    curves = [facts["curve"] for facts in told if "curve" in facts]
    shared = min(map(len, curves), default=0)  # one that stopped early ends sooner
    curve = np.mean([points[:shared] for points in curves], axis=0).tolist() if shared else []
    step = next((step for step, ndcg in curve if ndcg >= CONVERGED * curve[-1][1]), None)
    return {
        "steps": steps,
        "seconds": seconds,
        "teacher_seconds": teacher_seconds,
        "peak_memory_bytes": round(memory),
        "curve": curve,
        "converged": step and {"steps": round(step), "seconds": seconds * step / steps},
    }
