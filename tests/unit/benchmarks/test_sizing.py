"""Requests that wait for nobody: queues are counted, overload is noticed, and the rate found is the theory's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from benchmarks import sizing
from benchmarks.sizing import Trial, largest_rates, poisson_arrivals, serve, sustained
from compress.metrics import Floats

SERVICE = 0.002


class Sleeper:
    """A runtime whose service time is known, and that remembers what it really took."""

    def __init__(self, seconds: float = SERVICE) -> None:
        self.seconds = seconds
        self.taken: list[float] = []

    def __call__(self) -> None:
        started = time.perf_counter()
        time.sleep(self.seconds)
        self.taken.append(time.perf_counter() - started)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def first_come_first_served(arrivals: Floats, services: Floats, workers: int = 1) -> Floats:
    """Milliseconds from arrival to departure: Lindley's recursion, each request with the worker that is free first."""
    free = [0.0] * workers
    latencies = []
    for arrival, service in zip(arrivals.tolist(), services.tolist(), strict=True):
        free[0] = max(free[0], arrival) + service
        latencies.append((free[0] - arrival) * 1e3)
        free.sort()
    return np.array(latencies)


def test_arrivals_are_poisson_and_the_same_stretched_at_another_rate() -> None:
    arrivals = poisson_arrivals(200, 20_000, seed=0)
    gaps = np.diff(arrivals)
    assert arrivals[-1] == pytest.approx(20_000 / 200)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03), "an exponential's deviation is its mean"
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.03)
    np.testing.assert_allclose(poisson_arrivals(100, 20_000, seed=0), 2 * arrivals)
    assert not np.allclose(poisson_arrivals(200, 20_000, seed=1), arrivals)


def test_latencies_are_those_of_a_queue_with_the_same_arrivals(pool: ThreadPoolExecutor) -> None:
    sleeper = Sleeper()
    arrivals = poisson_arrivals(0.8 / SERVICE, 150, seed=3)
    latencies = serve(pool, [[sleeper]], arrivals)
    assert latencies is not None
    expected = first_come_first_served(arrivals, np.array(sleeper.taken))
    assert expected.max() > 3e3 * SERVICE, "a queue has formed"
    late = latencies - expected
    assert late.min() > 0, "nothing is answered before its time"
    assert np.median(np.abs(late - np.median(late))) < 0.5e3 * SERVICE, "but for what a busy machine adds to each"


def test_latency_counts_the_wait_that_a_closed_loop_would_not_see(pool: ThreadPoolExecutor) -> None:
    sleeper = Sleeper()
    latencies = serve(pool, [[sleeper]], np.zeros(20))
    assert latencies is not None
    assert (np.diff(latencies) > 0).all(), "all arrive at once, so each waits for those before it"
    assert latencies[-1] == pytest.approx(1e3 * sum(sleeper.taken), rel=0.5)
    assert latencies[-1] > 20e3 * SERVICE > 2e3 * max(sleeper.taken)


def test_two_workers_share_one_queue(pool: ThreadPoolExecutor) -> None:
    sleepers = [Sleeper(0.005), Sleeper(0.005)]  # long enough that neither is done before the other begins
    latencies = serve(pool, [[sleeper] for sleeper in sleepers], np.zeros(20))
    assert latencies is not None
    taken = [len(sleeper.taken) for sleeper in sleepers]
    assert sum(taken) == 20
    assert min(taken) >= 5
    assert latencies.max() < 0.8e3 * sum(sum(sleeper.taken) for sleeper in sleepers)


def test_an_overloaded_trial_ends_long_before_its_arrivals_do(pool: ThreadPoolExecutor) -> None:
    sleeper = Sleeper()
    arrivals = poisson_arrivals(4 / SERVICE, 2_000, seed=0)
    assert serve(pool, [[sleeper]], arrivals, limit_ms=20) is None
    assert len(sleeper.taken) < 100


def test_a_few_late_requests_end_no_trial(pool: ThreadPoolExecutor) -> None:
    slow_once = iter([0.05])
    arrivals = poisson_arrivals(100, 100, seed=0)
    latencies = serve(pool, [[lambda: time.sleep(next(slow_once, 0.0))]], arrivals, limit_ms=49)
    assert latencies is not None
    assert latencies.max() >= 49


def test_what_fails_in_a_worker_is_raised(pool: ThreadPoolExecutor) -> None:
    with pytest.raises(ZeroDivisionError):
        serve(pool, [[lambda: 1 / 0]], np.zeros(3))


def queue(rate: float, limit_ms: float) -> Trial:
    """A trial of a server that takes 10 ms for each request, worked out instead of waited for."""
    latencies = first_come_first_served(poisson_arrivals(rate, 50_000, 0), np.full(50_000, 0.010))
    p50, p99 = np.quantile(latencies, (0.5, 0.99)).tolist()
    return Trial(rate, p50, p99) if p99 < limit_ms else Trial(rate, np.inf, np.inf)


def waits_at_most(services: int, load: float) -> float:
    """Probability in a queue with random arrivals and a constant service. Source: Erlang 1909."""
    left = [services - served for served in range(services + 1)]
    return (1 - load) * sum(
        (-load * time) ** served / math.factorial(served) * math.exp(load * time) for served, time in enumerate(left)
    )


def test_the_search_finds_the_rate_of_theory() -> None:
    found = largest_rates(queue, capacity=100, limits_ms=(30, 80))
    assert list(found) == [30, 80]
    for limit, trial in found.items():
        assert trial is not None
        assert trial.p99 < limit <= queue(trial.rate * sizing.PRECISION, limit).p99
        load, waiting = trial.rate * 0.010, limit // 10 - 1
        assert waits_at_most(waiting, load * 1.07) < 0.99 < waits_at_most(waiting, load * 0.97)


def test_a_smaller_limit_learns_from_the_trials_of_a_larger_one() -> None:
    made: list[float] = []

    def attempt(rate: float, limit_ms: float) -> Trial:
        made.append(rate)
        return queue(rate, limit_ms)

    alone = largest_rates(attempt, 100, (31,))
    count = len(made)
    made.clear()
    both = largest_rates(attempt, 100, (30, 31))
    assert both[31] == alone[31]
    assert len(made) <= count + 2
    assert len(made) == len(set(made))


def test_a_limit_that_idle_workers_miss_has_no_rate() -> None:
    made: list[float] = []

    def attempt(rate: float, limit_ms: float) -> Trial:
        made.append(rate)
        return Trial(rate, 25.0, 30.0)

    assert largest_rates(attempt, 40, (20,)) == {20: None}
    assert made == [20, 10, 5]


def test_no_rate_beyond_the_workers_capacity_is_believed() -> None:
    """A trial that ends before its queue has grown holds any limit."""
    made: list[float] = []

    def attempt(rate: float, limit_ms: float) -> Trial:
        made.append(rate)
        return Trial(rate, 1.0, 2.0)

    trial = largest_rates(attempt, 40, (20,))[20]
    assert trial is not None
    assert 40 / sizing.PRECISION <= trial.rate == max(made) < 40


def test_a_server_sustains_less_than_its_service_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "REQUESTS", 150)
    tight, loose = sustained([[Sleeper(0.004)]], (1, 60), seconds=0.1)
    assert tight == {"limit_ms": 1, "requests_per_second": None, "p50": None, "p99": None, "saturated": False}
    assert 0.25 / 0.004 < loose["requests_per_second"] < 1 / 0.004
    assert 4 < loose["p50"] < loose["p99"] < 60
