"""The command line of every stage: `python -m compress.distill recipe.yaml` and its siblings.

`make` is also how `python -m recipes` makes each stage of a recipe.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import artifact, processes
from compress.artifact import Artifact
from compress.errors import ArtifactError, LaunchError, RecipeError, RecPressError
from compress.recipe import load
from compress.recipe.recipe import check_seeds
from compress.recipe.training import TrainingSection
from compress.stage import MODULES, TRAINED, Stage, graph, lineage

INTERRUPTED = 130

SET = "override a key with a YAML value, such as 'measure.candidates=[student]'; once for each key"


@dataclass(frozen=True)
class Option:
    """An option of one kind of stage alone: with it, stages are not made, but something else is done with each."""

    flag: str
    metavar: str
    help: str
    act: Callable[[Stage, str], None]
    """From a stage whose inputs are there, and the option's value."""


def main(kind: str, option: Option | None = None) -> int:
    """Runs a recipe's stages of one kind; what they need and is missing is made first, each in a process of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULES[kind]}", description=f"Runs a recipe's {kind} stages.")
    add_arguments(parser)
    parser.add_argument("--stage", help="only the stage of this name")
    parser.add_argument("--no-inputs", action="store_true", help="end with 2 where an input is missing")
    if option:
        parser.add_argument(option.flag, metavar=option.metavar, help=option.help, dest="option")
    return guarded(lambda: _command(kind, parser.parse_args(), option), together=kind in TRAINED)


def _command(kind: str, arguments: argparse.Namespace, option: Option | None) -> int:
    every = open_graph(arguments)
    stages = [stage for stage in every if stage.kind == kind and arguments.stage in (None, stage.name)]
    if not stages:
        raise RecipeError(f"{arguments.recipe}: {_absent(kind, arguments.stage, every)}")
    for stage in stages:
        for each in (*lineage(stage), stage):
            _check_batch(each)
    passed = True
    for stage in stages:
        missing = [needed for needed in lineage(stage) if needed.why_not_done()]
        for needed in missing:
            if arguments.no_inputs:
                advice = shlex.join(["python", *command_line(needed, arguments)[1:]])
                why = f"is not up to date ({needed.why_not_done()})"
                raise ArtifactError(f"{stage.label} needs {needed.label}, which {why}; make it with: {advice}")
            make(needed, arguments, here=processes.count() > 1 and needed.kind in TRAINED)
        if option and arguments.option is not None:
            option.act(stage, arguments.option)
            continue
        passed &= make(stage, arguments, force=arguments.force, here=True).metrics.get("passed", True)
    return 0 if passed else 3


def _check_batch(stage: Stage) -> None:
    section = stage.section
    if isinstance(section, TrainingSection) and section.batch_size < processes.count():
        raise LaunchError(
            f"stages.{stage.name}.batch_size: {section.batch_size} sequences a step for {processes.count()} processes; "
            "give each at least one: start fewer processes or raise batch_size"
        )


def make(stage: Stage, arguments: argparse.Namespace, *, force: bool = False, here: bool = False) -> Artifact:
    """Makes one stage, in this process (`here`) or in one of its own, and says so."""
    why = "forced" if force else stage.why_not_done()
    if why is None:
        say(stage, "cached")
        return artifact.read(stage.folder, verify=False)
    say(stage, "running", f"{stage.kind}: {why}")
    if here:
        made = stage.run(force=force)
    else:
        line = [*command_line(stage, arguments), "--no-inputs", *(["--force"] if force else [])]
        code = _ended(line)
        if code < 0:  # it had no time to say why; SIGKILL is mostly the kernel, out of memory
            print(f"{stage.label}: killed by {signal.Signals(-code).name}", file=sys.stderr)
            raise SystemExit(128 - code)
        if code not in (0, 3):
            raise SystemExit(code)  # the stage has said why
        made = artifact.read(stage.folder, verify=False)
    facts = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in headline(made)
    )
    say(stage, "done", f"{made.manifest.seconds:.1f} s  {facts}")
    return made


def _ended(line: list[str]) -> int:
    """The status of a stage's process. Who is told to end (a container stops, CI cancels) passes it on and waits."""
    with subprocess.Popen(line, env={**processes.environment_alone(), "RECPRESS_QUIET": "1"}) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return process.wait()
        except BaseException:  # Ctrl-C reaches both
            process.kill()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def headline(made: Artifact) -> list[tuple[str, Any]]:
    """The few numbers of an artifact that a log line has room for."""
    return [(key, value) for key, value in made.metrics.items() if isinstance(value, int | float | str)][:4]


