"""Several processes train one model together: what comes of it is what one process makes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from compress import artifact
from compress.artifact import Artifact
from conftest import ROOT, TINY

SEED_0 = Path("tiny") / "seed-0"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

EXACT = [
    *("--set", "stages.teacher.model.dropout=0"),  # what is dropped is drawn by each process on its own
    *("--set", "stages.teacher.batch_size=15"),  # two processes take 8 and 7
    *("--set", "stages.student.batch_size=71"),  # 285 sequences: the last batch of an epoch has a single one
    *("--set", "stages.student.early_stopping={patience: 1}"),
]


def line(module: str, runs: Path | str, *arguments: str) -> list[str]:
    return ["-m", module, str(TINY), "--runs", str(runs), *arguments]


def torchrun(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*launcher, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def launch(command: Sequence[str], *homes: Path) -> list[subprocess.Popen[str]]:
    """What a launcher does, so that each process can be looked at (or killed): one in each of the working folders."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared = {**ENVIRONMENT, **address, "WORLD_SIZE": str(len(homes)), "LOCAL_WORLD_SIZE": str(len(homes))}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=home,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, home in enumerate(homes)
    ]


def ended(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes, and what each process has printed."""
    said = ["".join(process.communicate(timeout=300)) for process in processes]
    return [process.returncode for process in processes], said


def alone(command: Sequence[str]) -> None:
    codes, said = ended(launch(command, ROOT))
    assert codes == [0], said


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """`runs` folders of the same teacher, and of its students: by one process, and by two under torchrun."""
    one, two = (tmp_path_factory.mktemp(name) / "runs" for name in ("one", "two"))
    alone(line("compress.finetune", one, "--stage", "teacher", *EXACT))
    made = torchrun(line("compress.finetune", two, "--stage", "teacher", *EXACT))
    assert made.returncode == 0, made.stderr
    assert [text.split()[0] for text in made.stderr.splitlines()] == ["data", "data", "teacher", "teacher"]
    shared = shutil.copytree(one / SEED_0 / "teacher", two.parent / "shared")
    alone(line("compress.distill", one, *EXACT))
    kept = two / SEED_0 / "teacher"
    kept.rename(two.parent / "teacher-of-two")
    shared.rename(kept)
    made = torchrun(line("compress.distill", two, *EXACT))
    assert made.returncode == 0, made.stderr
    assert [text.split()[0] for text in made.stderr.splitlines()] == ["student", "student"]
    shutil.rmtree(kept)
    (two.parent / "teacher-of-two").rename(kept)
    return one, two


def assert_close(one: Artifact, two: Artifact, tolerance: float) -> None:
    ours, theirs = (load_file(made.path("model") / "model.safetensors") for made in (one, two))
    assert ours.keys() == theirs.keys()
    furthest = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert furthest <= tolerance


@pytest.mark.parametrize(("stage", "tolerance"), [("teacher", 1e-4), ("student", 1e-4)])
def test_two_processes_make_what_one_makes(pair: tuple[Path, Path], stage: str, tolerance: float) -> None:
    """Without dropout up to the order of sums, which AdamW's division enlarges; measured, 1e-5."""
    one, two = (artifact.read(runs / SEED_0 / stage) for runs in pair)
    assert two.fingerprint == one.fingerprint
    assert two.metrics["steps"] == one.metrics["steps"]
    assert two.metrics["loss"] == pytest.approx(one.metrics["loss"], rel=1e-4)
    assert two.metrics["ndcg@10"] == pytest.approx(one.metrics["ndcg@10"], abs=0.005)
    assert_close(one, two, tolerance)
    assert [made.manifest.environment["processes"] for made in (one, two)] == ["1", "2"]


def test_nothing_is_left_beside_what_one_process_leaves(pair: tuple[Path, Path]) -> None:
    one, two = ({path.relative_to(runs) for path in runs.rglob("*")} for runs in pair)
    assert one == two


def test_a_finished_stage_is_cached_for_all_of_them(pair: tuple[Path, Path]) -> None:
    codes, said = ended(launch(line("compress.finetune", pair[1], "--stage", "teacher", *EXACT), ROOT, ROOT))
    assert codes == [0, 0]
    assert said[0].split()[-1] == "cached"
    assert said[1] == ""


def test_two_killed_processes_resume_to_the_same_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """With dropout, so that each process's random state has to come back."""
    steady, killed = tmp_path / "steady", tmp_path / "killed"
    for runs in (steady, killed):
        shutil.copytree(pair[0] / "tiny" / "data", runs / "tiny" / "data")
    command = ["--stage", "teacher", "--set", "stages.teacher.checkpoint_seconds=0.1"]
    codes, said = ended(launch(line("compress.finetune", steady, *command), ROOT, ROOT))
    assert codes == [0, 0], said

    processes = launch(line("compress.finetune", killed, *command), ROOT, ROOT)
    while not list((killed / SEED_0 / "teacher").glob(".resume/checkpoints/*/whole.json")):
        assert processes[0].poll() is None, "ended before its first checkpoint"
        time.sleep(0.01)
    for process in processes:
        process.kill()
    ended(processes)
    assert not (killed / SEED_0 / "teacher" / artifact.MANIFEST).exists()

    codes, said = ended(launch(line("compress.finetune", killed, *command), ROOT, ROOT))
    assert codes == [0, 0], said
    assert "resumes" in said[0]
    weights = SEED_0 / "teacher" / "model" / "model.safetensors"
    assert artifact.digest(killed / weights) == artifact.digest(steady / weights)
    assert not (killed / SEED_0 / "teacher" / ".resume").exists()


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("recipes", [], "several processes are for python -m compress.finetune and python -m compress.distill"),
        (
            "compress.distill",
            ["--set", "stages.teacher.batch_size=1"],
            "stages.teacher.batch_size: 1 sequences a step for 2 processes",
        ),
    ],
)
def test_what_they_cannot_share_is_one_line_and_two(
    tmp_path: Path, module: str, arguments: list[str], message: str
) -> None:
    codes, said = ended(launch(line(module, tmp_path, *arguments), ROOT, ROOT))
    assert codes == [2, 2]
    assert message in said[0]
    assert len(said[0].splitlines()) == 1
    assert said[1] == ""
    assert not list(tmp_path.iterdir())


def test_a_machine_without_the_inputs_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    here, there = (tmp_path / name for name in ("here", "there"))
    here.mkdir()
    there.mkdir()
    codes, said = ended(launch(line("compress.finetune", "runs", "--stage", "teacher"), here, there))
    assert codes == [2, 2]
    last = said[0].splitlines()[-1]
    assert last.startswith("process 1 on ")
    assert "the input data is not up to date: not there yet" in last
    assert "all machines need the same code, packages and --runs folder" in last
    assert not list(there.iterdir())


def test_what_every_process_meets_is_said_once(tmp_path: Path) -> None:
    short = ["--set", "data={source: csv, path: short.csv, min_interactions: 3}"]
    rows = [
        f"u{user},i{(user + step) % 20},{step}" for user in range(20) for step in range(3)
    ]  # one of three to learn from
    (tmp_path / "short.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TINY.read_text())
    command = ["-m", "compress.finetune", str(recipe), "--runs", str(tmp_path / "runs"), *short]
    codes, said = ended(launch(command, ROOT, ROOT))
    assert codes == [2, 2], said
    assert "no user has enough interactions" in said[0].splitlines()[-1]
    assert said[1] == ""
