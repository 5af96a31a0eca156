"""Calls of few lengths, for runtimes that prepare for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.runtimes import Arrays, Outputs, PreparesShapes


class Fill(NamedTuple):
    """How an input may be longer than it has to be, for the same answer."""

    side: Literal["left", "right"]
    longest: int
    pad: int


class Buckets:
    """A runtime that is asked with lengths filled up to multiples of its step.

    Args: fills: by input; others are left as they are.
    """

    def __init__(self, runtime: PreparesShapes, fills: Mapping[str, Fill]) -> None:
        self.runtime = runtime
        self.name, self.threads = runtime.name, runtime.threads
        self._fills = fills

    def __call__(self, inputs: Arrays) -> Outputs:
        return self.runtime({name: self._filled(name, array) for name, array in inputs.items()})

    def _filled(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        if name not in self._fills:
            return array
        side, longest, pad = self._fills[name]
        step, length = self.runtime.step, array.shape[1]
        more = max(0, min(-(-length // step) * step, longest) - length)
        return np.pad(array, ((0, 0), (more, 0) if side == "left" else (0, more)), constant_values=pad)
