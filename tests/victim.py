"""Processes to be killed and starved: forked from one that has imported everything, so they start in a blink.

Whole recipes run in them, every stage in the one process, and nothing of them outlives its group's SIGKILL.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from recipes.__main__ import main

IMPORTED = [
    *("compress.prepare", "compress.finetune", "compress.distill", "compress.quantize", "compress.training"),
    *("deploy.export", "deploy.flops", "deploy.lowering", "deploy.runtimes.torch", "deploy.recommender"),
    *("benchmarks.measure", "benchmarks.report", "benchmarks.pages", "benchmarks.environment", "compress.baselines"),
    *("torch.onnx", "torch._dynamo", "onnxscript.optimizer", "onnx_ir.passes.common", "torch.onnx._internal.exporter"),
]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(IMPORTED)

CHANGES = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"})
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
READ_ONLY, REMOUNT, BIND = 1, 32, 4096

Step = Callable[[], object]
RECIPE = None
"""The step that is the command itself."""


@dataclass
class Victim:
    """A recipe that runs in a process of its own."""

    process: ForkServerProcess
    log: Path
    stages: Connection
    """Gets (its folder, changes to the file system before that) of each stage that begins; of "" at the end."""

    def wait_for(self, folder: Path) -> bool:
        """Whether the stage of this folder began; False once the process has ended without it."""
        return any(begun == str(folder) for begun, _ in self.begun())

    def begun(self) -> Iterator[tuple[str, int]]:
        try:
            while True:
                yield self.stages.recv()
        except (EOFError, OSError):  # it has ended, maybe in the middle of a message
            return

    def kill(self) -> None:
        """SIGKILL, to everything that it has started too."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)

    def end(self) -> int:
        """Waits. Returns the exit code, negative for a signal."""
        self.process.join(120)
        self.kill()
        assert self.process.exitcode is not None, "it did not end"
        return self.process.exitcode

    @property
    def said(self) -> list[str]:
        return self.log.read_text().splitlines()


def start(
    *arguments: str | Path,
    log: Path,
    steps: Sequence[Step | None] = (RECIPE,),
    die_at: tuple[Path, int] | None = None,
) -> Victim:
    """Starts `recpress` with these arguments.

    Args:
        steps: what the process does, in order; its exit code is the last recipe's.
        die_at: a stage's folder, and at which change to the file system after it was taken SIGKILL comes; at the next
            stage's begin at the latest.

    """
    stages, tell = FORKSERVER.Pipe(duplex=False)
    process = FORKSERVER.Process(target=_live, args=(list(map(str, arguments)), log, steps, die_at, tell))
    process.start()
    tell.close()
    return Victim(process, log, stages)


def _live(
    arguments: list[str], log: Path, steps: Sequence[Step | None], die_at: tuple[Path, int] | None, tell: Connection
) -> None:
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    changes, stage = 0, ""

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal changes, stage
        opened = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if not opened and event not in CHANGES:
            return
        changes += 1
        here = die_at is not None and stage == str(die_at[0])
        if opened and str(details[0]).endswith("/.lock"):
            stage = os.path.dirname(details[0])  # noqa: PTH120 - a Path here would raise events of its own
            tell.send((stage, changes))
            changes = 0
        elif not here or die_at is None or changes < die_at[1]:
            return
        if here:
            os.kill(0, signal.SIGKILL)

    sys.addaudithook(watch)
    status = 0
    for step in steps:
        if step is RECIPE:
            status = main([*arguments, "--one-process"])
            print(f"ended with {status}", flush=True)
        else:
            step()
    tell.send(("", changes))
    sys.exit(status)


@dataclass(frozen=True)
class SmallFiles:
    """No file may grow beyond so many bytes."""

    size_bytes: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size_bytes, resource.RLIM_INFINITY))


@dataclass(frozen=True)
class FullDisk:
    """The folder becomes a disk of its own: a copy of `source` without one stage, and little more room."""

    folder: Path
    source: Path
    without: Path
    """Of the source."""
    room_bytes: int

    def __call__(self) -> None:
        _own_mounts()
        _mount("tmpfs", self.folder, "tmpfs", 0, "size=16m")
        shutil.copytree(self.source, self.folder, dirs_exist_ok=True)
        shutil.rmtree(self.folder / self.without.relative_to(self.source))
        free = os.statvfs(self.folder)
        with (self.folder / FILL).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - self.room_bytes)


@dataclass(frozen=True)
class MoreRoom:
    """Somebody has tidied up."""

    folder: Path

    def __call__(self) -> None:
        (self.folder / FILL).unlink()


@dataclass(frozen=True)
class Rescue:
    """Copies to a disk that is there for others too."""

    folder: Path
    to: Path

    def __call__(self) -> None:
        shutil.copytree(self.folder, self.to)


@dataclass(frozen=True)
class ReadOnly:
    """The folder is mounted read-only; root passes by permission bits."""

    folder: Path

    def __call__(self) -> None:
        _own_mounts()
        _mount(str(self.folder), self.folder, "", BIND)
        _mount(str(self.folder), self.folder, "", BIND | REMOUNT | READ_ONLY)


def _own_mounts() -> None:
    """Mounts of this process alone, as root of a user namespace of its own."""
    user, group = os.getuid(), os.getgid()
    _checked(_libc.unshare(NEW_USER | NEW_MOUNTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _mount(what: str, where: Path, kind: str, flags: int, options: str = "") -> None:
    _checked(_libc.mount(what.encode(), os.fsencode(where), kind.encode(), flags, options.encode()))


def _checked(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


FILL = "fill"

_libc = ctypes.CDLL(None, use_errno=True)
