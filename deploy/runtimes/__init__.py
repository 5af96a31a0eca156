"""Runtimes: one call, named arrays in and arrays out, whatever executes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
Arrays = Mapping[str, Ids | Scores]
Outputs = tuple[NDArray[Any], ...]


class Runtime(Protocol):
    """Something that executes a served graph."""

    name: str
    """As in a report's `runtime`: torch-eager, onnxruntime-cpu, ..."""
    threads: int

    def __call__(self, inputs: Arrays) -> Outputs:
        """The graph's outputs, in its order, from its inputs, by name: see `ServedGraph.axes` and `outputs`."""


@runtime_checkable
class MadeBefore(Protocol):
    """A runtime of what was made of a bundle earlier, and lies elsewhere: the bundle may be another by now."""

    name: str
    standard_sha256: str | None
    """Of that bundle's standard graph; None if nobody says."""


@runtime_checkable
class PreparesShapes(Protocol):
    """A runtime that prepares for each shape of call when it first comes: better some padding than many shapes."""

    name: str
    threads: int
    step: int
    """Lengths of a call are best multiples of this."""

    def __call__(self, inputs: Arrays) -> Outputs:
        """See `Runtime`."""


class DeviceRuntime(Runtime, Protocol):
    """A runtime whose arrays have to go to a device and back: a call has both ways in it."""

    weights_bytes: int
    """Of the weights, or of the file that holds them and little else."""

    def device_ms(self, inputs: Arrays, repeats: int = 20) -> float:
        """Milliseconds of a call on the device alone, inputs and outputs staying there: the mean of some in a row."""
