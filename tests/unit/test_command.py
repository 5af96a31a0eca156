"""The command lines: what is made first and where, exit codes, and the one line that says what to do next.

The stages are fakes on disk, so that a process of its own can run them too.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from compress import artifact, command, stage
from compress.errors import (
    ArtifactError,
    DataError,
    GateFailed,
    ParityError,
    RecipeError,
    RecPressError,
)
from recipes.__main__ import main as recpress

ROOT = Path(__file__).resolve().parents[2]

RECIPE = """\
name: small
data: {source: synthetic}
stages:
  teacher: {kind: finetune, model: {family: bert4rec}}
  student: {kind: distill, teacher: teacher, model: {family: bert4rec}, losses: [{kind: kl}]}
  served: {kind: export, inputs: [teacher, student]}
measure: {export: served, teacher: teacher, candidates: [student]}
gate: {size: {min_ratio: 8}}
"""
NAMES = ["data", "teacher", "student", "served", "measure", "report"]

FAKE = """\
import os
import signal
import sys

def run(section, inputs, workspace):
    name = workspace.folder.name
    step = workspace.resume / "step"
    resumed = step.exists()
    step.write_text("7")
    if os.environ.get("FAKE_FAILS") == name:
        raise RuntimeError("the stage failed")
    if os.environ.get("FAKE_KILLED") == name:
        os.kill(os.getpid(), signal.SIGKILL)
    (workspace.folder / "process.txt").write_text(str(os.getpid()))
    (workspace.folder / "summary.txt").write_text("student passes")
    return {"resumed": resumed, "passed": os.environ.get("FAKE_MISSES") != name}

if __name__ == "__main__":
    from compress import command, stage
    for kind in stage.MODULES:
        stage.MODULES[kind] = f"fake_{kind}"
    sys.exit(command.main(__spec__.name.removeprefix("fake_")))
"""


class Desk:
    """Where a user types commands."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recipe = home / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        self.runs = home / "runs"
        self._monkeypatch = monkeypatch

    def stage(self, kind: str, *arguments: str) -> int:
        """`python -m compress.<kind> recipe.yaml ...`, in this process."""
        line = [f"fake_{kind}", str(self.recipe), "--runs", str(self.runs), *arguments]
        self._monkeypatch.setattr(sys, "argv", line)
        return command.main(kind)

    def recpress(self, *arguments: str) -> int:
        """`python -m recipes recipe.yaml ...`, all in this process."""
        return recpress([str(self.recipe), "--runs", str(self.runs), "--one-process", *arguments])

    def folder(self, name: str, seed: int = 0) -> Path:
        parent = self.runs / "small"
        return parent / name if name in ("data", "report") else parent / f"seed-{seed}" / name

    def made(self, seed: int = 0) -> list[str]:
        return [name for name in NAMES if (self.folder(name, seed) / artifact.MANIFEST).exists()]

    def process(self, name: str) -> int:
        return int((self.folder(name) / "process.txt").read_text())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    for kind in stage.MODULES:
        (tmp_path / f"fake_{kind}.py").write_text(FAKE)
        monkeypatch.setitem(stage.MODULES, kind, f"fake_{kind}")
        monkeypatch.delitem(sys.modules, f"fake_{kind}", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.delenv("RECPRESS_QUIET", raising=False)
    return Desk(tmp_path, monkeypatch)


Capture = pytest.CaptureFixture[str]


def last_line(capture: Capture) -> str:
    """The last line on stderr."""
    return capture.readouterr().err.splitlines()[-1]


def states(text: str) -> list[tuple[str, str]]:
    """Name and state of every line of progress."""
    return re.findall(r"^(\w+)(?: \(seed \d\))? +(running|done|cached|run)\b", text, re.MULTILINE)


def test_inputs_are_made_first_each_in_a_process_of_its_own(desk: Desk, capfd: Capture) -> None:
    assert desk.stage("distill") == 0
    assert desk.made() == NAMES[:3]
    assert desk.process("student") == os.getpid()
    assert len({desk.process(name) for name in NAMES[:3]}) == 3
    assert states(capfd.readouterr().err) == [
        (name, state) for name in NAMES[:3] for state in ("running", "done")
    ]  # each said once, by the parent


def test_no_inputs_ends_with_2_and_its_advice_leads_to_the_artifact(desk: Desk, capfd: Capture) -> None:
    odd = "stages.student.losses=[{kind: kl, temperature: 2}]"
    followed = []
    while desk.stage("distill", "--no-inputs", "--set", odd) == 2:
        said = last_line(capfd)
        assert "which is not up to date (not there yet); make it with: " in said
        python, *advice = shlex.split(said.partition("make it with: ")[2])
        assert python == "python"
        assert odd in advice
        followed.append(advice[advice.index("--stage") + 1])
        subprocess.run([sys.executable, *advice], check=True)
    assert followed == ["data", "teacher"]
    assert desk.made() == NAMES[:3]


def test_no_inputs_makes_none(desk: Desk) -> None:
    assert desk.stage("distill", "--no-inputs") == 2
    assert not desk.runs.exists()


def test_what_is_cached_is_said_and_not_run(desk: Desk, capsys: Capture) -> None:
    assert desk.recpress() == 0
    capsys.readouterr()
    before = {name: (desk.folder(name) / artifact.MANIFEST).read_bytes() for name in NAMES}
    assert desk.recpress() == 0
    assert states(capsys.readouterr().err) == [(name, "cached") for name in NAMES]
    assert {name: (desk.folder(name) / artifact.MANIFEST).read_bytes() for name in NAMES} == before


def test_force_makes_it_again_and_its_inputs_not(desk: Desk, capsys: Capture) -> None:
    desk.recpress()
    capsys.readouterr()
    assert desk.stage("distill", "--force") == 0
    assert states(capsys.readouterr().err) == [("student", "running"), ("student", "done")]


def test_each_stage_of_a_kind_and_each_seed_is_made(desk: Desk) -> None:
    desk.recipe.write_text(
        RECIPE.replace("  student:", "  control: {kind: finetune, model: {family: bert4rec}}\n  student:")
    )
    assert desk.recpress("--only", "data") == 0
    assert desk.stage("finetune", "--seeds", "3,4", "--stage", "teacher") == 0
    assert (desk.made(3), desk.made(4)) == (NAMES[:2], NAMES[:2])
    assert not desk.folder("control", 3).exists()
    assert desk.stage("finetune") == 0
    assert desk.folder("control").exists()


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("finetune", ["--stage", "student"], "student is a distill stage; run it with python -m fake_distill"),
        ("finetune", ["--stage", "nobody"], "no finetune stage 'nobody'; finetune stages: "),
        ("quantize", [], "the recipe has no quantize stage"),
        ("finetune", ["--seeds", "0,x"], "--seeds 0,x: write numbers with commas between, like 0,1,2"),
        ("finetune", ["--seeds", ","], "--seeds ,: write numbers with commas between, like 0,1,2"),
        ("finetune", ["--seeds=-1"], "--seeds: [-1]: one or several different numbers from 0 to 4294967295"),
        ("finetune", ["--seeds", "1,1"], "--seeds: [1, 1]: one or several different numbers from 0 to 4294967295"),
        ("finetune", ["--set", "x"], "--set x: write it as path.to.key=value"),
        ("finetune", ["--set", "x=1"], "x: unknown key"),
    ],
)
def test_a_command_that_makes_no_sense_ends_with_2_and_a_line(
    desk: Desk, capsys: Capture, kind: str, arguments: list[str], said: str
) -> None:
    assert desk.stage(kind, *arguments) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not desk.runs.exists()


