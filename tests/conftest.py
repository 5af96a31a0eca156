"""Fixtures that several test files share."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "recipes" / "tiny.yaml"


def recpress(*arguments: str | Path, module: str = "recipes") -> subprocess.CompletedProcess[str]:
    """Runs a command of the project in a process of its own, as a user would."""
    line: Sequence[str] = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of recipes/tiny.yaml, made once; `runs` folder. Read it, or copy it and break the copy.

    Of several workers the first makes it; the others wait, and recognise it.
    """
    home = tmp_path_factory.getbasetemp()
    home = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home
    runs = home / "tiny" / "runs"
    runs.parent.mkdir(exist_ok=True)
    with (runs.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = recpress(TINY, "--runs", runs, "--one-process")
    assert ended.returncode == 0, ended.stderr[-3000:]
    return runs


@pytest.fixture
def broken_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to break."""
    return Path(shutil.copytree(tiny_run, tmp_path / "runs"))
