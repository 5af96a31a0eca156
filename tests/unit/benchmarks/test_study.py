"""The study of losses: who goes on to the second round, and the recipes of that round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import study
from benchmarks.study import Way, final, rows, screened, table
from compress import artifact, recipe
from compress.errors import RecipeError

SCREENING = Path("recipes/studies/distill.yaml")
FINALS = sorted(Path("recipes/studies/finals").glob("*.yaml"))

KL = Way("kl", [{"kind": "kl", "temperature": 2.0}], 0.1, 0.8)
MSE = Way("mse", [{"kind": "mse"}], 0.1, 0.7)
DEEP = Way("deep", [{"kind": "hidden", "layers": {3: 9}}], 0.1, 0.9)


@pytest.fixture
def first_round(tmp_path: Path) -> Path:
    """A screening recipe of four stages that teach, and what each of them reached."""
    content = yaml.safe_load(SCREENING.read_text(encoding="utf-8"))
    kept = {name: content["stages"][name] for name in ("teacher", "kl", "mse", "ranknet", "kl-long")}
    path = tmp_path / "screening.yaml"
    path.write_text(yaml.safe_dump({**content, "stages": kept, "measure": None}, sort_keys=False), encoding="utf-8")
    reached = {"kl": (0.100, 0.80), "mse": (0.099, 0.85), "ranknet": (0.090, 0.99), "kl-long": (0.101, 0.95)}
    for name, (ndcg, overlap) in reached.items():
        folder = tmp_path / "runs" / "study-distill" / "seed-0" / name
        folder.mkdir(parents=True)
        facts: dict[str, Any] = {"fingerprint": "0", "ingredients": {}, "seconds": 1.0, "environment": {}}
        metrics = {"ndcg@10": ndcg, "overlap@10": overlap}
        artifact.write(folder, name=name, kind="distill", seed=0, metrics=metrics, **facts)
    return path


def test_who_follows_most_goes_first_unless_he_ranks_worse(first_round: Path) -> None:
    ways = screened(first_round, first_round.parent / "runs")
    assert [(way.name, way.overlap) for way in ways] == [("mse", 0.85), ("kl", 0.80), ("ranknet", 0.99)]
    assert [list(way.losses) for way in ways] == [
        [{"kind": "mse"}],
        [{"kind": "kl"}],
        [{"kind": "ranknet", "top": 50, "others": 50}],
    ]


@pytest.mark.parametrize("path", FINALS, ids=[path.stem for path in FINALS])
def test_ways_take_the_students_place_in_a_shipped_final(path: Path, tmp_path: Path) -> None:
    target, fit, misfits = final(path, [KL, DEEP, MSE], tmp_path)
    assert [way.name for way in fit] == ["kl", "mse"]
    assert len(misfits) == 1
    assert misfits[0].startswith("deep: ")
    assert "stages.deep." in misfits[0]
    written, shipped = recipe.load(target), recipe.load(path)
    assert list(written.stages) == [
        name for one in shipped.stages for name in (["kl", "mse"] if one == "student" else [one])
    ]
    assert written.measure is not None
    assert written.measure.candidates == ("kl", "mse")
    way, student = (found.stages[name].model_dump() for found, name in ((written, "kl"), (shipped, "student")))
    assert way | {"losses": None} == student | {"losses": None}
    assert [(loss.kind, loss.temperature) for loss in written.stages["kl"].losses] == [("kl", 2.0)]


def test_a_final_finds_the_files_that_its_original_names(tmp_path: Path) -> None:
    content = yaml.safe_load(FINALS[0].read_text(encoding="utf-8"))
    content["data"] = {"source": "csv", "path": "log.csv", "columns": {"user": "u", "item": "i", "timestamp": "t"}}
    (tmp_path / "there").mkdir()
    original = tmp_path / "there" / "own.yaml"
    original.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    target, _, _ = final(original, [KL], tmp_path)
    assert recipe.load(target).data.path == recipe.load(original).data.path == tmp_path / "there" / "log.csv"


def test_a_final_needs_a_student_and_a_way_that_fits(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no way of the study fits: deep: "):
        final(FINALS[0], [DEEP], tmp_path)
    with pytest.raises(RecipeError, match="a final recipe has a stage 'student'"):
        final(Path("recipes/studies/int8.yaml"), [KL], tmp_path)


def test_a_row_says_what_the_report_says() -> None:
    against = {"ratio": 0.991, "ci95": [0.95, 1.03]}
    variant = {
        "name": "kl",
        "vs_teacher": {"ndcg@10": against, "overlap@10": 0.8125, "popularity_drift": -0.01},
        "vs_control": None,
        "training": None,
    }
    found = rows([KL], {"variants": [variant]})
    assert found[0]["screened"] == {"ndcg@10": 0.1, "overlap@10": 0.8}
    assert table("somewhere", found).splitlines()[2] == "| kl | 0.812 | 0.991 [0.950, 1.030] |  | -0.0100 |"


def test_both_rounds_run_as_recipes(
    first_round: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, asked = first_round.parent / "runs", []

    def run(path: Path, runs: Path, *more: str) -> None:
        asked.append((path.name, more))
        if more:
            report = runs / recipe.load(path).name / "report"
            report.mkdir(parents=True)
            against = {"overlap@10": 0.8, "popularity_drift": 0.0, "ndcg@10": None}
            same = {"vs_teacher": against, "vs_control": None, "training": {}}
            variants = [{"name": name, **same} for name in ("mse", "kl")]
            artifact.write_json(report / "report.json", {"variants": variants})

    monkeypatch.setattr(study, "_run", run)
    line = [str(first_round), "--finals", "recipes/studies/finals/ml100k.yaml", "--best", "2", "--runs", str(runs)]
    assert study.main([*line, "--seeds", "4,5"]) == 0
    assert asked == [("screening.yaml", ()), ("ml100k.yaml", ("--seeds", "4,5"))]
    assert "| mse | 0.800 |" in capsys.readouterr().out
    assert "| mse | 0.800 |" in (runs / "study-distill" / "study" / "study.md").read_text(encoding="utf-8")


def test_no_way_at_all_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["recipes/studies/distill.yaml", "--best", "0"]) == 2
    assert capsys.readouterr().err.splitlines() == ["--best 0: at least one way goes on"]
