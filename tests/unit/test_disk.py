"""What the disk is the cause of is one line; everything else keeps its traceback."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from compress import disk
from compress.errors import ArtifactError, DataError


def said_of(error: Exception, folder: Path) -> str:
    with pytest.raises(ArtifactError) as raised, disk.writing(folder):
        raise error
    return str(raised.value)


@pytest.mark.parametrize("code", disk.REMEDIES)
def test_what_the_system_says_is_one_line_with_a_remedy(tmp_path: Path, code: int) -> None:
    said = said_of(OSError(code, os.strerror(code)), tmp_path)
    assert said == (
        f"{tmp_path}: cannot be written: {os.strerror(code)}; {disk.REMEDIES[code]}; "
        "finished stages are kept and the same command goes on"
    )


def test_the_file_is_named_and_of_a_copy_the_second(tmp_path: Path) -> None:
    assert said_of(OSError(errno.ENOSPC, "full", "a.npz"), tmp_path).startswith("a.npz: cannot be written: ")
    assert said_of(OSError(errno.ENOSPC, "full", "from", None, "to"), tmp_path).startswith("to: cannot be written: ")


@pytest.mark.parametrize(
    "words",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",  # safetensors
        "parquet: File out of specification: underlying IO error: No space left on device (os error 28)",  # polars
    ],
)
def test_a_library_that_only_quotes_the_system_is_understood(tmp_path: Path, words: str) -> None:
    assert "No space left on device; make room there" in said_of(ValueError(words), tmp_path)


def test_a_cause_behind_another_exception_is_found(tmp_path: Path) -> None:
    outer = RuntimeError("the file cannot be closed")
    outer.__context__ = OSError(errno.EDQUOT, "quota")
    assert "Disk quota exceeded; make room there" in said_of(outer, tmp_path)


@pytest.fixture
def _small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_files")
def test_a_library_that_says_nothing_of_the_disk_is_seen_through(tmp_path: Path) -> None:
    with (  # numpy: "100000 requested and 6234 written"
        pytest.raises(ArtifactError, match=r"^[^\n]*File too large; raise the limit"),
        disk.writing(tmp_path),
    ):
        np.save(tmp_path / "x.npy", np.zeros(100_000))


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    assert "No such file or directory" in said_of(RuntimeError("?"), tmp_path / "gone")


@pytest.mark.parametrize("bug", [RuntimeError("shapes differ"), FileNotFoundError(errno.ENOENT, "no x"), KeyError(28)])
def test_a_bug_on_a_healthy_disk_keeps_its_traceback_and_the_probe_leaves_nothing(
    tmp_path: Path, bug: Exception
) -> None:
    with pytest.raises(type(bug)) as raised, disk.writing(tmp_path):
        raise bug
    assert raised.value is bug
    assert not list(tmp_path.iterdir())


def test_a_bug_on_a_full_disk_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_probed", lambda folder: OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(KeyError), disk.writing(tmp_path):
        raise KeyError("a")
    said = r"No space left on device; make room .* \(RuntimeError: shapes differ\)$"
    with pytest.raises(ArtifactError, match=said), disk.writing(tmp_path):
        raise RuntimeError("shapes differ\nby two")


def test_an_error_on_purpose_passes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^No space left on device$"), disk.writing(tmp_path):
        raise DataError("No space left on device")
