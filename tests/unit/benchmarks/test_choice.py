"""Which candidate is served: chosen on validation users, latencies and files, never on test users."""

from __future__ import annotations

from benchmarks import choice
from report_fakes import Judged, chosen


def test_the_fastest_of_those_that_rank_well_enough_is_chosen() -> None:
    ndcg, size = {"a": 0.100, "b": 0.099, "c": 0.050}, {"a": 3.0, "b": 2.0, "c": 1.0}
    assert choice.choose(ndcg, {"a": 2.0, "b": 1.0, "c": 0.1}, size, 0.98) == "b"
    assert choice.choose(ndcg, {"a": 2.0, "b": 1.0, "c": 0.1}, size, 0.50) == "c"
    assert choice.choose(ndcg, {"a": 2.0, "b": 1.0, "c": 0.1}, size, 1.00) == "a"


def test_among_equally_fast_ones_the_smallest_file_is_chosen() -> None:
    ndcg, size = {"a": 0.1, "b": 0.1, "c": 0.1}, {"a": 3.0, "b": 2.0, "c": 1.0}
    assert choice.choose(ndcg, {"a": 1.00, "b": 1.04, "c": 1.06}, size, 0.98) == "b"
    assert choice.choose(ndcg, {"a": 1.00, "b": 1.06, "c": 1.06}, size, 0.98) == "a"
    assert choice.choose(ndcg, {"a": 1.04, "b": 1.00, "c": 1.02}, {"a": 1.04, "b": 1.0, "c": 1.0}, 0.98) == "a", "order"


def test_a_choice_says_why_the_others_lost() -> None:
    ndcg = dict.fromkeys("abcdef", 0.1) | {"c": 0.05}
    latency = {"a": 1.0, "b": 1.04, "c": 0.1, "d": 2.0, "e": 1.0, "f": 1.0}
    size = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 3.0, "f": 1.0}
    told = choice.Choice(ndcg, latency, size, 0.98, ["a"]).describe()
    assert {row["name"]: row["why"] for row in told["candidates"]} == {
        "a": "chosen",
        "b": "as fast and as small, listed later",
        "c": "ranks too low: 0.98 of the best, at least",
        "d": "slower",
        "e": "as fast, a larger file",
        "f": "as fast and as small, listed later",
    }
    assert told["int8"] is None
    rows = {row["name"]: row for row in told["candidates"]}
    assert (rows["d"]["times_chosen"], rows["c"]["validation_ratio"]) == (2.0, 0.5)


def test_floating_point_over_int8_is_one_line_with_the_numbers() -> None:
    ndcg, size = {"fp32": 0.1, "quick": 0.05, "slow": 0.1}, {"fp32": 1.0, "quick": 1.0, "slow": 1.0}
    latency = {"fp32": 1.0, "quick": 0.5, "slow": 1.25}
    told = choice.Choice(ndcg, latency, size, 0.98, ["quick", "slow"]).describe()["int8"]
    assert told == "int8 does not pay here: time over that of fp32, in floating point: slow 1.25x"
    told = choice.Choice(ndcg, latency, size, 0.98, ["quick"]).describe()["int8"]
    assert told == (
        "int8 does not pay here: none of quick keeps 0.98 of the best validation NDCG@10; fp32 stays in floating point"
    )
    assert choice.Choice(ndcg, latency, size, 0.98, []).describe()["int8"] is None
    assert choice.Choice(ndcg, latency, size, 0.40, ["quick"]).describe()["int8"] is None


def test_candidates_that_rank_nothing_still_leave_a_choice() -> None:
    assert choice.choose({"a": 0.0, "b": 0.0}, {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, 0.98) == "b"


def test_a_candidate_too_weak_on_validation_is_not_chosen(judged: Judged) -> None:
    assert chosen(judged()) == "int8"
    assert chosen(judged({"validation": {"int8": 40}})) == "table8"
    assert (
        chosen(judged({"validation": {"int8": 40}, "size_bytes": {"table8": 950_000}})) == "student"
    )  # as fast: within 5%


def test_the_choice_does_not_look_at_test(judged: Judged) -> None:
    worst = judged({"test": {"int8": 1, "student": 110}})
    assert chosen(worst) == chosen(judged()) == "int8"
    assert not worst["passed"]


def test_a_choice_is_made_on_all_seeds_together(judged: Judged) -> None:
    assert chosen(judged({"validation": {"int8": 50}})) == "table8"
    assert chosen(judged({"validation": {"int8": 50}}, {"validation": {"int8": 60}})) == "int8"
