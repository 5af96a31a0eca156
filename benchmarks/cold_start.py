"""Loads one variant in a fresh process and answers one request: what a restart of a server costs.

`python -m benchmarks.cold_start FOLDER THREADS LENGTH` prints JSON. FOLDER is a bundle, or a Hugging Face folder that
eager PyTorch runs; LENGTH is the request's history.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from deploy import bundle
from deploy.clock import once
from deploy.runtimes import Runtime


def main() -> int:
    folder, threads, length = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    load_ms, runtime = once(lambda: _load(folder, threads))
    history = np.zeros((1, length), dtype=np.int64)
    first_request_ms, _ = once(lambda: runtime(history, history))
    facts = {"load_ms": load_ms, "first_request_ms": first_request_ms, "peak_memory_bytes": peak_memory_bytes()}
    print(json.dumps(facts))
    return 0


def _load(folder: Path, threads: int) -> Runtime:
    if (folder / bundle.DESCRIPTION).exists():
        from deploy.recommender import Recommender

        return Recommender.load(folder, threads=threads).runtime
    from compress import models
    from deploy.runtimes.torch import TorchEager

    return TorchEager(*models.load(folder), top_k=10, threads=threads)


def peak_memory_bytes() -> int:
    """The most memory this process has held so far; 0 where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:  # no procfs: another operating system
        pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
