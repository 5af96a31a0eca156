"""A disk that is full, read-only or broken is the user's to mend: one line instead of a traceback.

Libraries say so in many ways: `OSError`, a text that ends in "(os error 28)", "Protobuf serialization failed".
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.errors import ArtifactError, RecPressError

ROOM = "make room there, or choose another place with --runs"

REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place with --runs",
    errno.EROFS: "make it writable, or choose another place with --runs",
    errno.EIO: "check the disk, or choose another place with --runs",
}
"""What no code of ours can be the cause of, and what to do about it."""

BUGS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, TypeError)
"""What no library says of a disk, so that the disk is not asked."""

BLOCK = 2**20


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around work that writes to `folder`.

    Raises: ArtifactError, one line, in place of an exception that the disk is the cause of. Any other is a bug and
        passes as it is.
    """
    try:
        yield
    except RecPressError:
        raise
    except Exception as error:
        named = _named(error)
        fault = named or (None if isinstance(error, BUGS) else _probed(folder))
        if fault is None:
            raise
        guessed = "" if named else f" ({type(error).__name__}: {str(error).partition(chr(10))[0][:160]})"
        remedy = REMEDIES.get(fault.errno or 0, REMEDIES[errno.EROFS])
        raise ArtifactError(
            f"{fault.filename or folder}: cannot be written: {fault.strerror}; {remedy}; "
            f"finished stages are kept and the same command goes on{guessed}"
        ) from error


def _named(error: BaseException | None) -> OSError | None:
    """What the system said, if an exception or what it came from names it by number or in words."""
    while error is not None:
        for code in REMEDIES:
            if isinstance(error, OSError) and error.errno == code:
                return OSError(code, os.strerror(code), error.filename2 or error.filename)  # of a copy, the second
            if os.strerror(code) in str(error):
                return OSError(code, os.strerror(code))
        error = error.__cause__ or error.__context__
    return None


def _probed(folder: Path) -> OSError | None:
    """What the system says of one more file there, a little larger than the largest: no smaller one would tell."""
    block = os.urandom(BLOCK)  # zeros would not fill a disk that compresses
    try:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(max(sizes, default=0) // BLOCK + 1):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except OSError as fault:
        fault.filename = None  # the probe's own
        return fault
    return None
