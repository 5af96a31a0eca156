from __future__ import annotations

from typing import Any

from benchmarks.learning import describe_training


def told(*ndcg: float, **facts: Any) -> dict[str, Any]:
    curve = {"curve": [[10 * (epoch + 1), value] for epoch, value in enumerate(ndcg)]} if ndcg else {}
    return {"steps": 40, "train_seconds": 8.0, "peak_memory_bytes": 100, **curve, **facts}


def test_a_model_has_converged_at_the_first_epoch_within_two_percent_of_the_last() -> None:
    found = describe_training([told(0.05, 0.0981, 0.09, 0.1)])
    assert found
    assert found["converged"] == {"steps": 20, "seconds": 4.0}


def test_seeds_are_pooled_before_the_curve_is_read() -> None:
    found = describe_training([told(0.5, 0.5, 1.0, 1.0), told(0.0, 0.25, 1.0, 1.0, train_seconds=16.0)])
    assert found
    assert found["curve"] == [[10, 0.25], [20, 0.375], [30, 1.0], [40, 1.0]]
    assert found["converged"] == {"steps": 30, "seconds": 9.0}
    assert found["seconds"] == 12.0


def test_a_seed_that_stopped_early_shortens_the_curve() -> None:
    found = describe_training([told(0.1, 0.2), told(0.1, 0.2, 0.3)])
    assert found
    assert len(found["curve"]) == 2


def test_without_a_curve_nothing_is_said_of_convergence() -> None:
    found = describe_training([told(teacher_seconds=3.0)])
    assert found
    assert (found["curve"], found["converged"], found["teacher_seconds"]) == ([], None, 3.0)


def test_what_trains_nothing_says_nothing() -> None:
    assert describe_training([None, None]) is None
