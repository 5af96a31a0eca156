"""Timing: warm-up, then every variant in turn again and again, raw samples kept."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Call = Callable[[], Any]

TIMED_PER_TURN = 4
WARM_UP_TURNS = 3


def interleave(
    variants: Mapping[str, Sequence[Call]], *, turns: int, seconds: float, label: str = "timing"
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each variant's calls, interleaved so that a slow moment of the machine hits all of them.

    A variant's turn is one call that is not timed (it finds the caches, and the other runtimes' waiting threads, as the
    last variant left them, which no server with one model ever does) and a few that are, each on another input than the
    call before it. The order is drawn anew for each turn: nobody always follows the same one.

    Args:
        variants: name -> calls on different real inputs, rotated; the k-th calls of all variants have the same input.
        turns: of each variant, at most.
        seconds: time limit for all variants together; at least five turns of each are made whatever it says.
    Returns: name -> (turns made x TIMED_PER_TURN,), one turn after the other.

    """
    names = list(variants)
    random = np.random.default_rng(0)
    samples: dict[str, list[float]] = {name: [] for name in names}
    position = 0
    deadline = float("inf")
    collecting = gc.isenabled()
    gc.disable()
    try:
        with tqdm(total=turns, desc=label, leave=False, disable=None) as bar:
            for turn in range(-WARM_UP_TURNS, turns):
                if turn == 0:
                    deadline = time.monotonic() + seconds
                if turn >= 5 and time.monotonic() > deadline:
                    break
                for place in random.permutation(len(names)):
                    name = names[place]
                    taken = _turn(variants[name], position)
                    if turn >= 0:
                        samples[name] += taken
                position += TIMED_PER_TURN
                bar.update(turn >= 0)
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(values) for name, values in samples.items()}


def _turn(calls: Sequence[Call], position: int) -> list[float]:
    calls[(position - 1) % len(calls)]()
    taken = []
    for step in range(TIMED_PER_TURN):
        call = calls[(position + step) % len(calls)]
        started = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - started) / 1e6)
    return taken


def undisturbed(samples: NDArray[np.float64]) -> float:
    """Their lower quartile: what else runs on the machine only ever adds."""
    return float(np.quantile(samples, 0.25))


def once(call: Call) -> tuple[float, Any]:
    """Milliseconds of a single call, and what it returned."""
    started = time.perf_counter_ns()
    returned = call()
    return (time.perf_counter_ns() - started) / 1e6, returned
