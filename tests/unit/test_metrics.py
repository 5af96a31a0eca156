"""Metrics against ir-measures and by hand; intervals against what they promise."""

from __future__ import annotations

from collections.abc import Iterator

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, Measure, R, nDCG

from compress import metrics
from compress.metrics import Estimate, Floats, compare, estimate, overlap, quantile_interval, ranking_metrics

PEERS: dict[str, Measure] = {"ndcg@10": nDCG @ 10, "recall@10": R @ 10, "mrr@10": RR @ 10, "recall@100": R @ 100}


def by_ir_measures(top: np.ndarray, targets: np.ndarray, name: str) -> list[float]:
    ranks = enumerate(top.tolist())
    run = {str(user): {str(item): float(-rank) for rank, item in enumerate(row)} for user, row in ranks}
    relevant = {str(user): {str(item): 1} for user, item in enumerate(targets.tolist())}
    found = {line.query_id: line.value for line in ir_measures.iter_calc([PEERS[name]], relevant, run)}
    return [found[str(user)] for user in range(len(targets))]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(("items", "length"), [(30, 10), (30, 15), (200, 100), (200, 120)])  # some too long to count
def test_metrics_agree_with_ir_measures_user_by_user(name: str, items: int, length: int) -> None:
    random = np.random.default_rng(length)
    top = np.stack([random.permutation(items)[:length] for _ in range(300)])
    targets = random.integers(items, size=300)
    found = ranking_metrics(top, targets)
    if name == "recall@100" and length < 100:
        assert name not in found
    else:
        np.testing.assert_allclose(found[name], by_ir_measures(top, targets, name), atol=1e-12)


def test_metrics_of_a_table_worked_out_by_hand() -> None:
    top = np.tile(np.arange(12), (5, 1))
    found = ranking_metrics(top, np.array([0, 1, 2, 9, 10]))  # ranks 1, 2, 3, 10, and too late
    assert found["ndcg@10"].tolist() == pytest.approx([1, 1 / np.log2(3), 0.5, 1 / np.log2(11), 0])
    assert found["recall@10"].tolist() == [1, 1, 1, 1, 0]
    assert found["mrr@10"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 10, 0])


def test_overlap_counts_common_items_whatever_their_order() -> None:
    ours = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    theirs = np.array([[4, 3, 2, 1], [5, 6, 7, 1], [5, 6, 7, 8]])
    assert overlap(ours, theirs).tolist() == [1, 0.25, 0]


def test_users_whom_nobody_asked_have_no_overlap() -> None:
    ours = np.array([[1, 2], [-1, -1], [3, 4]])
    assert overlap(ours, np.array([[2, 1], [-1, -1], [4, 5]])).tolist() == [1, 0.5]


def hits(users: int, seed: int = 0) -> Floats:
    """NDCG-like values: mostly zero, else one of ten gains."""
    random = np.random.default_rng(seed)
    return np.where(random.random(users) < 0.3, 1 / np.log2(random.integers(2, 12, size=users)), 0.0)


def width(interval: Estimate) -> float:
    return interval.high - interval.low


@pytest.mark.parametrize("users", [50, 999])
def test_a_model_is_exactly_as_good_as_itself(users: int) -> None:
    same = compare(hits(users), hits(users))
    assert same.ratio == Estimate(1.0, 1.0, 1.0)
    assert same.difference == Estimate(0.0, 0.0, 0.0)


def test_a_comparison_worked_out_by_hand() -> None:
    found = compare(np.array([0.5, 0.1, 0.0]), np.array([1.0, 0.2, 0.3]))
    assert found.ratio.mean == pytest.approx(0.4)
    assert found.difference.mean == pytest.approx(-0.3)


def test_a_constant_factor_is_known_without_doubt() -> None:
    found = compare(0.8 * hits(200), hits(200))
    assert (found.ratio.mean, found.ratio.low, found.ratio.high) == pytest.approx((0.8, 0.8, 0.8))
    assert width(found.difference) > 0


def test_swapping_the_models_turns_the_intervals_around() -> None:
    ours, theirs = hits(300), 0.5 * hits(300) + 0.5 * hits(300, seed=1)
    one, other = compare(ours, theirs), compare(theirs, ours)
    assert one.difference.low == pytest.approx(-other.difference.high)
    assert one.ratio.low == pytest.approx(1 / other.ratio.high, rel=1e-3)


def test_pairing_narrows_the_interval_of_models_that_agree() -> None:
    theirs = hits(400)
    ours = np.clip(0.95 * theirs + 0.05 * hits(400, seed=1), 0, 1)
    unpaired = np.hypot(width(estimate(ours)), width(estimate(theirs)))
    assert width(compare(ours, theirs).difference) < 0.25 * unpaired


def test_pairing_does_not_narrow_the_interval_of_models_that_have_nothing_in_common() -> None:
    ours, theirs = hits(400), hits(400, seed=1)
    unpaired = np.hypot(width(estimate(ours)), width(estimate(theirs)))
    assert width(compare(ours, theirs).difference) == pytest.approx(unpaired, rel=0.2)


