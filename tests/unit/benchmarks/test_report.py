"""The report: seeds pooled, comparisons as worked out by hand, and what it warns of."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import report_fakes
from benchmarks import pages, report, tables
from compress.errors import ArtifactError
from report_fakes import ITEMS, ROUNDED_FROM, USERS, Judged, variant


def test_an_int8_model_stands_beside_its_own_floats(judged: Judged) -> None:
    made = judged({"size_bytes": {"student": 905_000}})
    floats = variant(made, "int8")["vs_floats"]
    assert (floats["name"], floats["size_bytes"], floats["pays"]) == ("student", 905_000, True)
    assert floats["ndcg@10"]["ratio"] == pytest.approx(56 / 57)
    assert floats["ndcg@10"]["ci95"][0] < 56 / 57 <= floats["ndcg@10"]["ci95"][1] == 1
    assert floats["overlap@10"] == pytest.approx((119 * 0.9 + 0.8) / USERS)  # one item of each user's, one more hit
    assert [(row["scope"], row["batch"], row["over"]) for row in floats["speedup"]] == [
        ("model", 1, "student"),
        ("model", 32, "student"),
    ]
    assert [row["ratio"] for row in floats["speedup"]] == [pytest.approx(1.95)] * 2
    others = ("teacher-eager", "teacher", "student", "control", "table8")  # table8 is fp32 here, whatever it says
    assert [variant(made, name)["vs_floats"] for name in others] == [None] * 5
    told = (
        r"int8 \(chosen\) \| student \| 0\.982 \[.*\] \| 0\.899 \| 1\.95x \[.*\] \| 1\.95x \[.*\] \| 0\.300 \| 0\.905"
    )
    assert re.search(told, pages.markdown(made))


def test_int8_that_answers_no_sooner_does_not_pay(judged: Judged) -> None:
    made = judged({"ms": {"int8": 0.195}})
    assert not variant(made, "int8")["vs_floats"]["pays"]
    line = "int8 does not pay: at no batch size does its interval lie above 1x."
    assert line in pages.markdown(made)
    assert line not in pages.markdown(judged())


def test_int8_is_not_held_to_floats_that_were_not_exported(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROUNDED_FROM, "int8", "nobody")
    made = judged()
    assert variant(made, "int8")["vs_floats"] is None
    assert "What int8 costs" not in pages.markdown(made)


def test_int8_that_predicts_is_held_to_its_floats_by_auc(judged: Judged) -> None:
    made = judged()
    compared = {"ratio": 0.98, "difference": -0.012, "ci95": [0.97, 0.99], "difference_ci95": [-0.02, -0.004]}
    for row in made["variants"]:
        row["prediction"] = dict.fromkeys(tables.PREDICTION, 0.5)
        if row["vs_floats"]:
            row["vs_floats"]["auc"] = compared
    text = pages.markdown(made)
    assert "| rounded from | AUC, difference |" in text
    assert "| int8 (chosen) | student | -0.0120 [-0.0200, -0.0040] |" in text


def test_the_rate_reported_is_one_that_every_seed_held(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row["requests_per_second"] for row in variant(judged({}, {}), "int8")["sizing"]] == [None, 4321.0]
    real = report.Measured.facts

    def slower_at_seed_1(measured: report.Measured, name: str) -> Any:
        first, second = real(measured, name)
        slower = [row | {"requests_per_second": 10.0, "saturated": False} for row in second["sizing"]]
        return [first, second | {"sizing": slower}]

    monkeypatch.setattr(report.Measured, "facts", slower_at_seed_1)
    rows = variant(judged({}, {}), "int8")["sizing"]
    assert [(row["requests_per_second"], row["saturated"]) for row in rows] == [(None, False), (10.0, False)]


def test_seeds_are_pooled(judged: Judged) -> None:
    made = judged({"test": {"int8": 60}, "ms": {"int8": 0.1}}, {"test": {"int8": 48}, "ms": {"int8": 0.1}})
    int8 = variant(made, "int8")
    assert made["seeds"] == [0, 1]
    assert int8["quality"]["ndcg@10"]["mean"] == pytest.approx((60 + 48) / 2 / USERS)
    assert int8["vs_teacher"]["ndcg@10"]["ratio"] == pytest.approx(54 / 60)
    assert int8["load_ms"] == 20.5
    assert {row["samples"] for row in int8["latency_ms"]} == {80}


def test_seeds_of_different_users_are_refused(judged: Judged) -> None:
    with pytest.raises(ArtifactError, match="seed 1 was measured on other users or variants than seed 0"):
        judged({}, {"users": USERS + 3})


def test_comparisons_are_those_worked_out_by_hand(judged: Judged) -> None:
    made = judged()
    student = variant(made, "student")
    assert student["quality"]["ndcg@10"]["mean"] == pytest.approx(57 / USERS)
    assert student["vs_teacher"]["ndcg@10"]["difference"] == pytest.approx(-3 / USERS)
    assert student["vs_control"]["ndcg@10"]["ratio"] == pytest.approx(57 / 45)
    assert student["vs_markov"]["ndcg@10"]["ratio"] == pytest.approx(57 / 36)
    assert variant(made, "teacher")["vs_control"] is None
    assert [(part["name"], part["by"], part["users"]) for part in student["slices"]] == [
        ("history 1-40", "history length", 40),
        ("history 41-80", "history length", 40),
        ("history 81-120", "history length", 40),
        ("target seen 5-18 times", "target popularity", 42),
        ("target seen 19-34 times", "target popularity", 38),
        ("target seen 35-54 times", "target popularity", 40),
        ("cold users, history 1-12", "cold users", 12),
    ]
    hits = [40, 17, 0, 14 + 7, 16, 20, 12]  # the first 57 users'
    sizes = [part["users"] for part in student["slices"]]
    assert [part["ndcg@10"] * size for part, size in zip(student["slices"], sizes, strict=True)] == pytest.approx(hits)
    ratios = [part["vs_teacher"] and part["vs_teacher"]["ratio"] for part in student["slices"]]
    assert ratios == [pytest.approx(1), pytest.approx(17 / 20), None, *ratios[3:]]
    assert ratios[3] == pytest.approx(21 / 24)
    # 8 items of the teacher's list, 2 of its own, and the targets that its hits put first.
    assert student["catalogue"]["coverage@10"] == pytest.approx((8 + 2 + 50) / ITEMS)
    teacher = variant(made, "teacher")
    drift = student["catalogue"]["popularity@10"] - teacher["catalogue"]["popularity@10"]
    assert student["vs_teacher"]["popularity_drift"] == pytest.approx(drift)
    assert drift > 0, "its own items, 2000 and so on, are more popular"
    assert teacher["vs_teacher"]["popularity_drift"] == 0
    assert made["baselines"]["markov"]["parameters"]["window"] == 3
    assert made["baselines"]["popularity"]["catalogue"]["coverage@10"] == pytest.approx((10 + 12) / ITEMS)
    assert student["validation"]["ndcg@10"] == pytest.approx(57 / USERS)
    assert variant(made, "teacher-eager")["validation"]["ndcg@10"] is None
    rows = {(row["scope"], row["batch"]): row for row in student["latency_ms"]}
    assert [rows["model", batch][key] for batch in (1, 32) for key in ("length", "padding")] == [60.5, 0.0, 99.0, 0.25]
    assert rows["model", 1]["p50"] == pytest.approx(0.195)
    assert rows["model", 1]["peak_fraction"] == pytest.approx(10_000_000 / 0.195e-3 / 60e9)
    assert rows["request", 1]["peak_fraction"] is None
    speedups = {(row["over"], row["scope"], row["batch"]): row["ratio"] for row in student["speedup"]}
    assert speedups["teacher-eager", "model", 1] == pytest.approx(8 / 0.195)
    assert speedups["teacher", "request", 32] == pytest.approx(1 / 0.195)


def test_of_several_controls_the_best_on_validation_is_compared_with(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = judged()
    assert "The control, control, is the same student trained on labels alone." in pages.markdown(alone)
    monkeypatch.setattr(report_fakes, "CONTROLS", ["control", "teacher", "table8"])
    made = judged({"validation": {"control": 50, "teacher": 49, "table8": 40}, "test": {"table8": 60}})
    assert made["control"] == {"name": "control", "trials": 3}
    assert variant(made, "student")["vs_control"]["ndcg@10"]["ratio"] == pytest.approx(57 / 45)
    made = judged({"validation": {"control": 40, "teacher": 40, "table8": 50}, "test": {"control": 60}})
    assert variant(made, "student")["vs_control"]["ndcg@10"]["ratio"] == pytest.approx(1)
    assert [(name, variant(made, name)["role"]) for name in ("control", "table8")] == [
        ("control", "other"),
        ("table8", "control"),
    ]
    said = "The control, table8, is the same student trained on labels alone, the best of 3 trials on validation users."
    assert said in pages.markdown(made)
    monkeypatch.setattr(report_fakes, "CONTROLS", [])
    made = judged()
    assert (made["control"], variant(made, "student")["vs_control"]) == (None, None)
    assert "trained on labels alone" not in pages.markdown(made)


def test_a_teacher_below_the_markov_chain_is_warned_of(judged: Judged) -> None:
    assert judged()["warnings"] == []
    (warning,) = judged({"test": {"markov": 90}})["warnings"]
    assert re.fullmatch(
        r"the teacher ranks below the Markov chain \(ratio 0\.67 \[0\.\d\d, 0\.\d\d\]\): "
        "it is not yet worth compressing",
        warning,
    )


def test_timings_that_waited_for_a_busy_core_are_warned_of(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    real = report.Measured.samples

    def disturbed(measured: report.Measured, name: str, scope: str, batch: int) -> Any:
        samples = real(measured, name, scope, batch)
        return (
            [np.append(run * 300, run[:4]) for run in samples]
            if (name, batch) == ("teacher-eager", 32) and scope == "model"
            else samples
        )

    monkeypatch.setattr(report.Measured, "samples", disturbed)
    (warning,) = judged()["warnings"]
    assert warning.startswith("the timings of teacher-eager were disturbed (model, batch 32: median ")
    assert warning.endswith("quote no speedup; measure again on an idle machine")


def test_requests_of_many_sizes_are_no_disturbance(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    real = report.Measured.samples
    sizes = np.array([1.0, 20, 30, 40])

    def spread(measured: report.Measured, name: str, scope: str, batch: int) -> Any:
        return [run * np.resize(sizes, len(run)) for run in real(measured, name, scope, batch)]

    monkeypatch.setattr(report.Measured, "samples", spread)
    assert judged()["warnings"] == []


def test_report_json_has_the_keys_it_promises(judged: Judged) -> None:
    made = judged()
    top = "schema_version recipe commit seeds environment data baselines variants choice control gates passed warnings"
    row = (
        "name stage kind runtime precision method role chosen parameters size_bytes validation quality prediction "
        "vs_teacher vs_control vs_markov vs_floats slices catalogue latency_ms speedup sizing load_ms first_request_ms "
        "peak_memory_bytes layers foretold training invariance"
    )
    timing_keys = "scope batch length padding threads p50 p95 p99 p50_ci95 samples peak_fraction"
    assert set(made) == set(top.split())
    assert (made["schema_version"], made["recipe"], made["commit"]) == (1, "run", "abc123")
    for variant_row in made["variants"]:
        assert set(variant_row) == set(row.split())
        for timing in variant_row["latency_ms"]:
            assert set(timing) == set(timing_keys.split())
        versus = variant_row["vs_teacher"]
        assert versus.pop("overlap@10_ci95")[0] <= versus["overlap@10"]
        for compared in versus.values():
            assert isinstance(compared, float) or set(compared) == {"ratio", "difference", "ci95", "difference_ci95"}
    for gate in made["gates"]:
        assert set(gate) == {"name", "required", "measured", "passed", "note"}


def test_against_decides_which_command_it_is(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judged()
    folder = str(tmp_path / "run" / "report")
    monkeypatch.setattr(sys, "argv", ["report", folder, "--against", folder])
    assert report.main() == 0
    assert "| int8 (chosen) |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["report", folder, f"--against={tmp_path}/nothing.json"])
    assert report.main() == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
