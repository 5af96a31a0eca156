"""Where other tools are installed, apart from everything else."""

from __future__ import annotations

from compress.errors import RecipeError
from compress.provenance import ROOT

PYTHON = ROOT / ".venv-peers" / "bin" / "python"


def check_environment() -> None:
    """Raises RecipeError if there is none."""
    if not PYTHON.exists():
        raise RecipeError(f"measure.peers: there is no {PYTHON}; make it with `make peers`")