def experiments(count: int = 200, users: int = 120) -> Iterator[tuple[Floats, Floats]]:
    """Two models with expected values 0.43 and 0.5 on users drawn anew."""
    random = np.random.default_rng(0)
    for _ in range(count):
        theirs = random.random(users)
        yield 0.8 * theirs + 0.06 * random.random(users), theirs


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truths = {"mean": 0.43, "ratio": 0.86, "difference": -0.07}
    covered = dict.fromkeys(truths, 0)
    for ours, theirs in experiments():
        found = compare(ours, theirs)
        intervals = {"mean": estimate(ours), "ratio": found.ratio, "difference": found.difference}
        for name, interval in intervals.items():
            covered[name] += interval.low <= truths[name] <= interval.high
    assert all(0.88 <= count / 200 <= 1 for count in covered.values()), covered


def test_an_interval_narrows_with_the_root_of_the_users() -> None:
    values = hits(300)
    many = np.tile(values, 16)
    assert width(estimate(many)) == pytest.approx(width(estimate(values)) / 4, rel=0.15)


def test_the_same_users_with_another_seed_are_no_new_users() -> None:
    ours, theirs = hits(300), hits(300, seed=1)
    tripled = compare(np.tile(ours, (3, 1)), np.tile(theirs, (3, 1)))
    assert estimate(np.tile(ours, (3, 1))).low == pytest.approx(estimate(ours).low)
    assert tripled.difference.high == pytest.approx(compare(ours, theirs).difference.high)


def test_seeds_are_averaged_within_each_user() -> None:
    ours = np.stack([hits(300, seed=seed) for seed in range(3)])
    assert estimate(ours) == estimate(ours.mean(axis=0))
    assert compare(ours, hits(300)) == compare(ours.mean(axis=0), hits(300))


def test_models_may_have_different_numbers_of_seeds() -> None:
    found = compare(np.stack([hits(300), hits(300)]), hits(300))
    assert found.ratio == Estimate(1.0, 1.0, 1.0)


def test_resampling_is_the_same_every_time() -> None:
    assert compare(hits(99), hits(99, seed=1)) == compare(hits(99), hits(99, seed=1))
    assert compare(hits(99), hits(99, seed=1), seed=1) != compare(hits(99), hits(99, seed=1))


def test_different_users_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 users against 4"):
        compare(np.ones(3), np.ones(4))


def test_a_reference_without_a_hit_is_an_error() -> None:
    with pytest.raises(ValueError, match="the reference scores zero for every user"):
        compare(np.ones(3), np.zeros(3))


def test_a_reference_with_one_hit_leaves_the_ratio_open_and_finite() -> None:
    reference = np.zeros(20)
    reference[0] = 1
    found = compare(np.full(20, 0.5), reference).ratio
    assert np.isfinite([found.mean, found.low, found.high]).all()
    assert found.low < found.mean < found.high


def test_a_ratio_of_medians_worked_out_by_hand() -> None:
    constant = metrics.ratio_of_medians([np.full(9, 6.0)], [np.full(7, 2.0)])
    assert (constant.mean, constant.low, constant.high) == pytest.approx((3, 3, 3))
    skewed = metrics.ratio_of_medians([np.array([1.0, 6.0, 100.0])], [np.array([2.0, 2.0, 9.0])])
    assert skewed.mean == pytest.approx(3)


def test_runs_on_machines_of_different_speed_are_not_mixed() -> None:
    slow, fast = [np.full(9, 6.0), np.full(9, 60.0)], [np.full(9, 2.0), np.full(9, 5.0)]
    found = metrics.ratio_of_medians(slow, fast)
    assert (found.mean, found.low, found.high) == pytest.approx((6, 6, 6))  # of 3 and 12; pooled medians say 9.4


def test_a_ratio_of_medians_has_no_unit_and_covers_the_truth() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        slow, fast = 10 * random.lognormal(sigma=0.3, size=60), random.lognormal(sigma=0.3, size=90)
        found = metrics.ratio_of_medians([slow], [fast])
        covered += found.low <= 10 <= found.high
    assert 88 <= covered <= 100
    in_seconds = metrics.ratio_of_medians([slow / 1e3], [fast / 1e3])
    assert (in_seconds.mean, in_seconds.low) == pytest.approx((found.mean, found.low))


def test_samples_of_one_moment_are_drawn_together() -> None:
    """Four calls of a turn that all take as long are one observation: the interval is that of the turns."""
    turns = np.random.default_rng(0).lognormal(size=40)
    calls = np.repeat(turns, 4)
    assert quantile_interval(calls, 0.5, turn=4) == pytest.approx(quantile_interval(turns, 0.5))
    ratio = metrics.ratio_of_medians([calls], [np.full(8, 1.0)], turn=4)
    assert ratio == pytest.approx(metrics.ratio_of_medians([turns], [np.full(2, 1.0)]))
    naive = metrics.ratio_of_medians([calls], [np.full(8, 1.0)])
    assert ratio.high - ratio.low > 1.2 * (naive.high - naive.low)
    with pytest.raises(ValueError, match="reshape"):
        quantile_interval(calls[:-1], 0.5, turn=4)


def test_a_quantile_comes_with_its_interval() -> None:
    values = np.arange(101.0)
    found = quantile_interval(values, 0.95)
    assert found.mean == 95
    assert 85 < found.low < 95 < found.high <= 100
    assert quantile_interval(np.full(5, 3.0), 0.99) == Estimate(3.0, 3.0, 3.0)
