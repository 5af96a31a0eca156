"""The shell that all stages share: the graph of a recipe's stages, what is up to date, locks, manifests, the command line.

A stage module has one function, `run(section, inputs, workspace) -> metrics`, and is found by its kind. Torch is loaded by
the stage modules, never here: `python -m recipes` recognises a finished run in a blink.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from compress import artifact, provenance
from compress.artifact import Artifact
from compress.errors import ArtifactError, DataError, RecipeError, RecPressError
from compress.recipe import Recipe, load
from compress.recipe.base import Section

MODULES = {
    "prepare": "compress.prepare",
    "finetune": "compress.finetune",
    "distill": "compress.distill",
    "quantize": "compress.quantize",
    "export": "deploy.export",
    "measure": "benchmarks.measure",
    "report": "benchmarks.report",
}
"""Kind of a stage: the module whose `run` makes it. Named, not imported: `compress` lies below `deploy` and `benchmarks`."""

TIMED = ("export", "measure")
"""Kinds whose result depends on the processor: kernels chosen for it, and latencies."""

RESUME = ".resume"
LOCK = ".lock"


@dataclass(frozen=True)
class Workspace:
    """Where a running stage writes."""

    folder: Path
    """Becomes the artifact when `run` returns."""
    seed: int

    @property
    def resume(self) -> Path:
        """Private scratch that outlives a killed run of the same fingerprint; deleted on completion."""
        return self.folder / RESUME


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe at one seed, and everything it is made from."""

    name: str
    kind: str
    section: Section
    inputs: Mapping[str, Stage]
    folder: Path
    seed: int | None = None

    @cached_property
    def ingredients(self) -> dict[str, Any]:
        """Everything that the result depends on; the fingerprint is its hash."""
        module = MODULES[self.kind]
        content = self.section.resolved()
        for key, value in content.items():
            if isinstance(getattr(self.section, key, None), Path):  # what is in a file counts, not where it lies
                content[key] = _content_digest(Path(value))
        return {
            "section": content,
            "seed": self.seed,
            "inputs": {name: stage.fingerprint for name, stage in self.inputs.items()},
            "sources": provenance.sources_digest(module),
            "packages": provenance.package_versions(module),
            "hardware": provenance.hardware() if self.kind in TIMED else {},
        }

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.ingredients, sort_keys=True).encode()).hexdigest()

    @property
    def label(self) -> str:
        return self.name if self.seed is None else f"{self.name} (seed {self.seed})"

    def why_not_done(self) -> str | None:
        """None if the folder holds this very result, else what is different, in words.

        Raises: ArtifactError if it does but a file is damaged.
        """
        if not (self.folder / artifact.MANIFEST).exists():
            return "resumes" if (self.folder / RESUME).exists() else "not there yet"
        found = artifact.read(self.folder, verify=False)
        if found.fingerprint != self.fingerprint:
            return _difference(found.manifest.ingredients, self.ingredients)
        artifact.read(self.folder)
        return None

    def run(self, *, force: bool = False) -> Artifact:
        """Makes the artifact, unless it is there already. Its inputs must be."""
        with _lock(self.folder):
            if not force and self.why_not_done() is None:
                return artifact.read(self.folder, verify=False)
            inputs = {name: _finished(stage) for name, stage in self.inputs.items()}
            workspace = Workspace(self.folder, seed=self.seed or 0)
            _clear(self.folder, self.fingerprint, keep_resume=not force)
            started = time.monotonic()
            metrics = importlib.import_module(MODULES[self.kind]).run(self.section, inputs, workspace)
            shutil.rmtree(workspace.resume, ignore_errors=True)
            return artifact.write(
                self.folder,
                name=self.name,
                kind=self.kind,
                seed=self.seed,
                fingerprint=self.fingerprint,
                ingredients=self.ingredients,
                metrics=metrics,
                seconds=round(time.monotonic() - started, 3),
                environment={"python": sys.version.split()[0], **provenance.hardware()},
            )


def graph(recipe: Recipe, runs: Path, seeds: Sequence[int] | None = None) -> list[Stage]:
    """All stages of a recipe in an order that makes inputs first."""
    home = runs / recipe.name
    data = Stage("data", "prepare", recipe.data, {}, home / "data")
    stages = [data]
    measures: dict[str, Stage] = {}
    for seed in seeds or recipe.seeds:
        here: dict[str, Stage] = {"data": data}
        for name, section in recipe.stages.items():
            inputs = {source: here[source] for source in ("data", *section.inputs())}
            here[name] = Stage(name, section.kind, section, inputs, home / f"seed-{seed}" / name, seed)
        if recipe.measure:
            sources = ("data", *recipe.measure.inputs(), recipe.measure.teacher)
            inputs = {source: here[source] for source in sources}
            folder = home / f"seed-{seed}" / "measure"
            here["measure"] = measures[f"measure-{seed}"] = Stage("measure", "measure", recipe.measure, inputs, folder, seed)
        stages += [stage for name, stage in here.items() if name != "data"]
    if recipe.measure and recipe.gate:
        stages.append(Stage("report", "report", recipe.gate, {"data": data, **measures}, home / "report"))
    return stages


