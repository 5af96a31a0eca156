from __future__ import annotations

import gc
import time
from itertools import pairwise

import numpy as np

from deploy.clock import TIMED_PER_TURN, WARM_UP_TURNS, interleave, once


def test_variants_take_turns_and_see_the_same_inputs() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}
    order: list[str] = []

    def call(name: str, position: int) -> None:
        seen[name].append(position)
        order.append(name)

    calls = {name: [lambda name=name, at=at: call(name, at) for at in range(3)] for name in seen}
    samples = interleave(calls, turns=20, seconds=60)
    assert {len(values) for values in samples.values()} == {20 * TIMED_PER_TURN}
    assert seen["a"] == seen["b"]
    assert len(order) == 2 * (20 + WARM_UP_TURNS) * (TIMED_PER_TURN + 1)
    block = TIMED_PER_TURN + 1
    turns = [seen["a"][start : start + block] for start in range(0, len(seen["a"]), block)]
    assert all(before != after for turn in turns for before, after in pairwise(turn)), "nobody answers what is cached"
    firsts = [order[start] for start in range(0, len(order), 2 * block)]
    after_a = {second for first, second in pairwise(order[::block]) if first == "a"}
    assert {"a", "b"} == set(firsts) == after_a, "who begins is drawn"


def test_samples_are_milliseconds() -> None:
    samples = interleave({"sleep": [lambda: time.sleep(0.002)]}, turns=5, seconds=5)["sleep"]
    assert 2 <= np.median(samples) < 4


def test_the_time_limit_holds_and_five_turns_are_made_anyway() -> None:
    samples = interleave({"sleep": [lambda: time.sleep(0.001)]}, turns=10_000, seconds=0.001)["sleep"]
    assert len(samples) == 5 * TIMED_PER_TURN


def test_the_collector_is_off_while_timing_and_on_afterwards() -> None:
    states: list[bool] = []
    interleave({"a": [lambda: states.append(gc.isenabled())]}, turns=5, seconds=1)
    assert not any(states)
    assert gc.isenabled()


def test_once_returns_what_the_call_returned() -> None:
    taken, value = once(lambda: 42)
    assert value == 42
    assert taken >= 0
