"""What the timings say: whether a student is as much faster as is promised, and whether 8 bits pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu.timing import Shape, ratio
from compress.metrics import Floats

Json = dict[str, Any]
Samples = Mapping[tuple[str, Shape], Floats]
"""Milliseconds of each call, by row and what was asked."""

PROMISED = 10.0
"""A student over its eager float32 teacher: p50 of the smallest batch, users a second of the largest."""

KEPT = 0.9
"""Of the first row's NDCG@10, that a row has at least which is held to the bars: fast and wrong is no student."""

FEW_BITS, HALVES = ("int8", "fp8", "nf4"), ("fp16", "bf16")

PAYS = 1.05
"""Times faster than in half precision: what is closer changes places from run to run."""


def bars(report: Json, samples: Samples, batches: Sequence[int]) -> tuple[list[Json], list[Json]]:
    """The promise at both ends of the batches, and how the same row stands beside the teacher's other runtimes.

    The row is one for all: the fastest of the models that are not the teacher's and keep their quality, over all
    batches of histories as they are. A bar is passed on the low end of its interval; `ratio` is null, and the bar not
    passed, where it or the teacher was not timed. Nothing where no such row was.

    Args:
        batches: sizes that were asked for, ascending, timed or not.
    """
    teacher, reference = report["rows"][0]["model"], report["reference"]
    ends = [Shape(batch, None) for batch in (batches[0], batches[-1])]
    timed = sorted({shape for _, shape in samples if shape.length is None}, key=lambda shape: shape.batch)
    students = [row["name"] for row in report["rows"] if row["weights_of"] != teacher and _keeps(row)]
    chosen = _fastest(students, timed, samples)
    if chosen is None:
        return [], []
    found = []
    for name, shape in zip(("p50", "users a second"), ends, strict=True):
        bar: Json = {
            "name": f"{name}, batch {shape.batch}, over {reference}",
            "row": chosen,
            "required": PROMISED,
            "ratio": None,
            "ci95": None,
            "passed": False,
        }
        if all((row, shape) in samples for row in (chosen, reference)):
            bar |= ratio(samples[reference, shape], samples[chosen, shape])
            bar["passed"] = bar["ci95"][0] >= PROMISED
        found.append(bar)
    here = [shape for shape in dict.fromkeys(ends) if shape in timed]
    beside = [
        {"row": chosen, "over": other, "batch": shape.batch, **ratio(samples[other, shape], samples[chosen, shape])}
        for other in _teachers(report, here, samples)
        for shape in here
    ]
    return found, beside


def _keeps(row: Json) -> bool:
    against = row["vs_reference"]["ndcg@10"]
    return against is not None and bool(against["ratio"] >= KEPT)


def _teachers(report: Json, ends: Sequence[Shape], samples: Samples) -> list[str]:
    """Of each runtime, the teacher's fastest plain and its fastest served row."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for row in report["rows"][1:]:
        if row["weights_of"] == report["rows"][0]["model"]:
            groups.setdefault((row["runtime"], row["how"].startswith("plain")), []).append(row["name"])
    fastest = [_fastest(names, ends, samples) for names in groups.values()]
    return [name for name in fastest if name is not None]


def _fastest(names: Sequence[str], shapes: Sequence[Shape], samples: Samples) -> str | None:
    """By the geometric mean of medians, of those that were timed on all shapes."""
    timed = [name for name in names if all((name, shape) in samples for shape in shapes)]
    means = {name: np.mean([np.log(np.median(samples[name, shape])) for shape in shapes]) for name in timed}
    return min(means, key=lambda name: means[name], default=None) if shapes else None


def integers(report: Json, samples: Samples) -> list[Json]:
    """Of every shape: few bits over the same weights in the faster half precision, run the same way.

    It pays (true) or does not (false) if the whole interval says so; else null.
    """
    found = []
    for row in report["rows"]:
        alike = [
            other
            for other in report["rows"]
            if other["precision"] in HALVES and all(other[key] == row[key] for key in ("weights_of", "runtime", "how"))
        ]
        for shape in [shape for name, shape in samples if name == row["name"] and row["precision"] in FEW_BITS]:
            half = _fastest([other["name"] for other in alike], [shape], samples)
            if half is not None:
                against = ratio(samples[half, shape], samples[row["name"], shape])
                low, high = against["ci95"]
                pays = True if low >= PAYS else False if high < PAYS else None
                over = next(other for other in alike if other["name"] == half)
                found.append(
                    {
                        "row": row["name"],
                        "over": half,
                        "batch": shape.batch,
                        "length": shape.length,
                        **against,
                        "pays": pays,
                        "bytes_ratio": over["weights_bytes"] / row["weights_bytes"],
                    }
                )
    return found
