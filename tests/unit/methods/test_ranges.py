"""Ranges from what passes by: as exact as bins are narrow, in memory that does not grow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.methods.ranges import BINS, Extremes, Histogram, least_error_range, percentile_range, smoothing_scales


@pytest.fixture
def values() -> Tensor:
    """Bell-shaped and off centre, a few far out: (rows, inputs)."""
    values = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    values[0, 0], values[1, 1] = 40.0, -15.0
    return values


def counted(values: Tensor, smoothing: Tensor | None = None) -> Histogram:
    """In batches of several sizes."""
    divided = values if smoothing is None else values / smoothing
    histogram = Histogram(float(divided.min()), float(divided.max()), smoothing)
    for part in values.split([1, 999, len(values) - 1000]):
        assert histogram(part) is part, "it looks and changes nothing"
    return histogram


def test_extremes_are_of_each_input_over_all_batches(values: Tensor) -> None:
    extremes = Extremes()
    for part in values.view(40, 100, 8).split([1, 19, 20]):
        assert extremes(part) is part
    assert extremes.low_I.equal(values.amin(dim=0))
    assert extremes.high_I.equal(values.amax(dim=0))
    assert extremes.range() == (-15.0, 40.0)
    scales = torch.tensor([10.0, 10.0, 1, 1, 1, 1, 1, 1])
    divided = values / scales
    assert extremes.range(scales) == pytest.approx((float(divided.min()), float(divided.max())))


def test_no_rows_say_nothing(values: Tensor) -> None:
    extremes = Extremes()
    for part in (values[:0], values, values[:0]):
        extremes(part)
    assert extremes.range() == (-15.0, 40.0)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 99.99])
def test_percentiles_are_within_a_bin_of_the_exact_ones(values: Tensor, percentile: float) -> None:
    histogram = counted(values)
    outside = (1 - percentile / 100) / 2
    # The value that so many are below, not one interpolated between two that lie far apart.
    low = np.quantile(values.numpy(), outside, method="inverted_cdf")
    high = np.quantile(values.numpy(), 1 - outside, method="inverted_cdf")
    width = 55 / BINS
    assert percentile_range(histogram, percentile) == pytest.approx((low, high), abs=1.01 * width)


def test_all_percent_are_the_extremes(values: Tensor) -> None:
    assert percentile_range(counted(values), 100) == pytest.approx((-15.0, 40.0), abs=1e-6)


def test_memory_does_not_grow(values: Tensor) -> None:
    histogram = counted(values)
    for _ in range(10):
        histogram(values)
    assert histogram.counts.shape == (BINS,)
    assert histogram.counts.sum() == 11 * values.numel()
    assert len(list(histogram.parameters())) == 0


def test_a_histogram_is_of_smoothed_values(values: Tensor) -> None:
    smoothing = torch.tensor([20.0, 20.0, 1, 1, 1, 1, 1, 1])
    plain, smoothed = counted(values / smoothing), counted(values, smoothing)
    assert smoothed.counts.sum() == values.numel()
    assert (smoothed.low, smoothed.high) == (plain.low, plain.high)
    assert (smoothed.counts - plain.counts).abs().sum() <= 8, "a value on an edge may fall to either side"


def test_one_value_alone_is_a_range() -> None:
    histogram = counted(torch.zeros(4000, 8))
    assert percentile_range(histogram, 99.0) == pytest.approx((0, 0), abs=1e-7)
    assert least_error_range(histogram) == pytest.approx((0, 0), abs=1e-7)


def _error(values: Tensor, low: float, high: float) -> float:
    """Mean squared error of rounding these values."""
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    integers = torch.clamp(torch.round(values / scale) + zero_point, 0, 255)
    return float(((integers - zero_point) * scale - values).square().mean())


def test_the_least_error_is_less_than_that_of_extremes_and_of_a_percentile(values: Tensor) -> None:
    values = (values[2:] / 2) ** 3  # long tails, as behind a GELU
    histogram = counted(values)
    low, high = least_error_range(histogram)
    ours = _error(values, low, high)
    assert ours < 0.97 * _error(values, float(values.min()), float(values.max()))
    assert ours < _error(values, *percentile_range(histogram, 99.0))
    assert ours <= 1.02 * min(_error(values, low * a, high * b) for a in (0.9, 1, 1.1) for b in (0.9, 1, 1.1))


def test_smoothing_scales_worked_out_by_hand() -> None:
    inputs, weights = torch.tensor([16.0, 4.0, 0.0, 1.0]), torch.tensor([1.0, 4.0, 1.0, 0.0])
    assert smoothing_scales(inputs, weights, 0.5).tolist() == [4.0, 1.0, 1.0, 1.0]
    assert smoothing_scales(inputs, weights, 1.0).tolist() == [16.0, 4.0, 1.0, 1.0]
    torch.testing.assert_close(smoothing_scales(inputs, weights, 0.0)[:2], torch.tensor([1.0, 0.25]))


def test_half_way_inputs_and_rows_have_one_range() -> None:
    inputs, weights = torch.tensor([16.0, 4.0, 9.0]), torch.tensor([1.0, 2.0, 0.1])
    scales = smoothing_scales(inputs, weights, 0.5)
    torch.testing.assert_close(inputs / scales, weights * scales)
