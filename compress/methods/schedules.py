"""Numbers that change as training goes on: a loss's weight, and its temperature."""

from __future__ import annotations

import math
from typing import Literal

from compress.recipe.losses import Loss, Ramp


def now(loss: Loss, name: Literal["weight", "temperature"], progress: float) -> float:
    """The loss's weight or temperature. Args: progress: share of training that is over, 0 to 1."""
    start: float = getattr(loss, name)
    return at(loss.schedule[name], start, progress) if name in loss.schedule else start


def at(ramp: Ramp, start: float, progress: float) -> float:
    """A number on its way from `start`. Args: progress: share of training that is over, 0 to 1."""
    if ramp.shape == "step":
        return ramp.to if progress >= ramp.begin else start
    share = min(1.0, max(0.0, (progress - ramp.begin) / (ramp.end - ramp.begin)))
    if ramp.shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return start + share * (ramp.to - start)
