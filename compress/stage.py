"""What a stage is: the graph of a recipe's stages, what is up to date and why not, locks, manifests.

A stage module has one function, `run(section, inputs, workspace) -> metrics`, and is found by its kind. It loads torch;
nothing here does, so that a finished run is recognised in a blink.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

from compress import artifact, disk, processes, provenance
from compress.artifact import Artifact
from compress.errors import ArtifactError, DataError, RecPressError
from compress.recipe import Recipe
from compress.recipe.base import Section
from compress.recipe.judging import GateSection
from compress.recipe.recipe import RESERVED

MODULES = {
    "prepare": "compress.prepare",
    "adopt": "compress.adopt",
    "tokenize": "compress.tokenize",
    "features": "compress.features",
    "retrieve": "compress.retrieve",
    "finetune": "compress.finetune",
    "distill": "compress.distill",
    "profile": "deploy.profile",
    "prune": "compress.prune",
    "quantize": "compress.quantize",
    "refresh": "compress.refresh",
    "export": "deploy.export",
    "build": "deploy.build",
    "measure": "benchmarks.measure",
    "report": "benchmarks.report",
}
"""Kind of a stage: the module whose `run` makes it. Named, not imported: `deploy` and `benchmarks` lie above."""

TRAINED = ("finetune", "distill")
"""Kinds that several processes can make together."""

TIMED = ("profile", "export", "build", "measure")
"""Kinds whose result depends on the machine: kernels chosen for it, and latencies."""

RESUME = ".resume"
MARK = "fingerprint"
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
        home = self.name if self.name in RESERVED else f"stages.{self.name}"
        for keys, path in self.section.paths():  # what is in a file counts, not where it lies
            part = content
            for key in keys[:-1]:
                part = part[key]
            part[keys[-1]] = {"sha256": _content_digest(path, ".".join((home, *keys)))}
        return {
            "section": content,
            "seed": self.seed,
            "inputs": {name: stage.fingerprint for name, stage in self.inputs.items()},
            "sources": provenance.sources_digest(module),
            "packages": provenance.package_versions(module),
            **({"environment": named} if (named := self.section.environment()) else {}),
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
            return "resumes" if _resumes(self.folder, self.fingerprint) else "not there yet"
        found = artifact.read(self.folder, verify=False)
        if found.fingerprint != self.fingerprint:
            return _difference(found.manifest.ingredients, self.ingredients)
        artifact.read(self.folder)
        return None

    def run(self, *, force: bool = False) -> Artifact:
        """Makes the artifact, unless it is there already. Its inputs must be.

        Raises: ArtifactError if the folder or an input is in use, not up to date or damaged, or the disk refuses.
        """
        with _lock(self.folder):
            if not force and self.why_not_done() is None:
                return artifact.read(self.folder, verify=False)
            with ExitStack() as reading:
                for stage in self.inputs.values():
                    reading.enter_context(_unchanged(stage.folder))
                with disk.writing(self.folder):
                    return self._make(keep_resume=not force)

    def join(self) -> None:
        """Runs the stage along with the first process, which has locked its folder and writes what comes of it."""
        trouble: str | None = None
        try:
            inputs = self._inputs_here()
        except RecPressError as error:
            trouble = f"process {processes.rank()} on {socket.gethostname()}: {error}"
        if any(processes.all_say(trouble)):
            return
        with suppress(RecPressError):  # the first process meets the same one, and says it
            importlib.import_module(MODULES[self.kind]).run(self.section, inputs, self._workspace)

    def finished_inputs(self) -> dict[str, Artifact]:
        """The inputs, verified. Raises: ArtifactError if one is not there, not up to date or damaged."""
        return {name: _finished(stage) for name, stage in self.inputs.items()}

    def _inputs_here(self) -> dict[str, Artifact]:
        """The inputs as another process finds them; its machine must have the first one's code, packages and files."""
        module = MODULES[self.kind]
        here = self.ingredients | {
            "sources": provenance.sources_digest(module),
            "packages": provenance.package_versions(module),
        }
        if here != self.ingredients:
            raise ArtifactError(f"{self.label}: {_difference(self.ingredients, here)}")
        return self.finished_inputs()

    def _call_the_others(self) -> None:
        """Has the other processes join. Raises: ArtifactError if one of them cannot."""
        processes.first_says(self)
        troubles: list[str | None] = processes.all_say(None)
        for trouble in filter(None, troubles):
            raise ArtifactError(f"{trouble}; all machines need the same code, packages and --runs folder")

    @property
    def _workspace(self) -> Workspace:
        return Workspace(self.folder, seed=self.seed or 0)

    def _make(self, *, keep_resume: bool) -> Artifact:
        inputs = self.finished_inputs()
        workspace = self._workspace
        _clear(self.folder, self.fingerprint, keep_resume=keep_resume)
        started = time.monotonic()
        if processes.count() > 1:
            self._call_the_others()
        metrics = importlib.import_module(MODULES[self.kind]).run(self.section, inputs, workspace)
        made = artifact.write(
            self.folder,
            name=self.name,
            kind=self.kind,
            seed=self.seed,
            fingerprint=self.fingerprint,
            ingredients=self.ingredients,
            metrics=metrics,
            seconds=round(time.monotonic() - started, 3),
            environment={
                "python": sys.version.split()[0],
                "processes": str(processes.count()),
                **provenance.hardware(),
            },
        )
        shutil.rmtree(workspace.resume, ignore_errors=True)  # not before: the disk may have no room for the manifest
        return made


