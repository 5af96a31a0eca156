"""What a stage's result depends on besides its inputs: source files, package versions, hardware.

Imports are read, not run, so that a finished stage is recognised without loading torch.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("compress", "deploy", "benchmarks", "recipes")

PLUMBING = (
    "compress.recipe.",
    "compress.errors.",
    "compress.artifact.",
    "compress.disk.",
    "compress.provenance.",
    "compress.stage.",
    "compress.command.",
)
"""Modules that carry results without shaping them: the resolved section and the manifest's schema version already say
what they contribute, and a reworded error message must not cost a teacher."""

DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "PyYAML"}
"""Packages whose import name is not their distribution's."""

ON_A_GPU = {"onnxruntime": "onnxruntime-gpu"}
"""Packages in whose place another brings the same modules, and CUDA."""


@cache
def sources_digest(module: str) -> str:
    """A hash of the source files that `module` reaches."""
    ours, _ = _reach(module)
    files = {file for path in ours.values() for file in path.parent.glob(f"{path.stem}.*")}  # a template beside it too
    parts = [f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in sorted(files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def package_versions(module: str) -> dict[str, str]:
    """Installed versions of the distributions that `module` reaches through our own source files."""
    _, foreign = _reach(module)
    return {name: version(name) for name in sorted(foreign)}


def version(distribution: str) -> str:
    """The installed version, or "absent"."""
    for name in (distribution, ON_A_GPU.get(distribution, distribution)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "absent"


@cache
def hardware() -> dict[str, str]:
    """The processor, and the GPU if there is one, that timings and the choice of kernels depend on."""
    facts = {"machine": platform.machine(), "cpus": str(os.cpu_count())}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                facts.setdefault("cpu", value.strip())
            elif key.strip() == "flags":
                facts.setdefault("vnni", str(any("vnni" in flag for flag in value.split())).lower())
    except OSError:  # no procfs: another operating system
        facts["cpu"] = platform.processor()
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line.partition(":")[2].strip() for path in gpus for line in path.read_text().splitlines()[:1]]
    return facts | ({"gpu": ", ".join(models)} if models else {})


@cache
def _reach(module: str) -> tuple[dict[str, Path], frozenset[str]]:
    """Our modules (with their files) and the foreign distributions that importing `module` leads to."""
    ours: dict[str, Path] = {}
    foreign: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name in ours or f"{name}.".startswith(PLUMBING):
            continue
        path = _file_of(name)
        if path is None:
            continue
        ours[name] = path
        tree = ast.parse(path.read_bytes())
        ours.update({f"{name}:{file.name}": file for file in _files_named(tree, path.parent)})
        if "." in name:
            queue.append(name.rpartition(".")[0])  # importing a.b runs a/__init__.py
        for imported in _imports(tree):
            top = imported.partition(".")[0]
            if top in OURS:
                queue.append(imported)
            elif top not in sys.stdlib_module_names:
                foreign.add(DISTRIBUTIONS.get(top, top))
    return ours, frozenset(foreign)


def _file_of(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _files_named(tree: ast.Module, folder: Path) -> list[Path]:
    """Files beside a module that it mentions by name: a template shapes the result as code does."""
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return [file for file in folder.iterdir() if file.name in names and file.is_file()]


def _imports(tree: ast.Module) -> set[str]:
    """Absolute names that a module imports, inside functions too; `from a import b` names both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names
