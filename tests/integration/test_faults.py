"""Kills, full disks, two runs at once and half files, done for real to recipes/tiny.yaml.

What must hold: an error is one line and exit code 2, and the same command always ends with the same result.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

import victim
from compress import artifact
from compress.errors import ArtifactError
from compress.recipe import load
from compress.stage import Stage, graph
from conftest import TINY
from deploy.recommender import Recommender
from recipes.__main__ import main

OVERRIDES = [
    *("stages.served.inputs=[teacher, int8]", "measure.candidates=[int8]", "measure.control="),
    *("measure.rounds=20", "measure.seconds=0.05", "measure.threads=1", "measure.batch_sizes=[1]"),
    *(f"stages.{name}.checkpoint_seconds=0" for name in ("teacher", "student", "control")),
]
"""Every kind of stage, but no more than two graphs; and each step of a training leaves a checkpoint."""
COMMAND = [TINY, *(part for override in OVERRIDES for part in ("--set", override))]

KILLS = {
    **{"data": 7, "teacher": 6, "student": 6, "control": 5, "weights8": 6},
    **{"int8": 6, "served": 5, "measure": 3, "report": 6},
}
"""How many of the 50 a stage gets."""

TIMED = ("measure.json", "latency.npz")
"""Files of the measure stage that are of the moment, not of the recipe."""


@dataclass(frozen=True)
class Run:
    """A run that nobody disturbed."""

    runs: Path
    changes: dict[str, int]
    """Changes to the file system that each stage made."""

    def stages(self, runs: Path | None = None) -> dict[str, Stage]:
        """By name; here, or where they would lie in another folder."""
        return {stage.name: stage for stage in graph(load(TINY, OVERRIDES), runs or self.runs)}

    def assert_same(self, runs: Path) -> None:
        """Another run has its fingerprints, and every file that does not depend on the clock."""
        for name, stage in self.stages().items():
            ours = artifact.read(stage.folder)
            theirs = artifact.read(runs / stage.folder.relative_to(self.runs))
            assert theirs.fingerprint == ours.fingerprint == stage.fingerprint
            assert theirs.manifest.files.keys() == ours.manifest.files.keys()
            if name != "report":
                for file, made in ours.manifest.files.items():
                    assert file in TIMED or theirs.manifest.files[file] == made, f"{name}: {file}"


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home = tmp_path_factory.mktemp("steady")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")  # for the process that all others are forked from
        undisturbed = victim.start(*COMMAND, "--runs", home / "runs", log=home / "log")
        begun = list(undisturbed.begun())
        assert undisturbed.end() == 0, undisturbed.said
        changes = {Path(folder).name: count for (folder, _), (_, count) in pairwise(begun)}
        yield Run(home / "runs", changes)


def test_fifty_kills_and_the_result_is_the_same(steady: Run, tmp_path: Path) -> None:
    """Half by the clock, half at a change to the file system, which is where they hurt."""
    draw = random.Random(0)
    runs = tmp_path / "runs"
    fell: Counter[str] = Counter()
    checkpoints = 0
    for name, stage in steady.stages(runs).items():
        seconds = artifact.read(steady.stages()[name].folder).manifest.seconds
        for number in range(KILLS[name]):
            by_clock = number % 2 == 0
            killed = False
            while not killed:
                if (stage.folder / artifact.MANIFEST).exists():
                    shutil.rmtree(stage.folder)
                moment = None if by_clock else (stage.folder, draw.randint(1, steady.changes[name]))
                run = victim.start(*COMMAND, "--runs", runs, log=tmp_path / "log", die_at=moment)
                if by_clock:
                    assert run.wait_for(stage.folder), run.said
                    time.sleep(draw.random() * seconds)
                    run.kill()
                begun = [folder for folder, _ in run.begun()]
                status = run.end()
                assert status in (0, -9), run.said
                killed = status == -9
            fell[Path(begun[-1]).name if begun else name] += 1
            checkpoints += bool(list(stage.folder.glob(".resume/checkpoints/*/whole.json")))
    assert fell.total() == 50
    assert fell.keys() == KILLS.keys()
    assert checkpoints > 5
    last = victim.start(*COMMAND, "--runs", runs, log=tmp_path / "last")
    assert last.end() == 0, last.said
    steady.assert_same(runs)


def test_of_two_runs_at_once_one_wins(steady: Run, tmp_path: Path) -> None:
    both = [victim.start(*COMMAND, "--runs", tmp_path / "runs", log=tmp_path / log) for log in ("one", "two")]
    ended = [run.end() for run in both]
    assert sorted(ended) in ([0, 0], [0, 2])
    for run, status in zip(both, ended, strict=True):
        assert status == 0 or "is in use by another run" in the_one_line(run)
    steady.assert_same(tmp_path / "runs")


def the_one_line(run: victim.Victim) -> str:
    """What a command that ended with 2 said after its progress."""
    said = run.said
    end = said.index("ended with 2")
    last = max(at for at, line in enumerate(said[:end]) if " running " in line)
    (line,) = said[last + 1 : end]
    return line


@pytest.fixture(scope="module")
def _mounts() -> None:
    """Skips where this user may not mount anything, not even for itself."""
    try:
        refused = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if refused.returncode:
        pytest.skip(f"no mount namespaces here: {refused.stderr.strip()}")


@pytest.mark.usefixtures("_mounts")
@pytest.mark.parametrize(
    ("name", "share"),
    [
        *((name, share) for name in ("data", "teacher", "student", "int8", "report") for share in (0, 0.5, 0.95)),
        *(("served", 0.5), ("measure", 0.5)),  # slower, and room for nothing ends alike everywhere
    ],
)
def test_a_full_disk_is_one_line_and_more_room_goes_on(steady: Run, tmp_path: Path, name: str, share: float) -> None:
    """Room for none, half or most of what the stage writes."""
    folder = steady.stages()[name].folder
    room = int(share * sum(file.stat().st_size for file in folder.rglob("*")))
    disk = tmp_path / "disk"
    disk.mkdir()
    steps = [
        victim.FullDisk(disk, steady.runs, folder, room),
        *(victim.RECIPE, victim.MoreRoom(disk), victim.RECIPE, victim.Rescue(disk, tmp_path / "rescued")),
    ]
    run = victim.start(*COMMAND, "--runs", disk, log=tmp_path / "log", steps=steps)
    assert run.end() == 0, run.said
    said = the_one_line(run)
    assert said.startswith(str(disk / folder.relative_to(steady.runs)))
    assert "No space left on device; make room there" in said
    steady.assert_same(tmp_path / "rescued")


@pytest.mark.parametrize("name", ["data", "teacher", "int8", "report"])
def test_a_file_that_may_not_grow_is_one_line(steady: Run, tmp_path: Path, name: str) -> None:
    runs = Path(shutil.copytree(steady.runs, tmp_path / "runs"))
    folder = runs / steady.stages()[name].folder.relative_to(steady.runs)
    shutil.rmtree(folder)
    run = victim.start(*COMMAND, "--runs", runs, log=tmp_path / "log", steps=[victim.SmallFiles(1500), victim.RECIPE])
    assert run.end() == 2, run.said
    assert f"{folder}" in the_one_line(run)
    assert "File too large; raise the limit" in the_one_line(run)
    again = victim.start(*COMMAND, "--runs", runs, log=tmp_path / "again")
    assert again.end() == 0, again.said
    steady.assert_same(runs)


@pytest.mark.usefixtures("_mounts")
def test_a_read_only_folder_still_shows_what_is_finished(steady: Run, tmp_path: Path) -> None:
    start = partial(victim.start, *COMMAND, log=tmp_path / "log", steps=[victim.ReadOnly(steady.runs), victim.RECIPE])
    run = start("--runs", steady.runs)
    assert run.end() == 0, run.said


@pytest.mark.usefixtures("_mounts")
@pytest.mark.parametrize("name", ["data", "student", "report"])
def test_a_read_only_folder_is_one_line(steady: Run, tmp_path: Path, name: str) -> None:
    runs = Path(shutil.copytree(steady.runs, tmp_path / "runs"))
    folder = runs / steady.stages()[name].folder.relative_to(steady.runs)
    for gone in (lambda: (folder / artifact.MANIFEST).unlink(), lambda: shutil.rmtree(folder)):
        gone()
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        run = victim.start(*COMMAND, "--runs", runs, log=log, steps=[victim.ReadOnly(runs), victim.RECIPE])
        assert run.end() == 2, run.said
        assert the_one_line(run).startswith(f"{folder}: cannot be written: Read-only file system; ")


def cuts(size: int) -> list[int]:
    """Lengths that a file of this size may be cut to; a last line break is no loss."""
    return sorted({0, 1, size // 3, size // 2, size - 2})


def test_every_file_cut_short_is_one_line_that_names_it(
    steady: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Path(shutil.copytree(steady.runs, tmp_path / "runs"))
    files = [path for path in runs.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} >= {".parquet", ".npz", ".onnx", ".safetensors", ".json"}
    command = [*map(str, COMMAND), "--runs", str(runs), "--plan"]
    for path in files:
        whole = path.read_bytes()
        for length in cuts(len(whole)):
            os.truncate(path, length)
            assert main(command) == 2
            (said,) = capsys.readouterr().err.splitlines()
            assert str(path) in said
            path.write_bytes(whole)
    assert main(command) == 0


def test_every_file_of_a_bundle_cut_short_is_an_error_that_names_it(steady: Run, tmp_path: Path) -> None:
    bundle = shutil.copytree(steady.stages()["served"].folder / "int8", tmp_path / "bundle")
    for path in [*Path(bundle).iterdir()]:
        whole = path.read_bytes()
        for length in cuts(len(whole)):
            os.truncate(path, length)
            with pytest.raises(ArtifactError, match=rf"^{path}[^\n]*$"):
                Recommender.load(bundle)
            path.write_bytes(whole)
    assert Recommender.load(bundle).top_k(["1", "2"])


def test_a_table_of_the_users_cut_short_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "interactions.parquet"
    rows = [(user, (user + step) % 40, step) for user in range(60) for step in range(12)]
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_parquet(path)
    data = f"data={{source: parquet, path: {path}}}"
    command = [str(TINY), "--set", data, "--runs", str(tmp_path / "runs"), "--only", "data", "--one-process"]
    assert main(command) == 0
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        capsys.readouterr()
        assert main(command) == 2
        progress, said = capsys.readouterr().err.splitlines()
        assert " running " in progress
        assert said.startswith(f"{path}: cannot be read: ")
