"""Two reports side by side: what changed and by how much, and an exit code for the pull request."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import comparison
from compress.command import guarded
from compress.errors import ArtifactError, GateFailed


def variant(name: str, ndcg: float, ms: float, *, chosen: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "chosen": chosen,
        "quality": {"ndcg@10": {"mean": ndcg, "ci95": [0, 1]}},
        "vs_teacher": {"overlap@10": 0.75},
        "latency_ms": [{"scope": "model", "batch": 1, "p50": ms}, {"scope": "request", "batch": 8, "p50": 9.0}],
        "size_bytes": 2_000_000,
    }


@pytest.fixture
def old() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "recipe": "a",
        "commit": "c1",
        "environment": {"cpu": "one", "threads": 2},
        "variants": [variant("student", 0.1, 1.0, chosen=True), variant("int8", 0.08, 0.5)],
        "gates": [{"name": "speedup", "required": 20, "measured": 25.0, "passed": True, "note": None}],
        "passed": True,
    }


@pytest.fixture
def new(old: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(old) | {"commit": "c2"}
    changed["variants"] = [variant("student", 0.11, 0.8), variant("pruned", 0.1, 0.4, chosen=True)]
    return changed


def save(path: Path, report: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report))
    return path


def test_every_number_stands_beside_its_old_one(new: dict[str, Any], old: dict[str, Any]) -> None:
    lines = comparison.compare_reports(new, old).splitlines()
    assert lines[0] == "### a: c1 → c2, gate passed → passed"
    assert lines[2] == "| variant | NDCG@10 | overlap@10 | p50 ms, batch 1 | file MB |"
    assert lines[4] == (
        "| student (no longer chosen) | 0.1000 → 0.1100 (+10.0%) | 0.750 → 0.750 (+0.0%) "
        "| 1 → 0.8 (-20.0%) | 2 → 2 (+0.0%) |"
    )
    assert lines[5] == "| pruned (newly chosen) | 0.1000 (new) | 0.750 (new) | 0.4 (new) | 2 (new) |"
    assert lines[6] == "| int8 | 0.0800 → gone | 0.750 → gone | 0.5 → gone | 2 → gone |"
    assert lines[-1] == "| speedup | 20 | 25 passed | 25 passed |"


def test_coverage_and_drift_are_compared_where_both_reports_have_them(new: dict[str, Any], old: dict[str, Any]) -> None:
    assert "coverage" not in comparison.compare_reports(new, old)
    for report, coverage, drift in ((new, 0.5, 0.02), (old, 0.4, -0.01)):
        for row in report["variants"]:
            row["catalogue"] = {"coverage@10": coverage, "popularity@10": 0.9}
            row["vs_teacher"]["popularity_drift"] = drift
    lines = comparison.compare_reports(new, old).splitlines()
    assert lines[2].endswith("| file MB | coverage@10 | popularity drift |")
    assert lines[4].endswith("| 0.400 → 0.500 (+25.0%) | -0.010 → +0.020 |")
    del old["variants"][0]["catalogue"]
    assert "coverage" not in comparison.compare_reports(new, old)


def test_other_machines_and_recipes_are_pointed_out(new: dict[str, Any], old: dict[str, Any]) -> None:
    assert ">" not in comparison.compare_reports(new, old)
    new |= {"environment": {"cpu": "two", "threads": 2}, "recipe": "b"}
    page = comparison.compare_reports(new, old)
    assert "> Two machines (one, 2 threads; two, 2 threads): compare speedups, not milliseconds." in page
    assert "> Two recipes: a and b." in page


def test_a_gate_that_came_or_went_or_was_not_measured_keeps_its_row(new: dict[str, Any], old: dict[str, Any]) -> None:
    new["gates"] = [{"name": "size", "required": 8, "measured": None, "passed": False, "note": "why"}]
    lines = comparison.compare_reports(new, old).splitlines()
    assert lines[-2:] == ["| size | 8 |  | not measured **failed** |", "| speedup | 20 | 25 passed |  |"]


def test_reports_without_gates_compare(new: dict[str, Any], old: dict[str, Any]) -> None:
    assert comparison.compare_reports(new | {"gates": []}, old | {"gates": []}).endswith("No gates.\n")


def test_the_comparison_is_printed_and_written(
    new: dict[str, Any], old: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "new" / "report.json", new)
    arguments = [
        str(tmp_path / "new"),
        "--against",
        str(save(tmp_path / "old.json", old)),
        "--markdown",
        str(tmp_path / "a.md"),
    ]
    assert comparison.main(arguments) == 0
    assert capsys.readouterr().out == (tmp_path / "a.md").read_text()


def test_a_new_report_whose_gate_failed_ends_with_3_after_the_table(
    new: dict[str, Any], old: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new["gates"][0] |= {"passed": False}
    paths = [
        str(save(tmp_path / "new.json", new | {"passed": False})),
        "--against",
        str(save(tmp_path / "old.json", old)),
    ]
    with pytest.raises(GateFailed, match="the gate failed: speedup"):
        comparison.main(paths)
    assert guarded(lambda: comparison.main(paths)) == 3
    assert "**failed**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("[1]", "no report of a recipe \\(as one of `make gpu`\\): schema_version is missing"),
        ("{}", "no report of a recipe \\(as one of `make gpu`\\): schema_version is missing"),
        ("{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_what_is_no_report_is_one_line(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for named in (path, tmp_path):
        with pytest.raises(ArtifactError, match=message) as error:
            comparison.read(named)
        assert "\n" not in str(error.value)


def test_a_report_of_another_schema_is_refused(old: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="schema 2, this version compares 1"):
        comparison.read(save(tmp_path / "report.json", old | {"schema_version": 2}))
