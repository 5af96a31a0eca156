"""From the standard graph to a target's own dialect, one file a target."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deploy.lowering import onnxruntime_cpu

if TYPE_CHECKING:  # a graph is lowered without torch
    from compress.methods.rounding import Rounding


class Lower(Protocol):
    """Writes a target's copy of a standard graph."""

    def __call__(
        self, graph: Path, lowered: Path, rounding: Rounding, linear_weights: Collection[str], *, vnni: bool
    ) -> None: ...


LOWERINGS: dict[str, Lower] = {
    "onnxruntime-cpu": onnxruntime_cpu.lower,
}