def test_a_stage_killed_in_its_process_is_told_and_goes_on(
    desk: Desk, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KILLED", "data")
    with pytest.raises(SystemExit, match="137"):
        desk.stage("finetune")
    assert last_line(capfd) == "data: killed by SIGKILL"
    monkeypatch.delenv("FAKE_KILLED")
    assert desk.stage("finetune") == 0
    assert artifact.read(desk.folder("data")).metrics["resumed"] is True
    assert "prepare: resumes" in capfd.readouterr().err


def test_who_is_told_to_end_tells_the_process_of_the_stage(tmp_path: Path) -> None:
    stage = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    runner = f"import sys; from compress import command; sys.exit(128 - command._ended({stage!r}))"
    with subprocess.Popen([sys.executable, "-c", runner], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        working = int(process.stdout.readline())
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(working, 0)


def test_a_bug_in_a_stage_keeps_its_traceback_and_ends_what_needs_it(
    desk: Desk, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAILS", "data")
    with pytest.raises(SystemExit, match="1"):
        desk.stage("finetune")
    assert "Traceback" in capfd.readouterr().err
    assert desk.made() == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("x.yaml:3: wrong"), 2),
        (DataError("x.csv: wrong"), 2),
        (ArtifactError("runs/x: wrong"), 2),
        (ParityError("x.onnx: wrong"), 2),
        (GateFailed("x: wrong"), 3),
    ],
)
def test_an_error_on_purpose_is_one_line_and_its_code(capsys: Capture, error: RecPressError, code: int) -> None:
    def body() -> int:
        raise error

    assert command.guarded(body) == code
    assert capsys.readouterr() == ("", f"{error}\n")


def test_an_interruption_says_that_the_run_can_go_on(capsys: Capture) -> None:
    def body() -> int:
        raise KeyboardInterrupt

    assert command.guarded(body) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from the last checkpoint\n"


