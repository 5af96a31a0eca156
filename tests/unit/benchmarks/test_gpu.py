"""The whole command on the tiny recipe, the CPU in the place of a GPU; and what it says where it cannot run."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from benchmarks.gpu import pages, run, verdict
from benchmarks.gpu.timing import Shape
from conftest import ROOT, TINY, recpress

BATCHES, LENGTHS = (1, 3), (None, 6)

EAGER = "teacher · torch fp32 · plain, eager"


@pytest.fixture(scope="module")
def results(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all results after one run."""
    folder = tmp_path_factory.mktemp("gpu") / "results"
    sizes = ("--batch-sizes", "1,3", "--lengths", "6", "--seconds", "0.1")
    where = ("--runs", tiny_run, "--results", folder)
    ended = recpress(TINY, "--device", "cpu", "--skip", "compiled", *sizes, *where, module="benchmarks.gpu")
    assert ended.returncode == 3, ended.stderr[-3000:]  # a CPU passes no bar
    assert ended.stdout.rstrip().endswith(str(folder / "cpu" / "tiny"))
    return folder


@pytest.fixture
def report(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / "cpu" / "tiny" / "report.json").read_text())
    return found


def test_latencies_are_those_of_the_samples(results: Path, report: dict[str, Any]) -> None:
    with np.load(results / "cpu" / "tiny" / "samples.npz", allow_pickle=False) as samples:
        for row in report["rows"]:
            assert [(each["batch"], each["length"]) for each in row["timings"]] == [
                (batch, length) for length in LENGTHS for batch in BATCHES
            ]
            for timing in row["timings"]:
                shape = f"{timing['batch']}/{timing['length'] or 'as-they-are'}"
                ms, base = samples[f"{row['name']}/{shape}"], samples[f"{EAGER}/{shape}"]
                assert timing["samples"] == len(ms) >= 20
                assert timing["p50_ms"] == pytest.approx(np.median(ms))
                assert timing["p50_ms"] <= timing["p95_ms"] == pytest.approx(np.quantile(ms, 0.95))
                assert timing["users_per_second"] == pytest.approx(1e3 * timing["batch"] / np.median(ms))
                assert timing["speedup"]["ratio"] == pytest.approx(np.median(base) / np.median(ms))
                low, high = timing["speedup"]["ci95"]
                assert low <= timing["speedup"]["ratio"] <= high


def test_shares_of_peak_are_work_over_time_and_peak(report: dict[str, Any]) -> None:
    peaks = report["peaks"]
    assert all(value > 0 for value in (*peaks["tflops"].values(), peaks["copy_gb_per_s"]))
    shared = 0
    for row in report["rows"]:
        for timing in row["timings"]:
            assert timing["flops"] > 0
            assert timing["copy_share"] == pytest.approx(
                row["weights_bytes"] / timing["device_ms"] * 1e3 / 1e9 / peaks["copy_gb_per_s"]
            )
            peak = peaks["tflops"].get({"nf4": "fp16"}.get(row["precision"], row["precision"]))
            if peak:
                shared += 1
                assert timing["peak_share"] == pytest.approx(timing["flops"] / timing["device_ms"] * 1e3 / 1e12 / peak)
    assert shared


def test_a_served_graph_does_less_work_for_the_same_quality(report: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in report["rows"]}
    eager, served = rows[EAGER], rows["teacher · torch fp32 · served graph, CUDA graphs"]
    assert report["rows"][0] is eager
    assert served["ndcg@10"] == eager["ndcg@10"]
    assert served["vs_reference"] == {"ndcg@10": {"ratio": 1.0, "ci95": [1.0, 1.0]}, "overlap@10": 1.0}
    for ours, theirs in zip(served["timings"], eager["timings"], strict=True):
        assert ours["flops"] < 0.8 * theirs["flops"]


def test_quality_is_what_the_recipe_measured(tiny_run: Path, report: dict[str, Any]) -> None:
    measured = json.loads((tiny_run / "tiny" / "report" / "report.json").read_text())
    (teacher,) = [each for each in measured["variants"] if each["name"] == "teacher-eager"]
    assert report["rows"][0]["ndcg@10"]["mean"] == pytest.approx(teacher["quality"]["ndcg@10"]["mean"])
    assert report["users"] == measured["data"]["judged_users"]["test"]


