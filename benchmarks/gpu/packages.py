"""What a machine with PyTorch lacks, found out before anything is imported: the standard library alone."""

from __future__ import annotations

import re
import sys
import tomllib

from compress.provenance import ON_A_GPU, ROOT, version

UNUSED = frozenset({"matplotlib"})
MAKING = frozenset({"accelerate", "onnxscript", "torch-pruning"})
"""What RecPress needs and this command does not; what only training and exporting need."""


def missing(*, as_made: bool) -> str | None:
    """One line that installs what is not here; None if nothing is missing. Args: as_made: nothing is trained."""
    unused = UNUSED | MAKING if as_made else UNUSED
    lacking = [each for each in _declared() if each[0] not in unused and version(each[0]) == "absent"]
    if not lacking:
        return None
    wanted = " ".join(f"'{ON_A_GPU.get(name, name)}{versions}'" for name, versions in lacking)
    return f"{len(lacking)} packages are missing: {sys.executable} -m pip install {wanted}"


def outdated() -> str | None:
    """What is older than what RecPress is tested with: it may do nevertheless."""
    old = []
    for name, versions in _declared():
        least, found = re.match(r">=([\d.]+)", versions), version(name)
        if least and found != "absent" and _numbers(found) < _numbers(least[1]):
            old.append(f"{name} {found} ({versions})")
    return f"older than what is tested: {', '.join(old)}" if old else None


def _declared() -> list[tuple[str, str]]:
    """Names of packages, and the versions of each that will do."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [(found[1], found[2]) for each in content["project"]["dependencies"] if (found := _SPLIT.match(each))]


_SPLIT = re.compile(r"([\w-]+)(.*)")


def _numbers(version: str) -> list[int]:
    """2.13.0+cu130 as 2, 13, 0."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
