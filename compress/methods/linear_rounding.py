"""Static int8 products: how each linear map of a served graph is multiplied, said once for PyTorch and every target.

I: inputs of a map, O: its outputs. Integers follow Jacob et al. 2018 (arXiv 1712.05877): weights symmetric with a scale
per output or one for all, inputs unsigned with one scale and one zero point, so that a request alone, padded or in a
batch is rounded alike. Needs no torch: a graph is lowered with numpy alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.artifact import write_json
from compress.errors import ArtifactError

QUANTIZATION = "quantization.json"
"""Beside a stage's `model/`."""

VERSION = 2

LEVELS = 255
"""Steps of an unsigned byte."""

SIGNED_LEVELS = 127
"""Steps of a signed byte on either side of 0."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LinearRounding:
    """One map as integers: x / smoothing on the inputs' grid, times diag(smoothing) W on the weights' grid."""

    input_scale: float
    """Exact in float32."""
    input_zero_point: int
    """0 to 255; stands for 0.0."""
    weight_scales: Floats
    """(O); the same number in all places unless `per_channel`: targets need not tell the two apart."""
    smoothing: Floats | None = None
    """(I), what each input is divided by before it is rounded; None: by nothing."""
    weight_bits: int = 8
    per_channel: bool = True
    means: tuple[Floats, Floats] | None = None
    """(I) each: what inputs, smoothed, are on average before they are rounded, and after; see `bias_shift`."""

    @classmethod
    def of(
        cls,
        weight_IO: Floats,
        low: float,
        high: float,
        smoothing: Floats | None = None,
        *,
        weight_bits: int = 8,
        per_channel: bool = True,
    ) -> LinearRounding:
        """From a map's weight and the range that its inputs, smoothed, are to be told apart in."""
        none_O = np.empty(0, dtype=np.float32)
        grid = cls(*scale_and_zero_point(low, high), none_O, smoothing, weight_bits, per_channel)
        return grid.refitted(weight_IO)

    def refitted(self, weight_IO: Floats) -> LinearRounding:
        """The same for another weight: its grid ends at the largest magnitude, so that nothing is clipped."""
        largest_O = np.abs(_smoothed(weight_IO, self.smoothing)).max(axis=0).astype(np.float32)
        if not self.per_channel:
            largest_O = np.full_like(largest_O, largest_O.max(initial=0))
        return replace(self, weight_scales=np.maximum(largest_O, np.float32(1e-12)) / np.float32(self.limit))

    @property
    def limit(self) -> int:
        """The largest integer of a weight."""
        return int(2 ** (self.weight_bits - 1) - 1)

    def weight_integers(self, weight_IO: Floats) -> NDArray[np.int8]:
        """The smoothed weight on its grid: (I, O)."""
        integers_IO = np.rint(_smoothed(weight_IO, self.smoothing) / self.weight_scales)
        clipped_IO: NDArray[np.int8] = np.clip(integers_IO, -self.limit, self.limit).astype(np.int8)
        return clipped_IO

    def smoothed_weight(self, weight_IO: Floats) -> Floats:
        """What is multiplied with smoothed inputs."""
        return _smoothed(weight_IO, self.smoothing)

    @property
    def largest_input(self) -> float:
        """The larger end of its inputs' range."""
        return self.input_scale * max(self.input_zero_point, LEVELS - self.input_zero_point)

    @property
    def largest_weights(self) -> Floats:
        return self.weight_scales * np.float32(self.limit)

    def symmetric(self) -> LinearRounding:
        """The same ranges where a grid must lie evenly around 0: a step is a 127th of the larger end.

        Zero point 128 of an unsigned byte is 0 of a signed one. A step is one that float16 holds, the next larger:
        both sides of a product are then stepped alike in float16 and in float32.
        """
        scale = float(half_at_least(np.array(self.largest_input / SIGNED_LEVELS)))
        scales_O = half_at_least(self.weight_scales)
        means = self.means and (self.means[0], self.means[0])  # what this grid makes of inputs was not seen
        return replace(self, input_scale=scale, input_zero_point=128, weight_scales=scales_O, means=means)

    def bias_shift(self, weight_IO: Floats) -> Floats:
        """What a bias takes to give outputs the mean that they had before rounding: (O); zeros without `means`.

        Derived, not stored: a target with fewer bits has another one.

        Source: Nagel et al. 2019, section 4.2 (arXiv 1906.04721), the means seen on calibration data.
        """
        if self.means is None:
            return np.zeros_like(self.weight_scales)
        before_I, after_I = self.means
        rounded_IO = self.weight_integers(weight_IO) * self.weight_scales
        shift_O: Floats = before_I @ self.smoothed_weight(weight_IO) - after_I @ rounded_IO
        return shift_O.astype(np.float32)

    def with_weight_bits(self, bits: int) -> LinearRounding:
        """The same ranges in other steps."""
        limit = 2 ** (bits - 1) - 1
        return replace(self, weight_scales=self.weight_scales * np.float32(self.limit / limit), weight_bits=bits)

    def as_json(self) -> dict[str, Any]:
        return {
            "weight_bits": self.weight_bits,
            "per_channel": self.per_channel,
            "input_scale": self.input_scale,
            "input_zero_point": self.input_zero_point,
            "weight_scales": self.weight_scales.tolist(),
            "smoothing": None if self.smoothing is None else self.smoothing.tolist(),
            "means": None if self.means is None else [mean_I.tolist() for mean_I in self.means],
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> LinearRounding:
        smoothing, means = said["smoothing"], said["means"]
        return cls(
            float(said["input_scale"]),
            int(said["input_zero_point"]),
            np.array(said["weight_scales"], dtype=np.float32),
            None if smoothing is None else np.array(smoothing, dtype=np.float32),
            int(said["weight_bits"]),
            bool(said["per_channel"]),
            None if means is None else (np.array(means[0], dtype=np.float32), np.array(means[1], dtype=np.float32)),
        )


Maps = Mapping[str, LinearRounding | None]
"""By the name that the standard graph gives a map's weight; None: it stays in floating point."""


def scale_and_zero_point(low: float, high: float) -> tuple[float, int]:
    """The grid of an unsigned byte over a range, widened to hold 0.0: it must be exact, for padding is zeros.

    Returns: the scale, exact in float32, and the integer that stands for 0.0.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, 1e-8) / LEVELS))
    return scale, int(np.clip(np.rint(-low / scale), 0, LEVELS))


def half_at_least(scales: NDArray[Any]) -> Floats:
    """The next larger numbers that float16 holds with all its digits, or themselves: nothing that fitted is clipped."""
    halves = scales.astype(np.float16)
    up = np.where(halves < scales, np.nextafter(halves, np.float16(np.inf)), halves)
    return np.maximum(up, np.finfo(np.float16).tiny).astype(np.float32)


def write(maps: Maps, folder: Path) -> None:
    """Describes them in a stage's folder."""
    said = {name: None if each is None else each.as_json() for name, each in maps.items()}
    write_json(folder / QUANTIZATION, {"version": VERSION, "inputs": "uint8", "weights": "int8", "maps": said})


def read(path: Path) -> Maps:
    """Raises: ArtifactError if it is of another version."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["version"] != VERSION:
        raise ArtifactError(f"{path}: version {content['version']}, this RecPress reads {VERSION}; quantize again")
    return {name: None if said is None else LinearRounding.from_json(said) for name, said in content["maps"].items()}


def _smoothed(weight_IO: Floats, smoothing: Floats | None) -> Floats:
    return weight_IO if smoothing is None else weight_IO * smoothing[:, None]
