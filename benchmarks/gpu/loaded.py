"""A row that runs, and what its start took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu import machine
from benchmarks.gpu.rows import Row
from compress.data.histories import Asked
from compress.data.interactions import JUDGED
from compress.errors import RecPressError
from deploy.clock import once
from deploy.rankers import PLAIN, RANKERS
from deploy.recommender import Recommender


class Loaded:
    """A row that has answered its first request."""

    def __init__(self, row: Row, folder: Path, device: str, first: Asked) -> None:
        """Args: folder: of the model's bundle; first: what is asked first. Raises: whatever this machine lacks."""
        self.row = row
        self.device = device
        prepare_ms, _ = once(row.prepare)
        (load_ms, first_request_ms), stays, _ = machine.taking(device, lambda: self._start(folder, first))
        self.facts: dict[str, Any] = {
            **row.facts(),
            "prepare_ms": prepare_ms,
            "load_ms": load_ms,
            "first_request_ms": first_request_ms,
            "weights_bytes": self.runtime.weights_bytes,
            "memory_bytes": stays,
            "timings": [],
        }

    def _start(self, folder: Path, first: Asked) -> tuple[float, float]:
        load_ms, self.runtime = once(self.row.load)
        rankers = PLAIN if self.row.plain else RANKERS
        self.recommender = Recommender.load(folder, runtime=self.runtime, rankers=rankers)
        return load_ms, once(lambda: self.recommend(first))[0]

    def recommend(self, asked: Asked) -> NDArray[np.int64]:
        """As `evaluation` calls it."""
        return self.recommender.rank(asked)[0][:, :JUDGED]


def reason(error: Exception) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else ""
    return said if isinstance(error, RecPressError) else f"{type(error).__name__}: {said}".rstrip(": ")