def say(stage: Stage, state: str, detail: str = "") -> None:
    """One line of progress, unless the parent process says it."""
    if "RECPRESS_QUIET" not in os.environ:
        print(f"{stage.label:<20} {state:<8} {detail}".rstrip(), file=sys.stderr, flush=True)


def command_line(stage: Stage, arguments: argparse.Namespace) -> list[str]:
    """The command that makes one stage at one seed."""
    line = [sys.executable, "-m", MODULES[stage.kind], str(arguments.recipe), "--stage", stage.name]
    line += ["--runs", str(arguments.runs)]
    seeds = arguments.seeds if stage.seed is None else str(stage.seed)
    line += ["--seeds", seeds] if seeds else []
    return line + [part for override in arguments.overrides for part in ("--set", override)]


def _absent(kind: str, name: str | None, stages: Sequence[Stage]) -> str:
    """Why there is nothing to run."""
    same_name = next((stage for stage in stages if stage.name == name), None)
    if same_name:
        return f"{name} is a {same_name.kind} stage; run it with python -m {MODULES[same_name.kind]}"
    same_kind = sorted({stage.name for stage in stages if stage.kind == kind})
    if same_kind:
        return f"no {kind} stage {name!r}; {kind} stages: {', '.join(same_kind)}"
    return f"the recipe has no {kind} stage; its stages: {', '.join(dict.fromkeys(stage.name for stage in stages))}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that reads a recipe takes."""
    parser.add_argument("recipe", type=Path, metavar="recipe.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help=SET,
    )
    parser.add_argument("--seeds", metavar="0,1,2", help="train with these instead of the recipe's")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all artifacts (default: runs)")
    parser.add_argument("--force", action="store_true", help="make it again even if it is there")


def open_graph(arguments: argparse.Namespace) -> list[Stage]:
    """The stages of the recipe that the command line names."""
    recipe = load(arguments.recipe, arguments.overrides)
    seeds = None
    if arguments.seeds:
        try:
            seeds = [int(part) for part in arguments.seeds.split(",")]
        except ValueError:
            raise RecipeError(f"--seeds {arguments.seeds}: write numbers with commas between, like 0,1,2") from None
        try:
            check_seeds(seeds, "--seeds")
        except ValueError as error:
            raise RecipeError(str(error)) from None
    return graph(recipe, arguments.runs, seeds)


def guarded(body: Callable[[], int], *, together: bool = False) -> int:
    """Runs a command; an error on purpose becomes one line and its exit code.

    Args:
        together: whether several processes can run it. The first runs `body`, the others train when it says so, and
            all end with its code.
    """
    if processes.count() == 1:
        return _in_one_line(body)
    if processes.rank():
        return _follow()
    return _lead(body if together else _refuse)


def _in_one_line(body: Callable[[], int]) -> int:
    try:
        code = body()
        if sys.stdout:  # none where it was closed before
            sys.stdout.flush()  # here, and not when nobody listens to its errors any more
        return code
    except RecPressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer
        if error.errno == errno.EPIPE:  # whoever read it has read enough
            return 1
        print(f"the output cannot be written: {error.strerror}", file=sys.stderr)
        return RecPressError.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED


def _lead(body: Callable[[], int]) -> int:
    processes.meet()  # now: making inputs may take longer than the others wait for a first meeting
    try:
        code = _in_one_line(body)
    except SystemExit as ended:  # a wrong argument, or an input whose process has said why
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    if code != INTERRUPTED:  # as the others are
        processes.end(code)
        processes.leave()
    return code


def _follow() -> int:
    try:
        while True:
            stage = processes.first_says(None)
            assert isinstance(stage, Stage)
            stage.join()
    except SystemExit as ended:
        processes.leave()
        return int(ended.code or 0)


def _refuse() -> int:
    able = " and ".join(f"python -m {MODULES[kind]}" for kind in TRAINED)
    raise LaunchError(f"several processes are for {able}; start every other command without torchrun or accelerate")
