"""What follows from timings is counted by hand here."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import packages, verdict
from benchmarks.gpu.timing import Shape
from deploy.clock import TIMED_PER_TURN

ONE, MANY = Shape(1, None), Shape(512, None)
ENDS = (1, 512)


def row(
    name: str, model: str, runtime: str, precision: str, how: str, weights: int = 100, kept: float | None = 1.0
) -> dict[str, Any]:
    facts = {"name": name, "model": model, "weights_of": model, "runtime": runtime, "precision": precision, "how": how}
    against = None if kept is None else {"ratio": kept}
    return facts | {"weights_bytes": weights, "vs_reference": {"ndcg@10": against}}


def report(*rows: dict[str, Any]) -> dict[str, Any]:
    teacher = row("eager", "teacher", "torch", "fp32", "plain, eager")
    return {"reference": "eager", "rows": [teacher, *rows]}


def samples(**medians: tuple[float, float]) -> dict[tuple[str, Shape], Any]:
    """Calls of each row at batch 1 and 512, all as long."""
    return {
        (name, shape): np.full(32, ms)
        for name, each in medians.items()
        for shape, ms in zip((ONE, MANY), each, strict=True)
    }


def test_one_student_row_is_held_to_both_bars() -> None:
    """The fastest over all batches, though another one is faster at batch 1."""
    rows = [row(name, "student", "torch", "fp16", name) for name in ("early", "steady")]
    bars, _ = verdict.bars(report(*rows), samples(eager=(1.0, 100.0), early=(0.05, 50.0), steady=(0.08, 11.0)), ENDS)
    assert [(bar["row"], round(bar["ratio"], 3), bar["passed"]) for bar in bars] == [
        ("steady", 12.5, True),
        ("steady", 9.091, False),
    ]
    assert [bar["name"] for bar in bars] == ["p50, batch 1, over eager", "users a second, batch 512, over eager"]


@pytest.mark.parametrize(("kept", "chosen"), [(0.9, "broken"), (0.89, "right"), (None, "right")])
def test_what_is_fast_and_ranks_otherwise_is_held_to_no_bar(kept: float | None, chosen: str) -> None:
    rows = [row("broken", "student", "torch", "fp16", "x", kept=kept), row("right", "student", "torch", "fp16", "y")]
    bars, _ = verdict.bars(report(*rows), samples(eager=(9, 90), broken=(0.01, 0.1), right=(0.1, 1)), ENDS)
    assert {bar["row"] for bar in bars} == {chosen}


def test_a_bar_is_judged_on_the_low_end() -> None:
    times = samples(eager=(1.0, 1.0), fast=(0.01, 0.01))
    times["eager", ONE] = np.repeat([0.05, 0.2] * 4, TIMED_PER_TURN)
    bars, _ = verdict.bars(report(row("fast", "student", "torch", "fp16", "x")), times, ENDS)
    assert bars[0]["ratio"] > 10 > bars[0]["ci95"][0]
    assert [bar["passed"] for bar in bars] == [False, True]


def test_a_bar_whose_batch_was_not_timed_is_not_passed() -> None:
    """And no other batch takes its place."""
    times = {key: each for key, each in samples(eager=(1.0, 1.0), fast=(0.01, 0.01)).items() if key[1] == ONE}
    bars, beside = verdict.bars(report(row("fast", "student", "torch", "fp16", "x")), times, ENDS)
    assert [(bar["name"], bar["ratio"] and round(bar["ratio"]), bar["passed"]) for bar in bars] == [
        ("p50, batch 1, over eager", 100, True),
        ("users a second, batch 512, over eager", None, False),
    ]
    assert not beside


def test_the_same_row_stands_beside_the_teacher_in_each_runtime() -> None:
    rows = [
        row("student", "student", "torch", "fp16", "served"),
        row("tf32", "teacher", "torch", "tf32", "plain, eager"),
        row("compiled", "teacher", "torch", "fp16", "plain, compiled"),
        row("cuda", "teacher", "onnxruntime", "fp32", "IO binding"),
    ]
    times = samples(eager=(8, 80), student=(1, 10), tf32=(6, 60), compiled=(4, 40), cuda=(2, 20))
    _, beside = verdict.bars(report(*rows), times, ENDS)
    assert [(each["over"], each["batch"], round(each["ratio"], 6)) for each in beside] == [
        ("compiled", 1, 4),
        ("compiled", 512, 4),
        ("cuda", 1, 2),
        ("cuda", 512, 2),
    ]


def test_without_a_student_there_is_no_verdict() -> None:
    assert verdict.bars(report(), samples(eager=(1, 1)), ENDS) == ([], [])


@pytest.mark.parametrize(("ms", "pays"), [(0.5, True), (0.98, False), (2.0, False)])
def test_few_bits_pay_where_they_are_faster_than_the_faster_half(ms: float, pays: bool) -> None:
    rows = [
        row("fp16", "student", "tensorrt", "fp16", "CUDA graphs"),
        row("bf16", "student", "tensorrt", "bf16", "CUDA graphs"),
        row("int8", "student", "tensorrt", "int8", "CUDA graphs", weights=25),
        row("other", "student", "torch", "fp16", "plain, eager"),
    ]
    times = samples(eager=(9, 9), fp16=(1, 3), bf16=(2, 1), int8=(ms, ms), other=(0.1, 0.1))
    found = verdict.integers(report(*rows), times)
    assert [(each["row"], each["over"], each["batch"], each["pays"]) for each in found] == [
        ("int8", "fp16", 1, pays),
        ("int8", "bf16", 512, pays),
    ]
    assert found[0]["ratio"] == pytest.approx(1 / ms)
    assert found[0]["bytes_ratio"] == 4


def test_what_a_noisy_clock_cannot_tell_is_not_said() -> None:
    rows = [row(name, "student", "tensorrt", name, "CUDA graphs") for name in ("fp16", "int8")]
    times = samples(eager=(9, 9), fp16=(1, 1), int8=(1, 1))
    times["int8", ONE] = np.repeat([0.5, 1.5] * 4, TIMED_PER_TURN)
    assert [each["pays"] for each in verdict.integers(report(*rows), times)] == [None, False]


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_missing_packages_are_named_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.missing(as_made=False) is None
    without(monkeypatch, "polars", "onnxruntime", "onnxruntime-gpu", "matplotlib", "onnxscript")
    said = packages.missing(as_made=False)
    assert said is not None
    assert said.startswith("3 packages are missing: ")
    assert "-m pip install 'onnxruntime-gpu>=" in said
    assert "'onnxscript>=" in said
    assert said.endswith("'polars>=2.1'")
    made = packages.missing(as_made=True)
    assert made is not None
    assert made.startswith("2 packages"), "nothing is exported"


def test_a_python_that_is_too_old_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    assert program.main() == 2
    said = capsys.readouterr().err
    assert "is Python 3.10; 3.11 or later is needed: make gpu GPU_PYTHON=" in said
    assert said.count("\n") == 1


def test_an_onnx_runtime_for_gpus_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.metadata.version
    names = {"onnxruntime": "absent", "onnxruntime-gpu": "onnxruntime"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found(names.get(name, name)))
    assert packages.missing(as_made=False) is None


def test_an_older_package_is_said_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.outdated() is None
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.0+cu130" if name == "torch" else "999")
    assert packages.outdated() == "older than what is tested: torch 2.9.0+cu130 (>=2.13,<2.15)"