def test_what_does_not_run_is_named_with_one_line(report: dict[str, Any]) -> None:
    ran, left_out = {row["name"] for row in report["rows"]}, {each["row"]: each["why"] for each in report["left_out"]}
    assert not ran & left_out.keys()
    assert all(why and "\n" not in why for why in left_out.values())
    assert left_out["teacher · torch fp16 · plain, compiled + CUDA graphs"] == "--skip compiled"
    for model in ("teacher", "student"):
        for precision in ("fp32", "fp16"):
            assert f"{model} · torch {precision} · served graph, CUDA graphs" in ran
    if not torch.cuda.is_available():
        assert "no CUDAExecutionProvider" in left_out["weights8 · onnxruntime fp32 · IO binding"]
        assert "no GPU" in left_out["teacher · tensorrt fp16 · CUDA graphs"]


@pytest.mark.parametrize(("sizes", "order"), [([1, 32, 512], [1, 512, 32]), ([1, 512], [1, 512]), ([32], [32])])
def test_what_the_verdict_is_about_is_timed_first(sizes: list[int], order: list[int]) -> None:
    arguments = argparse.Namespace(batch_sizes=sizes, lengths=[5])
    shapes = run._shapes(arguments, Mock(spec=()))  # lengths that are given need nobody's
    assert shapes == [Shape(batch, None) for batch in order] + [Shape(batch, 5) for batch in sizes]


def _asked(report: dict[str, Any]) -> list[tuple[str, Shape]]:
    return [(row["name"], Shape(each["batch"], each["length"])) for row in report["rows"] for each in row["timings"]]


def test_both_bars_are_judged_and_a_cpu_is_no_result(results: Path, report: dict[str, Any]) -> None:
    """The tiny student may keep too little to be held to them; then they are judged as if it kept all."""
    ratios = [row["vs_reference"]["ndcg@10"]["ratio"] for row in report["rows"] if row["weights_of"] == "student"]
    assert bool(report["bars"]) == (max(ratios) >= verdict.KEPT)
    for row in report["rows"]:
        row["vs_reference"]["ndcg@10"] = {"ratio": 1.0}
    with np.load(results / "cpu" / "tiny" / "samples.npz", allow_pickle=False) as arrays:
        samples = {(name, shape): arrays[f"{name}/{shape.key}"] for name, shape in _asked(report)}
    bars, _ = verdict.bars(report, samples, (1, 3))
    assert [bar["name"] for bar in bars] == [
        f"p50, batch 1, over {EAGER}",
        f"users a second, batch 3, over {EAGER}",
    ]
    timings = {row["name"]: row["timings"] for row in report["rows"]}
    for bar, place in zip(bars, (0, 1), strict=True):
        assert bar["row"].startswith("student · ")
        assert bar["ratio"] == pytest.approx(timings[EAGER][place]["p50_ms"] / timings[bar["row"]][place]["p50_ms"])
        assert bar["passed"] == (bar["ci95"][0] >= 10)
    page = (results / "cpu" / "tiny" / "report.md").read_text()
    assert "**NOT A RESULT: tried out without a GPU**" in page
    assert pages.summary(results) == pages.NOTHING


def test_the_pages_say_what_the_report_does(results: Path, report: dict[str, Any]) -> None:
    folder = results / "cpu" / "tiny"
    assert (folder / "report.md").read_text() == pages.markdown(report)
    page = (folder / "report.html").read_text()
    for row in report["rows"]:
        assert row["name"] in page


def run_gpu(*arguments: str | Path) -> tuple[int, str]:
    ended = recpress(*arguments, module="benchmarks.gpu")
    return ended.returncode, ended.stderr.strip()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_names_the_python_and_the_way_out(tmp_path: Path) -> None:
    code, said = run_gpu(TINY, "--runs", tmp_path)
    assert code == 2
    assert "\n" not in said
    assert f"of {sys.executable} sees no GPU" in said
    assert "GPU_PYTHON=" in said


def test_sizes_that_are_no_numbers_are_one_line(tmp_path: Path) -> None:
    code, said = run_gpu(TINY, "--runs", tmp_path, "--device", "cpu", "--batch-sizes", "1,two")
    assert (code, said) == (2, "--batch-sizes 1,two: write whole numbers from 1 with commas between, like 1,32,512")


def test_make_gpu_runs_it_with_the_python_that_is_given() -> None:
    # Quiet about directories: under `make test` this make is the inner one.
    line = ["make", "--no-print-directory", "--dry-run", "gpu", "GPU_PYTHON=/opt/cuda/bin/python"]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert said == "/opt/cuda/bin/python -m benchmarks.gpu recipes/gpu.yaml"
    assert (ROOT / said.split()[-1]).is_file()
