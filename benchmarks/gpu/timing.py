"""How long each row takes for one shape of request: by the clock with both transfers, and on the device alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu import machine
from benchmarks.gpu.loaded import Loaded, reason
from benchmarks.workload import CALLS, flops, requests
from compress.artifact import Artifact
from compress.data.histories import Asked
from compress.data.interactions import Interactions
from compress.metrics import ratio_of_medians
from deploy.clock import TIMED_PER_TURN, Call, interleave

DIFFERENT = 8
"""Real requests that timings rotate through; each is asked once before, so that what is recorded or chosen for its
shape is."""

TURNS = 60

COUNTED = 4
"""Requests whose time on the device alone is averaged."""

PEAKS = {"nf4": "fp16"}
"""What multiplies a precision that has no peak of its own: 4 bits are widened first."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What is asked at once."""

    batch: int
    length: int | None
    """Items of each history; None: as they are."""

    def __str__(self) -> str:
        return f"batch {self.batch}" + (f", histories of {self.length}" if self.length else "")

    @property
    def key(self) -> str:
        """In the file of samples."""
        return f"{self.batch}/{self.length or 'as-they-are'}"


def timed(
    rows: Sequence[Loaded],
    export: Artifact,
    interactions: Interactions,
    shape: Shape,
    seconds: float,
    peaks: Mapping[str, Any],
) -> tuple[dict[str, NDArray[np.float64]], list[Json]]:
    """Adds an entry to the timings of each row, all rows in turn.

    `p50_ms` and `p95_ms` are of a call, arrays in and arrays out, with both transfers; `device_ms` has none.
    `replayed`: false where an engine could not be recorded as a CUDA graph; null where a runtime does not tell.

    Args:
        seconds: time limit of all rows together.
        peaks: as `machine.peaks` says.
    Returns: milliseconds of every call by the row's name, and which rows failed.

    """
    asked = [_cut(each, shape.length) for each in requests(interactions, shape.batch)[:DIFFERENT]]
    calls: dict[str, Sequence[Call]] = {}
    facts: dict[str, Json] = {}
    failed: list[Json] = []
    for loaded in rows:
        each = CALLS["model"](loaded.recommender, asked)
        try:
            _, _, peak_bytes = machine.taking(loaded.device, partial(_ask_all, each))
            replayed = getattr(loaded.runtime, "replayed", None)
            facts[loaded.row.name] = {
                "peak_bytes": peak_bytes,
                "device_ms": _device_ms(loaded, asked),
                "replayed": replayed,
            }
            calls[loaded.row.name] = each
        except Exception as error:  # memory, mostly
            failed.append({"row": f"{loaded.row.name} · {shape}", "why": reason(error)})
    samples = interleave(calls, turns=TURNS, seconds=seconds, label=str(shape)) if calls else {}
    first = samples.get(rows[0].row.name)
    plain_flops = flops(None, rows[0].recommender, asked) if first is not None else None
    for loaded in rows:
        name = loaded.row.name
        if name not in samples:
            continue
        described = export.metrics[loaded.row.bundle]["flops"]
        work = plain_flops if loaded.row.plain else flops(described, loaded.recommender, asked)
        loaded.facts["timings"].append(
            {
                "batch": shape.batch,
                "length": shape.length,
                **_described(samples[name], shape.batch),
                "speedup": None if first is None else ratio(first, samples[name]),
                "flops": work,
                **facts[name],
                **_shares(loaded, facts[name]["device_ms"], work, peaks),
            }
        )
    return samples, failed


def _ask_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _described(samples: NDArray[np.float64], batch: int) -> Json:
    p50 = float(np.median(samples))
    return {
        "p50_ms": p50,
        "p95_ms": float(np.quantile(samples, 0.95)),
        "samples": len(samples),
        "users_per_second": batch / p50 * 1e3,
    }


def ratio(slow: NDArray[np.float64], fast: NDArray[np.float64]) -> Json:
    """How many times shorter `fast`'s median is."""
    found = ratio_of_medians([slow], [fast], turn=TIMED_PER_TURN)
    return {"ratio": found.mean, "ci95": [found.low, found.high]}


def _shares(loaded: Loaded, device_ms: float, work: int | None, peaks: Mapping[str, Any]) -> Json:
    """Of the machine's fastest product in this precision, and of its fastest copy if the weights were read once."""
    precision = loaded.row.precision
    peak = peaks["tflops"].get(PEAKS.get(precision, precision))
    weights = loaded.facts["weights_bytes"]
    return {
        "peak_share": work / device_ms / 1e9 / peak if peak and work else None,
        "copy_share": weights / device_ms / 1e6 / peaks["copy_gb_per_s"],
    }


def _cut(asked: Asked, length: int | None) -> Asked:
    """The latest items of each history, of a shorter one told again and again, so that all are as long."""
    if length is None:
        return asked
    return replace(asked, histories=[np.resize(history[-length:], length) for history in asked.histories])


def _device_ms(loaded: Loaded, asked: Sequence[Asked]) -> float:
    """Of a request, on average over a few."""
    calls = [loaded.recommender.calls(each) for each in asked[:COUNTED]]
    return float(np.mean([sum(loaded.runtime.device_ms(arrays) for arrays in each) for each in calls]))
