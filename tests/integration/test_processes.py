"""Several processes on one stage, really launched: they end with what one process ends with, within noise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from compress import artifact
from conftest import ROOT, TINY, recpress

STEADY = ("--set", "stages.teacher.model.dropout=0.0")
TEACHER, STUDENT = (Path("tiny") / "seed-0" / stage for stage in ("teacher", "student"))


def launch(module: str, *arguments: str | Path, processes: int = 2) -> subprocess.Popen[str]:
    """As `torchrun` does."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    line += ["-m", module, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        line,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said[:3000]
    return said


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny recipe's student and all it needs, by one process and by two."""
    home = tmp_path_factory.mktemp("processes")
    one = recpress(TINY, *STEADY, "--runs", home / "one", module="compress.distill")
    assert one.returncode == 0, one.stderr
    for module in ("compress.finetune", "compress.distill"):
        said = finished(launch(module, TINY, *STEADY, "--stage", stage_of(module), "--runs", home / "two"))
        assert said.count(" done ") == (2 if module == "compress.finetune" else 1), "told by one process alone"
    return {name: home / name for name in ("one", "two")}


def stage_of(module: str) -> str:
    return {"compress.finetune": "teacher", "compress.distill": "student"}[module]


@pytest.mark.parametrize("stage", [TEACHER, STUDENT])
def test_two_processes_end_as_one_does_within_noise(runs: dict[str, Path], stage: Path) -> None:
    one, two = (artifact.read(folder / stage) for folder in runs.values())
    assert two.fingerprint == one.fingerprint
    assert {*two.manifest.files} == {*one.manifest.files}
    assert two.metrics["steps"] == one.metrics["steps"]
    assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=0.03)
    assert two.metrics["ndcg@10"] == pytest.approx(one.metrics["ndcg@10"], abs=0.05)
    if stage == STUDENT:  # its teachers differ
        return
    weights = [load_file(made.path("model") / "model.safetensors") for made in (one, two)]
    for name, ours in weights[0].items():
        scale = np.abs(ours).max()
        assert np.abs(ours - weights[1][name]).max() < 0.1 * scale + 0.02, name


def test_what_is_there_is_recognised_by_all(runs: dict[str, Path]) -> None:
    line = [TINY, *STEADY, "--stage", "teacher", "--runs", runs["two"]]
    assert "cached" in finished(launch("compress.finetune", *line))


def test_nothing_private_is_left(runs: dict[str, Path]) -> None:
    assert not list(runs["two"].rglob(".resume"))


def test_two_processes_that_are_killed_go_on_together(tmp_path: Path) -> None:
    line = [TINY, *STEADY, "--stage", "teacher", "--runs", tmp_path]
    line += ["--set", "stages.teacher.epochs=30", "--set", "stages.teacher.checkpoint_seconds=0.2"]
    process = launch("compress.finetune", *line)
    while not list((tmp_path / TEACHER).glob(".resume/checkpoints/*/whole.json")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    for child in _launched(tmp_path):
        os.kill(child, signal.SIGKILL)
    process.communicate()
    assert "resumes" in finished(launch("compress.finetune", *line))
    made = artifact.read(tmp_path / TEACHER)
    assert made.metrics["steps"] == 30 * 18
    assert made.metrics["train_seconds"] > 0


def _launched(runs: Path) -> list[int]:
    """Processes that work on these runs: the launcher starts each in a session of its own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(runs).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (
            "compress.finetune",
            ["--set", "stages.teacher.batch_size=9"],
            "batch_size 9 is no multiple of the 2 processes",
        ),
        ("compress.quantize", [], "compress.quantize is one process's work"),
        ("recipes", [], "a whole recipe is one process's work"),
    ],
)
def test_what_several_processes_cannot_do_is_one_line(
    tmp_path: Path, module: str, arguments: list[str], message: str
) -> None:
    process = launch(module, TINY, *arguments, "--runs", tmp_path)
    _, said = process.communicate(timeout=240)
    assert process.returncode != 0
    assert said.count(message) == 1
    ours = said.partition("torch/distributed")[0]
    assert "compress/" not in ours.partition(message)[2].partition("E1")[0], "no traceback of ours"
