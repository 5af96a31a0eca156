"""Runtimes: one call, named arrays in and arrays out, whatever executes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

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
