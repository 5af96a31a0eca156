"""What linear maps read, seen in passing and kept in a few numbers, and the range that rounding is to cover.

I: inputs of a map. Calibration runs twice: smallest and largest of each input first, then, where these alone do not
decide, a histogram between them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.methods.fake_quantization import FakeQuantized
from compress.methods.linear_rounding import LEVELS, Floats

BINS = 8192
"""Of a histogram, however much it counts: 32 to a step of a byte."""

SHARES = np.linspace(0.02, 1, 99)
"""Of a range's ends, tried for the least error."""


class Extremes(nn.Module):
    """Lets pass what a map reads; keeps the smallest and largest value of each input, and how often there was one."""

    def __init__(self) -> None:
        super().__init__()
        self.low_I = self.high_I = torch.empty(0)
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        self.rows += len(rows)
        if len(rows):
            low_I, high_I = rows.amin(dim=0), rows.amax(dim=0)
            seen = bool(self.low_I.numel())
            self.low_I = torch.minimum(self.low_I, low_I) if seen else low_I
            self.high_I = torch.maximum(self.high_I, high_I) if seen else high_I
        return x

    def range(self, smoothing_I: Tensor | None = None) -> tuple[float, float]:
        """Of all inputs together, divided by their scales if there are any."""
        ends = (self.low_I, self.high_I)
        low_I, high_I = ends if smoothing_I is None else (each / smoothing_I for each in ends)
        return float(low_I.min()), float(high_I.max())


class Histogram(nn.Module):
    """Lets pass what a map reads; counts its values, smoothed, in BINS bins between two ends.

    Args:
        low: below every value, or equal.
        high: above every value, or equal.
        smoothing_I: what inputs are divided by; None: nothing.

    """

    def __init__(self, low: float, high: float, smoothing_I: Tensor | None = None) -> None:
        super().__init__()
        self.low, self.high = low, max(high, low + 1e-8)
        self.smoothing_I = smoothing_I
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        smoothed = x if self.smoothing_I is None else x / self.smoothing_I
        self.counts += torch.histc(smoothed.clamp(self.low, self.high).float(), BINS, self.low, self.high)
        return x

    @property
    def edges(self) -> NDArray[np.float64]:
        """(BINS + 1)."""
        return np.linspace(self.low, self.high, BINS + 1)


class Means(nn.Module):
    """Lets pass what a map reads; keeps the mean of each input, smoothed, before it is rounded and after.

    Args:
        rounded: how it is.

    """

    def __init__(self, rounded: FakeQuantized) -> None:
        super().__init__()
        self.rounded = rounded
        self.rows = 0
        self.before_I = self.after_I = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        smoothed = rows if self.rounded.inverse_I is None else rows * self.rounded.inverse_I
        self.rows += len(rows)
        self.before_I = self.before_I + smoothed.double().sum(dim=0)
        self.after_I = self.after_I + self.rounded(rows).double().sum(dim=0)
        return x

    def means(self) -> tuple[Floats, Floats]:
        """(I) each."""
        before_I, after_I = (sums.numpy() / max(1, self.rows) for sums in (self.before_I, self.after_I))
        return before_I.astype(np.float32), after_I.astype(np.float32)


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The middle `percentile` percent of all values; each end within a bin of the exact one.

    Args:
        percentile: above 0, up to 100.

    """
    below = np.concatenate([[0.0], np.cumsum(histogram.counts.numpy())])
    outside = (1 - percentile / 100) / 2
    low, high = np.interp(np.array([outside, 1 - outside]) * below[-1], below, histogram.edges)
    return float(low), float(high)


def least_error_range(histogram: Histogram) -> tuple[float, float]:
    """The range whose 255 steps leave the least squared error, of values in it by rounding, outside by clipping.

    One end is sought with the other fixed, then that one.
    """
    counts = histogram.counts.numpy()
    centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    filled = counts > 0
    counts, centres = counts[filled], centres[filled]
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)

    def error(low: float, high: float) -> float:
        step = max(high - low, 1e-8) / LEVELS
        zero_point = np.rint(-low / step)
        rounded = (np.clip(np.rint(centres / step) + zero_point, 0, LEVELS) - zero_point) * step
        return float((counts * (rounded - centres) ** 2).sum())

    high = min((high * share for share in SHARES), key=lambda end: error(low, end))
    low = min((low * share for share in SHARES), key=lambda end: error(end, high))
    return float(low), float(high)


def smoothing_scales(input_I: Tensor, weight_I: Tensor, strength: float) -> Tensor:
    """What moves range from a map's inputs to its weight: x / s meets diag(s) W, the same product.

    Args:
        input_I: largest magnitude of each input.
        weight_I: of each row of the weight, (in, out).
        strength: 0 to 1, how much of the inputs' range moves.
    Returns: (I); 1 where an input or its row is zero, nothing is to be gained there.
    Source: Xiao et al. 2022, section 4 (arXiv 2211.10438).

    """
    scales_I = input_I**strength / weight_I.clamp(min=1e-12) ** (1 - strength)
    return torch.where((input_I > 1e-12) & (weight_I > 1e-12), scales_I.clamp(1e-5, 1e5), 1.0)