def command(kind: str) -> int:
    """The command line of one kind of stage; what it needs and is missing is made first, each in a process of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULES[kind]}", description=f"Runs a recipe's {kind} stages.")
    add_arguments(parser)
    parser.add_argument("--stage", help="only the stage of this name")
    parser.add_argument("--no-inputs", action="store_true", help="end with 2 where an input is missing")
    return guarded(lambda: _command(kind, parser.parse_args()))


def _command(kind: str, arguments: argparse.Namespace) -> int:
    stages = [stage for stage in open_graph(arguments) if stage.kind == kind and arguments.stage in (None, stage.name)]
    if not stages:
        named = f" named {arguments.stage}" if arguments.stage else ""
        raise RecipeError(f"{arguments.recipe}: the recipe has no {kind} stage{named}")
    passed = True
    for stage in stages:
        missing = [needed for needed in lineage(stage) if needed.why_not_done()]
        for needed in missing:
            if arguments.no_inputs:
                raise ArtifactError(
                    f"{stage.label} needs {needed.label}, which is {needed.why_not_done()}; make it with: "
                    + " ".join(command_line(needed, arguments)[1:])
                )
            make(needed, arguments)
        passed &= make(stage, arguments, force=arguments.force, here=True).metrics.get("passed", True)
    return 0 if passed else 3


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
        ended = subprocess.run(line, env={**os.environ, "RECPRESS_QUIET": "1"})
        if ended.returncode not in (0, 3):
            raise SystemExit(ended.returncode)  # the stage has said why
        made = artifact.read(stage.folder, verify=False)
    facts = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in headline(made))
    say(stage, "done", f"{made.manifest.seconds:.1f} s  {facts}")
    return made


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


def lineage(stage: Stage) -> list[Stage]:
    """Everything a stage is made from, inputs first, each once."""
    found: dict[Path, Stage] = {}

    def visit(node: Stage) -> None:
        for source in node.inputs.values():
            visit(source)
            found.setdefault(source.folder, source)

    visit(stage)
    return list(found.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that reads a recipe takes."""
    parser.add_argument("recipe", type=Path, metavar="recipe.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a key")
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
    return graph(recipe, arguments.runs, seeds)


def guarded(body: Any) -> int:
    """Runs a command; an error on purpose becomes one line and its exit code."""
    try:
        return int(body())
    except RecPressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _finished(stage: Stage) -> Artifact:
    why = stage.why_not_done()
    if why:
        raise ArtifactError(f"{stage.folder}: the input {stage.label} is {why}")
    return artifact.read(stage.folder, verify=False)


def _content_digest(path: Path) -> str:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        parts = [f"{file.relative_to(path)}:{artifact.digest(file)}" for file in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    try:
        return artifact.digest(path)
    except OSError as error:
        raise DataError(f"data.path: {path}: {error.strerror}") from None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the folder against a second run; the kernel lets go of it when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("w")
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written: {error.strerror}; choose another place with --runs") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(f"{folder} is being written by another run; wait for it or use --runs") from None
        yield


def _clear(folder: Path, fingerprint: str, *, keep_resume: bool) -> None:
    """Takes away what an earlier run left, the manifest first; resume state stays if it is of this very result."""
    (folder / artifact.MANIFEST).unlink(missing_ok=True)
    resume = folder / RESUME
    mark = resume / "fingerprint"
    if not (keep_resume and mark.exists() and mark.read_text() == fingerprint):
        shutil.rmtree(resume, ignore_errors=True)
    for path in folder.iterdir():
        if path.name not in (LOCK, RESUME):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    resume.mkdir(exist_ok=True)
    mark.write_text(fingerprint)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> str:
    """The first thing that two sets of ingredients disagree on, in words."""
    for key in sorted({*old, *new}):
        here = f"{at}.{key}" if at else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if before != after:
                return _difference(before, after, here)
        elif before != after:
            if here == "sources":
                return "its source code changed"
            if here.startswith("inputs."):
                return f"its input {key} changed"
            return f"{here.removeprefix('section.')} changed from {before} to {after}"
    return "changed"
