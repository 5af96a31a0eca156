"""How many requests a second a machine answers in time, when they arrive whether or not it has time for them.

Arrivals are open-loop: a Poisson process that waits for nobody, and a latency counts from the arrival, not from when a
worker takes it up. A loop that sends its next request when the last is answered never sees a queue, and so never sees
what users wait for ("coordinated omission").

MLPerf LoadGen (`mlcommons-loadgen` 6.0) draws the same arrivals and counts the same way, but its search takes some 40
seconds for a single limit, cannot end an overloaded trial early and says what it found in a log file; a table of some
thirty cells needs more. Nothing here is an MLPerf result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from threading import Event
from typing import Any

import numpy as np

from compress.metrics import Floats
from deploy.clock import Call

Json = dict[str, Any]
Worker = Sequence[Call]
"""Calls on different real requests, rotated, of a runtime that no other worker uses."""

REQUESTS = 500
"""In a trial, at least: its p99 stands on the five slowest."""

WARM_UP = 20
"""Requests of each worker that are not timed."""

LEAD = 0.005
"""Seconds from a trial's beginning to time zero of its schedule, for every worker to be there."""

TRIALS = 12
"""For one limit, at most."""

PRECISION = 1.05
"""The rate found holds, and this many times it does not."""

IDLE = 1 / 8
"""Share of the workers' capacity below which hardly a request waits: what is late there is late at any rate."""

SATURATED = 0.9
"""Share of the workers' capacity from which it is capacity that ends the search, and not the limit."""


@dataclass(frozen=True)
class Trial:
    """What became of the requests that arrived at one rate."""

    rate: float
    """Requests a second."""
    p50: float
    """Milliseconds from arrival to answer, as p99; both infinite where the trial was ended early."""
    p99: float


def sustained(workers: Sequence[Worker], limits_ms: Sequence[float], seconds: float, seed: int = 0) -> list[Json]:
    """The largest rate of requests whose p99 latency stays below each limit.

    A trial that has more late requests than its limit allows is ended at once, while an overloaded queue still grows.

    Args:
        workers: serve at the same time, each in a thread of its own; requests wait in one queue.
        seconds: of arrivals in each trial; more where `REQUESTS` take longer to arrive.
        seed: of the arrivals, the same for every rate, so that a higher rate is the same day in less time.

    Returns:
        limit_ms, requests_per_second, p50, p99, and `saturated`: whether the workers had no more to give, so that a
        laxer limit would gain next to nothing. Rate and latencies are null where even idle workers are late.

    """
    with ThreadPoolExecutor(len(workers)) as pool:
        serve(pool, workers, np.zeros(WARM_UP * len(workers)))
        capacity = measure_capacity(pool, workers, seconds)

        def attempt(rate: float, limit_ms: float) -> Trial:
            arrivals = poisson_arrivals(rate, max(REQUESTS, round(rate * seconds)), seed)
            latencies = serve(pool, workers, arrivals, limit_ms)
            if latencies is None:
                return Trial(rate, np.inf, np.inf)
            return Trial(rate, float(np.median(latencies)), float(np.quantile(latencies, 0.99)))

        found = largest_rates(attempt, capacity, limits_ms)
    return [
        {
            "limit_ms": limit,
            "requests_per_second": trial and trial.rate,
            "p50": trial and trial.p50,
            "p99": trial and trial.p99,
            "saturated": trial is not None and trial.rate >= SATURATED * capacity,
        }
        for limit, trial in found.items()
    ]


def largest_rates(
    attempt: Callable[[float, float], Trial], capacity: float, limits_ms: Sequence[float]
) -> dict[float, Trial | None]:
    """For each limit the trial of the largest rate whose p99 is below it: bracketed, then bisected on the log of rates.

    Args:
        attempt: makes a trial at a rate, which may end early and say infinity if its p99 misses the limit.
        capacity: requests a second that the workers answer when they never wait for one.

    """
    trials: list[Trial] = []
    found: dict[float, Trial | None] = dict.fromkeys(limits_ms)
    for limit in sorted(limits_ms, reverse=True):  # what misses a limit misses the smaller ones, so trials serve again
        for _ in range(TRIALS):
            failed, held = bracket(trials, limit, capacity)
            rate = (failed * held.rate) ** 0.5 if held else failed / 2
            settled = failed <= PRECISION * held.rate if held else rate < IDLE * capacity
            if settled:
                break
            trials.append(attempt(rate, limit))
        found[limit] = bracket(trials, limit, capacity)[1]
    return found


def bracket(trials: Sequence[Trial], limit_ms: float, capacity: float) -> tuple[float, Trial | None]:
    """The lowest rate known to miss the limit, and the highest trial below it, which holds it as all below it do.

    Capacity itself misses every limit, though a trial too short for its queue to grow would say otherwise.
    """
    failed = min((trial.rate for trial in trials if trial.p99 >= limit_ms), default=capacity)
    below = [trial for trial in trials if trial.rate < failed]
    return failed, max(below, key=lambda trial: trial.rate, default=None)


def poisson_arrivals(rate: float, requests: int, seed: int) -> Floats:
    """Seconds at which requests arrive; the same seed at another rate gives the same arrivals, stretched.

    The last comes at `requests / rate` exactly: a few hundred independent gaps would miss the rate by some percent.
    """
    arrivals: Floats = np.random.default_rng(seed).exponential(size=requests).cumsum()
    arrivals *= requests / rate / arrivals[-1]
    return arrivals


def serve(pool: Executor, workers: Sequence[Worker], arrivals: Floats, limit_ms: float | None = None) -> Floats | None:
    """Milliseconds from each request's arrival to its answer, in order of arrival.

    Args:
        pool: has a thread for each worker.
        arrivals: seconds from the beginning, ascending; a worker that is free takes the next.
        limit_ms: ends the trial, with None, once its 99th percentile cannot stay below.

    """
    latencies = np.empty(len(arrivals))
    queue = iter(enumerate(arrivals.tolist()))
    late, allowed = count(1), len(arrivals) // 100 + 1
    hopeless = Event()
    began = time.perf_counter() + LEAD

    def work(calls: Worker) -> None:
        for request, arrival in queue:  # shared, and each next() is one step under the interpreter's lock
            wait = began + arrival - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            calls[request % len(calls)]()
            latencies[request] = taken = (time.perf_counter() - began - arrival) * 1e3
            if limit_ms is not None and taken >= limit_ms and next(late) > allowed:
                hopeless.set()
            if hopeless.is_set():
                return

    for ended in [pool.submit(work, calls) for calls in workers]:
        ended.result()
    return None if hopeless.is_set() else latencies


def measure_capacity(pool: Executor, workers: Sequence[Worker], seconds: float) -> float:
    """Requests a second that the workers answer when the next is always there, for half of `seconds`."""
    turns = count()
    began = time.perf_counter()

    def work(calls: Worker) -> int:
        answered = 0
        while time.perf_counter() - began < seconds / 2:
            calls[next(turns) % len(calls)]()
            answered += 1
        return answered

    answered = sum(ended.result() for ended in [pool.submit(work, calls) for calls in workers])
    return answered / (time.perf_counter() - began)