def graph(recipe: Recipe, runs: Path, seeds: Sequence[int] | None = None) -> list[Stage]:
    """All stages of a recipe in an order that makes inputs first."""
    home = runs / recipe.name
    data = Stage("data", "prepare", recipe.data, {}, home / "data")
    stages = [data]
    measures: dict[str, Stage] = {}
    for seed in seeds or recipe.seeds:
        here: dict[str, Stage] = {"data": data}
        for name, section in recipe.stages.items():
            judged_on = [recipe.candidates] if recipe.candidates in here else []
            inputs = {source: here[source] for source in ("data", *judged_on, *section.inputs())}
            here[name] = Stage(name, section.kind, section, inputs, home / f"seed-{seed}" / name, seed)
        if measure := recipe.measured:
            judged_on = [recipe.candidates] if recipe.candidates else []
            sources = ("data", *judged_on, *measure.inputs(), measure.teacher)
            inputs = {source: here[source] for source in sources}
            folder = home / f"seed-{seed}" / "measure"
            here["measure"] = measures[f"measure-{seed}"] = Stage("measure", "measure", measure, inputs, folder, seed)
        stages += [stage for name, stage in here.items() if name != "data"]
    if recipe.measure:
        stages.append(
            Stage("report", "report", recipe.gate or GateSection(), {"data": data, **measures}, home / "report")
        )
    return stages


def lineage(stage: Stage) -> list[Stage]:
    """Everything a stage is made from, inputs first, each once."""
    found: dict[Path, Stage] = {}

    def visit(node: Stage) -> None:
        for source in node.inputs.values():
            visit(source)
            found.setdefault(source.folder, source)

    visit(stage)
    return list(found.values())


def _finished(stage: Stage) -> Artifact:
    why = stage.why_not_done()
    if why:
        raise ArtifactError(f"{stage.folder}: the input {stage.label} is not up to date: {why}")
    return artifact.read(stage.folder, verify=False)


def _content_digest(path: Path, key: str) -> str:
    """Of a file or folder that the recipe names under `key`."""
    try:
        if not path.is_dir():
            return artifact.digest(path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        parts = [f"{file.relative_to(path)}:{artifact.digest(file)}" for file in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    except OSError as error:
        raise DataError(f"{key}: {path}: {error.strerror}") from None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds the folder against a second run; the kernel lets go of it when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not any((folder / name).exists() for name in (LOCK, artifact.MANIFEST)):
            raise ArtifactError(  # making the artifact would delete them
                f"{folder}: holds files that no run has made; remove them or choose another place with --runs"
            )
        handle = (folder / LOCK).open("w")
    except OSError as error:
        raise ArtifactError(
            f"{folder}: cannot be written: {error.strerror}; choose another place with --runs"
        ) from None
    with handle:
        _take(handle, folder, fcntl.LOCK_EX)
        yield


@contextmanager
def _unchanged(folder: Path) -> Iterator[None]:
    """Keeps another run from making an input anew while it is read."""
    if not (folder / LOCK).exists():  # nothing made here, or copied from elsewhere
        yield
        return
    with (folder / LOCK).open() as handle:
        _take(handle, folder, fcntl.LOCK_SH)
        yield


def _take(handle: TextIO, folder: Path, kind: int) -> None:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        raise ArtifactError(f"{folder} is in use by another run; wait for it or use --runs") from None


def _clear(folder: Path, fingerprint: str, *, keep_resume: bool) -> None:
    """Takes away what an earlier run left, the manifest first; resume state stays if it is of this very result."""
    (folder / artifact.MANIFEST).unlink(missing_ok=True)
    resume = folder / RESUME
    if not (keep_resume and _resumes(folder, fingerprint)):
        shutil.rmtree(resume, ignore_errors=True)
    for path in folder.iterdir():
        if path.name not in (LOCK, RESUME):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    resume.mkdir(exist_ok=True)
    (resume / MARK).write_text(_mark(fingerprint))


def _resumes(folder: Path, fingerprint: str) -> bool:
    """Whether a killed run of this very result has left its scratch."""
    mark = folder / RESUME / MARK
    return mark.is_file() and mark.read_bytes() == _mark(fingerprint).encode()


def _mark(fingerprint: str) -> str:
    """What scratch is of: each process has left its own random state, so that as many go on, or all begins anew."""
    return fingerprint if processes.count() == 1 else f"{fingerprint} in {processes.count()} processes"


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
