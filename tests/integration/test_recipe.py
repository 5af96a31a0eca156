"""Whole recipes, run as a user runs them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress import artifact
from conftest import ROOT, TINY, recpress

SEED_0 = Path("tiny") / "seed-0"


def test_a_run_ends_with_a_table_a_report_and_zero(tiny_run: Path) -> None:
    ended = recpress(TINY, "--runs", tiny_run)
    assert ended.returncode == 0, ended.stderr
    assert "teacher-eager" in ended.stdout
    page = Path(ended.stdout.split()[-1])
    assert page == tiny_run / "tiny" / "report" / "report.html"
    assert "<svg" in page.read_text()
    report = json.loads((page.parent / "report.json").read_text())
    assert report["passed"]
    assert {variant["name"] for variant in report["variants"]} == {
        *("teacher-eager", "teacher", "control", "weights8", "int8")
    }


def test_a_finished_run_is_recognised_in_a_blink_and_without_torch(tiny_run: Path) -> None:
    code = (
        "import sys; from recipes.__main__ import main; "
        f"status = main([{str(TINY)!r}, '--runs', {str(tiny_run)!r}]); "
        "assert not {'torch', 'transformers', 'onnxruntime', 'polars'} & set(sys.modules); sys.exit(status)"
    )
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - started < 3
    lines = ended.stderr.splitlines()
    assert len(lines) == 9
    assert all("cached" in line for line in lines)


def test_a_failed_gate_ends_with_three_and_only_the_report_is_made_again(broken_run: Path) -> None:
    ended = recpress(TINY, "--runs", broken_run, "--set", "gate.latency.min_speedup={1: 100000}")
    assert ended.returncode == 3
    assert "FAILED" in ended.stdout
    made = [line for line in ended.stderr.splitlines() if " done " in line]
    assert len(made) == 1
    assert made[0].startswith("report")
    again = recpress(TINY, "--runs", broken_run, "--set", "gate.latency.min_speedup={1: 100000}")
    assert again.returncode == 3, "a cached report still fails its gate"


def test_a_damaged_artifact_is_named_and_nothing_runs(broken_run: Path) -> None:
    weights = broken_run / SEED_0 / "student" / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    ended = recpress(TINY, "--runs", broken_run)
    assert ended.returncode == 2
    assert f"{weights} is damaged" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_artifact_holds_nothing_executable_and_no_scratch(tiny_run: Path) -> None:
    kept = {"json", "safetensors", "onnx", "parquet", "npz", "md", "html", "txt", "lock"}
    files = [path for path in tiny_run.rglob("*") if path.is_file()]
    assert {path.suffix.lstrip(".") or path.name.lstrip(".") for path in files} <= kept
    assert not list(tiny_run.rglob(".resume"))


def test_a_stage_alone_makes_what_it_needs_first(tmp_path: Path) -> None:
    refused = recpress(TINY, "--runs", tmp_path, "--no-inputs", module="compress.distill")
    assert refused.returncode == 2
    assert "python -m compress.prepare" in refused.stderr
    made = recpress(TINY, "--runs", tmp_path, module="compress.distill")
    assert made.returncode == 0, made.stderr
    announced = [line.split()[0] for line in made.stderr.splitlines() if " running " in line]
    assert announced == ["data", "teacher", "student"]
    assert artifact.read(tmp_path / SEED_0 / "student").metrics["overlap@10"] > 0.3


@pytest.mark.parametrize(("stage", "module"), [("teacher", "compress.finetune"), ("student", "compress.distill")])
def test_a_stage_killed_in_training_ends_with_the_same_weights(
    tiny_run: Path, tmp_path: Path, stage: str, module: str
) -> None:
    """SIGKILL once a checkpoint is there, then the same command again; against a run that nobody disturbed."""
    steady, killed = (tmp_path / name for name in ("steady", "killed"))
    line = [
        TINY,
        "--stage",
        stage,
        "--set",
        f"stages.{stage}.epochs=40",
        "--set",
        f"stages.{stage}.checkpoint_seconds=0.2",
    ]
    for runs in (steady, killed):
        shutil.copytree(tiny_run, runs)
        shutil.rmtree(runs / SEED_0 / stage)
    assert recpress(*line, "--runs", steady, module=module).returncode == 0

    folder = killed / SEED_0 / stage
    command = [sys.executable, "-m", module, *map(str, line), "--runs", str(killed)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(folder.glob(".resume/checkpoints/*/whole.json")):
        assert process.poll() is None, "ended before its first checkpoint"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / artifact.MANIFEST).exists()
    resumed = recpress(*line, "--runs", killed, module=module)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes" in resumed.stderr
    weights = Path(SEED_0) / stage / "model" / "model.safetensors"
    assert artifact.digest(killed / weights) == artifact.digest(steady / weights)
    assert not (folder / ".resume").exists()


def test_two_runs_on_one_folder_do_not_mix(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "compress.finetune", str(TINY), "--stage", "teacher", "--runs", str(tmp_path)]
    first = subprocess.Popen([*line, "--set", "stages.teacher.epochs=200"], cwd=ROOT, stderr=subprocess.DEVNULL)
    folder = tmp_path / SEED_0 / "teacher"
    while not (folder / ".resume").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    first.kill()
    first.wait()
    assert second.returncode == 2
    assert "in use by another run" in second.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data={source: csv, path: nowhere.csv}", "nowhere.csv"),
        ("data.min_interactions=1000", "nothing is left"),
        ("stages.student.temprature=2", "unknown key"),
    ],
)
def test_bad_input_is_one_line_and_two(tmp_path: Path, override: str, message: str) -> None:
    ended = recpress(TINY, "--runs", tmp_path, "--set", override)
    assert ended.returncode == 2
    assert message in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
