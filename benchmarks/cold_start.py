"""Loads one variant in a fresh process and answers one request: what a restart of a server costs.

`python -m benchmarks.cold_start BEGUN THREADS BUNDLE [MODEL]` prints JSON. BEGUN: when this process was asked for, in
nanoseconds of the monotonic clock, which all processes share: interpreter and imports are part of a start. MODEL is a
Hugging Face folder that eager PyTorch runs instead of the bundle's graph.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from compress.data.histories import Asked
from deploy import bundle
from deploy.clock import once
from deploy.recommender import Recommender

HISTORY, CANDIDATES = 20, 100
"""Items of the request."""


def main() -> int:
    begun, threads, folder, *model = int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:])
    recommender = _load(threads, folder, *model)
    load_ms = (time.monotonic_ns() - begun) / 1e6
    first_request_ms, _ = once(lambda: first_request(recommender))
    facts = {"load_ms": load_ms, "first_request_ms": first_request_ms, "peak_memory_bytes": peak_memory_bytes()}
    print(json.dumps(facts))
    return 0


def first_request(recommender: Recommender) -> None:
    """A history of the first items, and the last ones as candidates."""
    items = len(recommender.item_ids)
    found = dict.fromkeys(range(max(0, items - CANDIDATES), items), 0.0)
    recommender.rank(
        Asked([np.arange(min(HISTORY, items))], [np.arange(max(0, items - CANDIDATES))], first_stage=[found])
    )


def _load(threads: int, folder: Path, model: Path | None = None) -> Recommender:
    if model is None:
        return Recommender.load(folder, threads=threads)
    from compress import models
    from deploy.rankers import PLAIN
    from deploy.runtimes.torch import TorchEager

    top_k = bundle.read(folder).top_k
    runtime = TorchEager(*models.load(model), top_k, threads)
    return Recommender.load(folder, runtime=runtime, rankers=PLAIN)


def peak_memory_bytes(process: int | str = "self") -> int:
    """The most memory a process has held so far; 0 where the system does not tell."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:  # no procfs: another operating system
        pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
