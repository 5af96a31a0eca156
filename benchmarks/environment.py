"""The machine that a report was made on."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

from compress.provenance import ROOT, hardware, version

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "numpy", "polars")


def describe(threads: int) -> dict[str, Any]:
    """Processor, threads, versions; `gpu` is null where there is none."""
    return {
        **hardware(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in PACKAGES},
    }


def commit() -> str:
    """The checkout's commit, with a + if files differ from it; "unknown" outside a checkout."""
    try:
        head, changed = (
            subprocess.run(
                ["git", *command], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
            for command in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")