def test_anything_else_is_a_bug_and_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        command.guarded(lambda: 1 // 0)


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_returns_ends_with_what_it_returned(code: int) -> None:
    assert command.guarded(lambda: code) == code


def test_a_whole_recipe_prints_its_summary_and_where_the_report_is(desk: Desk, capsys: Capture) -> None:
    assert desk.recpress() == 0
    assert capsys.readouterr().out == f"student passes\n{desk.folder('report') / 'report.html'}\n"
    assert desk.made() == NAMES


def test_a_gate_that_fails_ends_with_3_each_time(desk: Desk, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MISSES", "report")
    assert desk.recpress() == 3
    assert "report.html" in capsys.readouterr().out
    monkeypatch.delenv("FAKE_MISSES")
    assert desk.recpress() == 3  # cached, and still failed
    assert desk.stage("report") == 3


def test_a_gate_that_fails_in_a_process_of_its_own_ends_with_3_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.recpress("--only", ",".join(NAMES[:-1])) == 0
    monkeypatch.setenv("FAKE_MISSES", "report")
    assert recpress([str(desk.recipe), "--runs", str(desk.runs)]) == 3
    assert desk.process("report") != os.getpid()


def test_a_plan_says_what_would_run_and_why_and_runs_nothing(desk: Desk, capsys: Capture) -> None:
    assert desk.recpress("--plan") == 0
    printed = capsys.readouterr().out
    assert states(printed) == [(name, "run") for name in NAMES]
    assert printed.endswith("6 to run\n")
    assert not desk.runs.exists()


def test_a_plan_counts_every_seed(desk: Desk, capsys: Capture) -> None:
    desk.recpress("--plan", "--seeds", "0,1")
    assert capsys.readouterr().out.endswith("10 to run\n")


def test_a_plan_of_what_is_done_has_nothing_to_run(desk: Desk, capsys: Capture) -> None:
    desk.recpress()
    capsys.readouterr()
    assert desk.recpress("--plan") == 0
    printed = capsys.readouterr().out
    assert states(printed) == [(name, "cached") for name in NAMES]
    assert printed.endswith("nothing to run\n")
    desk.recpress("--plan", "--set", "stages.student.epochs=3")
    printed = capsys.readouterr().out
    assert re.search(r"^student \(seed 0\) +run +distill +epochs changed from 12 to 3$", printed, re.MULTILINE)
    assert printed.endswith("4 to run\n")


@pytest.mark.parametrize("arguments", [["--only", "teachr"], ["--only", "teacher,teachr"], ["--from", "teachr"]])
def test_an_unknown_stage_ends_with_2_and_the_known_ones(desk: Desk, capsys: Capture, arguments: list[str]) -> None:
    assert desk.recpress(*arguments) == 2
    assert capsys.readouterr().err == (
        f"{desk.recipe}: no stage 'teachr'; stages: data, teacher, student, served, measure, report\n"
    )
    assert not desk.runs.exists()


def test_only_makes_those_stages_and_wants_their_inputs_there(desk: Desk, capsys: Capture) -> None:
    assert desk.recpress("--only", "student") == 2
    assert "the input data is not up to date: not there yet" in last_line(capsys)
    assert desk.recpress("--only", "data,teacher") == 0
    assert desk.recpress("--only", "student") == 0
    assert desk.made() == NAMES[:3]


def test_only_and_from_are_two_different_wishes(desk: Desk, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        desk.recpress("--only", "student", "--from", "teacher")
    assert "not allowed with" in capsys.readouterr().err


def test_from_makes_a_stage_and_everything_after_it(desk: Desk, capsys: Capture) -> None:
    desk.recpress()
    capsys.readouterr()
    assert desk.recpress("--from", "student", "--force") == 0
    running = [name for name, state in states(capsys.readouterr().err) if state == "running"]
    assert running == NAMES[2:]


def test_from_makes_what_a_new_seed_lacks_as_well(desk: Desk, capsys: Capture) -> None:
    desk.recpress()
    capsys.readouterr()
    assert desk.recpress("--from", "student", "--seeds", "0,1") == 0
    ran = re.findall(r"^(\S+ \(seed \d\)) +running", capsys.readouterr().err, re.MULTILINE)
    assert "teacher (seed 1)" in ran
    assert "teacher (seed 0)" not in ran


def test_a_finished_run_is_recognised_without_what_trains(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "tiny.yaml"
    line = [sys.executable, "-X", "importtime", "-m", "recipes", str(recipe), "--plan", "--runs", str(tmp_path)]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {row.rpartition("|")[2].strip().partition(".")[0] for row in ended.stderr.splitlines()}
    assert "pydantic" in imported
    assert not imported & {"torch", "transformers", "polars", "numpy", "onnx", "onnxruntime", "matplotlib"}


@pytest.mark.parametrize("device", ["/dev/full", "closed"])
def test_output_that_cannot_be_written_is_one_line_or_none(tmp_path: Path, device: str) -> None:
    line = [sys.executable, "-m", "recipes", str(ROOT / "recipes" / "tiny.yaml"), "--plan", "--runs", str(tmp_path)]
    if device == "closed":  # as `| head` does
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        said, code = process.stderr.read(), process.wait()
        assert (said, code) == ("", 1)
        return
    with Path(device).open("w") as full:
        ended = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (ended.stderr, ended.returncode) == ("the output cannot be written: No space left on device\n", 2)
