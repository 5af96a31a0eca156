"""A recipe that prunes, run as a user runs it: cut, recovered, served, foretold; and loaded as the README says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compress import artifact
from conftest import ROOT, recpress

RECIPE = ROOT / "recipes" / "tiny_prune.yaml"
SMALLER = {
    "data.users": "60",
    "stages.whole.examples": "200",
    "stages.pruned.examples": "200",
    "stages.profile.steps": "2",
    "stages.profile.threads": "1",
    "measure.threads": "1",
    "measure.batch_sizes": "[1]",
    "measure.seconds": "0.2",
}
CHANGES = [part for key, value in SMALLER.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run. A busy machine may fail what was foretold of microseconds: the gate may say so."""
    runs = tmp_path_factory.mktemp("prune")
    ended = recpress(RECIPE, "--runs", runs, "--one-process", *CHANGES)
    assert ended.returncode in (0, 3), ended.stderr[-3000:]
    return runs / "tiny-prune"


def test_what_is_cut_is_smaller_and_served(runs: Path) -> None:
    report = json.loads((runs / "report" / "report.json").read_text())
    rows = {variant["name"]: variant for variant in report["variants"]}
    assert rows["cut"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["cut"]["layers"] == rows["pruned"]["layers"] == rows["int8"]["layers"] != rows["teacher"]["layers"]
    assert rows["int8"]["size_bytes"] < rows["pruned"]["size_bytes"] < rows["teacher"]["size_bytes"]
    assert (rows["int8"]["vs_floats"]["name"], rows["pruned"]["vs_floats"]) == ("pruned", None)
    assert "What int8 costs and saves" in (runs / "report" / "report.html").read_text()
    told = [gate["name"] for gate in report["gates"] if "foretold" in gate["name"]]
    assert told == [f"{name}: latency as foretold, batch 8" for name in ("teacher", "cut", "pruned")]
    assert "What stays of each layer" in (runs / "report" / "report.html").read_text()


def test_a_budget_is_kept_by_the_table(runs: Path) -> None:
    cut = artifact.read(runs / "seed-0" / "cut").metrics
    table = json.loads((runs / "seed-0" / "profile" / "latency.json").read_text())
    assert cut["predicted_ms"] <= 0.6 * table["batches"]["8"]["total"] * (1 + 1e-6)
    assert cut["predicted_share"] <= 0.6


def test_a_smaller_vocabulary_ranks_as_the_whole_one(runs: Path) -> None:
    whole, small = (artifact.read(runs / "seed-0" / name).metrics for name in ("whole", "teacher"))
    assert small["ndcg@10"] == whole["ndcg@10"]
    assert small["positions"] < 96
    assert small["parameters"] < whole["parameters"]


def test_a_pruned_checkpoint_loads_in_a_fresh_process_as_the_readme_says(runs: Path) -> None:
    (lines,) = re.findall(
        r"```python\n(from compress import models\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert len(list(filter(None, lines.splitlines()))) <= 3
    folder = str(runs / "seed-0" / "pruned" / "model")
    code = re.sub(r'"runs/[^"]*/model"', repr(folder), lines) + "print(model.num_parameters())"
    assert folder in code
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[-1]) == artifact.read(runs / "seed-0" / "pruned").metrics["parameters"]


def test_a_sweep_is_a_table(runs: Path) -> None:
    there = ["--runs", runs.parent, "--stage", "cut", *CHANGES]
    ended = recpress(RECIPE, *there, "--sweep", "0.9,0.5", module="compress.prune")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert [line.split()[0] for line in ended.stdout.splitlines()[1:4]] == ["1.00", "0.90", "0.50"]
    rows = json.loads((runs / "seed-0" / "cut.sweep.json").read_text())
    assert [row["share"] for row in rows] == [1.0, 0.9, 0.5]
    assert rows[2]["predicted_ms"] < rows[1]["predicted_ms"]
    assert "foretold latency, ms" in (runs / "seed-0" / "cut.sweep.svg").read_text()
    again = recpress(RECIPE, *there, module="compress.prune")
    assert (again.returncode, "cached" in again.stderr) == (0, True), "a sweep leaves nothing in the stage's folder"
    refused = recpress(RECIPE, *there, "--sweep", "0.9,2", module="compress.prune")
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
        2,
        "--sweep 0.9,2: write shares above 0 and up to 1 with commas between, like 0.8,0.6,0.4",
    )


def test_a_budget_that_cannot_be_met_is_one_line(runs: Path) -> None:
    changes = [*CHANGES, "--set", "stages.cut.budget.latency=0.001"]
    ended = recpress(RECIPE, "--runs", runs.parent, "--stage", "cut", *changes, module="compress.prune")
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("budget: 0.001 cannot be met: what lies outside the layers is 0.")
