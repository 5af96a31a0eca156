"""What several tests of reports share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import environment, pages, report
from compress import metrics
from compress.recipe.judging import GateSection
from compress.stage import Workspace
from report_fakes import ALL_GATES, Judged, chosen, measure


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judged:
    """Runs the stage on fake measurements and returns report.json."""
    monkeypatch.setattr(environment, "commit", lambda: "abc123")
    monkeypatch.setattr(metrics, "RESAMPLES", 300)  # intervals nobody quotes
    monkeypatch.setattr(pages, "html", lambda made: "")  # charts take a second

    def judge(*measures: Mapping[str, Any], gate: GateSection = ALL_GATES) -> dict[str, Any]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        inputs = {
            f"measure-{seed}": measure(tmp_path / "run" / f"seed-{seed}", seed, **keywords)
            for seed, keywords in enumerate(measures or ({},))
        }
        folder = tmp_path / "run" / "report"
        folder.mkdir()
        returned = report.run(gate, inputs, Workspace(folder, seed=0))
        made: dict[str, Any] = json.loads((folder / "report.json").read_text())
        assert returned["passed"] == made["passed"]
        assert returned["chosen"] == chosen(made)
        return made

    return judge
