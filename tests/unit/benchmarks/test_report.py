"""The report: a choice made on validation, gates judged once on test, seeds pooled, pages that say the same."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import choice, environment, pages, plots, report, tables
from compress import artifact, metrics
from compress.artifact import Artifact
from compress.errors import ArtifactError
from compress.recipe.judging import FidelityGate, GateSection, LatencyGate, QualityGate, SizeGate, SlicesGate
from compress.stage import Workspace

USERS = 120
ITEMS = 2500
"""Item i was used i + 5 times in training; the targets of tests are the first fifty."""
NAMES = ("teacher-eager", "teacher", "student", "control", "table8", "int8")
HITS = {
    "teacher-eager": 60,
    "teacher": 60,
    "student": 57,
    "control": 45,
    "table8": 57,
    "int8": 56,
    "popularity": 12,
    "markov": 36,
}
"""Users whose target comes first; everyone else's is not in the list, so that NDCG@10 is hits / USERS."""
MS = {"teacher-eager": 8.0, "teacher": 1.0, "student": 0.195, "control": 0.20, "table8": 0.19, "int8": 0.10}
BYTES = {
    "teacher-eager": 4_000_000,
    "teacher": 3_800_000,
    "student": 900_000,
    "control": 900_000,
    "table8": 400_000,
    "int8": 300_000,
}
KEPT = {"teacher-eager": 10, "teacher": 10, "student": 8, "control": 5, "table8": 8, "int8": 7}
"""Items of the teacher's list that a variant's list holds too."""

SIZING = {
    name: [
        {"limit_ms": limit, "threads": 1, "concurrency": 2, "saturated": limit == 50, "requests_per_second": rate}
        | late
        for limit, rate, late in ((20, None, {"p50": None, "p99": None}), (50, rate, {"p50": 9.0, "p99": 48.7}))
    ]
    for name, rate in (("teacher-eager", 123.4), ("int8", 4321.0))
}

ALL_GATES = GateSection(
    quality=QualityGate(min_low=0.8, min_ratio=0.9),
    fidelity=FidelityGate(min_overlap=0.7),
    latency=LatencyGate(min_speedup={1: 50, 32: 50}),
    size=SizeGate(min_ratio=10),
)

draw_html = pages.html

Judged = Callable[..., dict[str, Any]]


def measure(
    folder: Path,
    seed: int = 0,
    *,
    validation: Mapping[str, int] | None = None,
    test: Mapping[str, int] | None = None,
    ms: Mapping[str, float] | None = None,
    size_bytes: Mapping[str, int] | None = None,
    users: int = USERS,
) -> Artifact:
    """A finished measure stage in which everything is known; keywords replace defaults by variant name."""
    folder.mkdir(parents=True)
    ms = {**MS, **(ms or {})}
    targets = np.arange(users) % 50
    quality: dict[str, Any] = {
        "targets/test": targets,
        "targets/validation": targets,
        "history_length/test": np.arange(users) + 1,
        "item_popularity": np.arange(ITEMS) + 5,
    }
    for name in HITS:
        for split, hits in (("validation", validation), ("test", test)):
            if (name, split) == ("teacher-eager", "validation"):  # whom measure does not ask
                continue
            quality[f"{name}/{split}"] = rankings(targets, {**HITS, **(hits or {})}[name], KEPT.get(name, 0))
    np.savez(folder / "quality.npz", **quality)
    noise = np.random.default_rng(0).permutation(np.linspace(0.9, 1.1, 40))
    latency: dict[str, Any] = {
        f"{name}/{scope}/{batch}": ms[name] * noise * batch**0.5 * extra
        for name in NAMES
        for scope, extra in (("model", 1.0), ("request", 1.2))
        for batch in (1, 32)
    }
    np.savez(folder / "latency.npz", **latency)
    (folder / "measure.json").write_text(json.dumps(description(seed, {**BYTES, **(size_bytes or {})})))
    fields = {
        "name": "measure",
        "kind": "measure",
        "fingerprint": "",
        "ingredients": {},
        "metrics": {},
        "environment": {},
    }
    return artifact.write(folder, seed=seed, seconds=0.0, **fields)


LAYERS: dict[str, list[list[int]]] = {name: [[2, 64], [2, 64]] for name in NAMES}
FORETOLD: dict[str, list[dict[str, Any]]] = {}
INVARIANCE = {
    "int8": {"users": 9, "padded": {"same": 0.75, "overlap": 0.98}, "batch": {"same": 0.625, "overlap": 0.97}}
}
CONTROLS = ["control"]
ROUNDED_FROM = {"int8": "student", "table8": "student"}
TRAINING = {
    "student": {"steps": 20, "train_seconds": 4.0, "peak_memory_bytes": 10**9, "curve": [[10, 0.05], [20, 0.1]]},
    "control": {"steps": 30, "train_seconds": 3.0, "peak_memory_bytes": 10**9},
}


def rankings(targets: np.ndarray[Any, Any], hits: int, kept: int) -> np.ndarray[Any, Any]:
    shared, own = np.arange(1000, 1010), np.arange(2000, 2010)
    lists = np.tile(np.concatenate([own[: 10 - kept], shared[10 - kept :]]), (len(targets), 1))
    lists[:hits, 0] = targets[:hits]
    return lists


def description(seed: int, size_bytes: Mapping[str, int]) -> dict[str, Any]:
    return {
        "seed": seed,
        "environment": {
            "cpu": "A <fast> one",
            "cpus": "2",
            "threads": 2,
            "gpu": None,
            "versions": {"torch": "1"},
            "peak_gflops": {"1": 60.0, "2": 100.0},
        },
        "data": {
            "users": USERS,
            "items": 50,
            "interactions": 4321,
            "split": "leave-one-out",
            "judged_users": {"validation": 4, "test": 4},
            "judged_on": "full catalogue",
        },
        "roles": {
            "teacher": "teacher",
            "reference": "teacher-eager",
            "controls": CONTROLS,
            "candidates": ["student", "table8", "int8"],
            "peers": [],
            "min_validation_ratio": 0.95,
        },
        "whole_lists": False,
        "baselines": {"popularity": {}, "markov": {"window": 3, "smoothing": 80, "items": 3, "decay": 0.8}},
        "variants": [
            {
                "name": name,
                "stage": name.removesuffix("-eager"),
                "kind": "distill" if name == "student" else "finetune",
                "runtime": "torch-eager" if name == "teacher-eager" else "onnxruntime-cpu",
                "precision": "int8" if name == "int8" else "fp32",
                "method": "one | position",
                "threads": {"1": 1, "32": 2},
                "parameters": 1000,
                "size_bytes": size_bytes[name],
                "flops": {"1": 10_000_000, "32": 320_000_000},
                "lengths": {"1": 60.5, "32": 99.0},
                "padding": {"1": 0.0, "32": 0.25},
                "load_ms": 20.0 + seed,
                "first_request_ms": 2.0,
                "peak_memory_bytes": 100_000_000,
                "sizing": SIZING.get(name, []),
                "prediction": None,
                "layers": {"hidden_size": 16, "shapes": LAYERS[name]},
                "foretold": FORETOLD.get(name, []),
                "invariance": INVARIANCE.get(name),
                "linear": "dynamic" if name == "int8" else "none",
                "rounded_from": ROUNDED_FROM.get(name),
                "training": TRAINING.get(name),
                "bundle": "runs/secret/place",
                "loaded_from": ["runs/secret/place", "runs/secret/model"],
            }
            for name in NAMES
        ],
    }


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


def chosen(made: Mapping[str, Any]) -> str:
    (name,) = [variant["name"] for variant in made["variants"] if variant["chosen"]]
    return str(name)


def variant(made: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(dict(row) for row in made["variants"] if row["name"] == name)


def gate_of(made: Mapping[str, Any], words: str) -> dict[str, Any]:
    (gate,) = [gate for gate in made["gates"] if words in gate["name"]]
    return dict(gate)


def test_the_fastest_of_those_that_rank_well_enough_is_chosen() -> None:
    ndcg, size = {"a": 0.100, "b": 0.099, "c": 0.050}, {"a": 3.0, "b": 2.0, "c": 1.0}
    assert choice.choose(ndcg, {"a": 2.0, "b": 1.0, "c": 0.1}, size, 0.98) == "b"
    assert choice.choose(ndcg, {"a": 2.0, "b": 1.0, "c": 0.1}, size, 0.50) == "c"
    assert choice.choose(ndcg, {"a": 2.0, "b": 1.0, "c": 0.1}, size, 1.00) == "a"


def test_among_equally_fast_ones_the_smallest_file_is_chosen() -> None:
    ndcg, size = {"a": 0.1, "b": 0.1, "c": 0.1}, {"a": 3.0, "b": 2.0, "c": 1.0}
    assert choice.choose(ndcg, {"a": 1.00, "b": 1.04, "c": 1.06}, size, 0.98) == "b"
    assert choice.choose(ndcg, {"a": 1.00, "b": 1.06, "c": 1.06}, size, 0.98) == "a"
    assert choice.choose(ndcg, {"a": 1.04, "b": 1.00, "c": 1.02}, {"a": 1.04, "b": 1.0, "c": 1.0}, 0.98) == "a", "order"


def test_a_choice_says_why_the_others_lost() -> None:
    ndcg = dict.fromkeys("abcdef", 0.1) | {"c": 0.05}
    latency = {"a": 1.0, "b": 1.04, "c": 0.1, "d": 2.0, "e": 1.0, "f": 1.0}
    size = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 3.0, "f": 1.0}
    told = choice.Choice(ndcg, latency, size, 0.98, ["a"]).describe()
    assert {row["name"]: row["why"] for row in told["candidates"]} == {
        "a": "chosen",
        "b": "as fast and as small, listed later",
        "c": "ranks too low: 0.98 of the best, at least",
        "d": "slower",
        "e": "as fast, a larger file",
        "f": "as fast and as small, listed later",
    }
    assert told["int8"] is None
    rows = {row["name"]: row for row in told["candidates"]}
    assert (rows["d"]["times_chosen"], rows["c"]["validation_ratio"]) == (2.0, 0.5)


def test_floating_point_over_int8_is_one_line_with_the_numbers() -> None:
    ndcg, size = {"fp32": 0.1, "quick": 0.05, "slow": 0.1}, {"fp32": 1.0, "quick": 1.0, "slow": 1.0}
    latency = {"fp32": 1.0, "quick": 0.5, "slow": 1.25}
    told = choice.Choice(ndcg, latency, size, 0.98, ["quick", "slow"]).describe()["int8"]
    assert told == "int8 does not pay here: time over that of fp32, in floating point: slow 1.25x"
    told = choice.Choice(ndcg, latency, size, 0.98, ["quick"]).describe()["int8"]
    assert told == (
        "int8 does not pay here: none of quick keeps 0.98 of the best validation NDCG@10; fp32 stays in floating point"
    )
    assert choice.Choice(ndcg, latency, size, 0.98, []).describe()["int8"] is None
    assert choice.Choice(ndcg, latency, size, 0.40, ["quick"]).describe()["int8"] is None


def test_the_pages_say_that_int8_does_not_pay_and_who_lost(judged: Judged) -> None:
    slow = judged({"ms": {"int8": 0.30}, "size_bytes": {"table8": 950_000}})
    line = "int8 does not pay here: time over that of student, in floating point: int8 1.54x"
    assert (chosen(slow), slow["choice"]["int8"]) == ("student", line)
    assert line in pages.terminal(slow)
    assert line in pages.markdown(slow)
    assert line in draw_html(slow)
    assert "| int8 | 0.9825 | 0.714 | 1.54x | 0.300 | slower |" in pages.markdown(slow)
    paying = judged()
    assert chosen(paying) == "int8"
    assert paying["choice"]["int8"] is None
    assert "does not pay" not in pages.terminal(paying) + pages.markdown(paying) + draw_html(paying)


def test_what_company_does_to_int8_answers_is_a_table(judged: Judged) -> None:
    made = judged({}, {})
    assert variant(made, "int8")["invariance"] == INVARIANCE["int8"]
    assert variant(made, "student")["invariance"] is None
    assert "| int8 (chosen) | 9 | 75.0% | 0.980 | 62.5% | 0.970 |" in pages.markdown(made)


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


def test_candidates_that_rank_nothing_still_leave_a_choice() -> None:
    assert choice.choose({"a": 0.0, "b": 0.0}, {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, 0.98) == "b"


def test_a_candidate_too_weak_on_validation_is_not_chosen(judged: Judged) -> None:
    assert chosen(judged()) == "int8"
    assert chosen(judged({"validation": {"int8": 40}})) == "table8"
    assert (
        chosen(judged({"validation": {"int8": 40}, "size_bytes": {"table8": 950_000}})) == "student"
    )  # as fast: within 5%


def test_the_choice_does_not_look_at_test(judged: Judged) -> None:
    worst = judged({"test": {"int8": 1, "student": 110}})
    assert chosen(worst) == chosen(judged()) == "int8"
    assert not worst["passed"]


def test_every_gate_passes_where_the_numbers_do(judged: Judged) -> None:
    made = judged()
    assert made["passed"]
    assert [gate["passed"] for gate in made["gates"]] == [True] * 6
    assert (
        gate_of(made, "ndcg@10 over the teacher's, low")["measured"]
        == variant(made, "int8")["vs_teacher"]["ndcg@10"]["ci95"][0]
    )
    int8 = variant(made, "int8")
    assert int8["vs_teacher"]["overlap@10"] == pytest.approx((56 * 0.8 + 64 * 0.7) / USERS)
    assert gate_of(made, "overlap")["measured"] == int8["vs_teacher"]["overlap@10_ci95"][0] < 0.746
    (low,) = (
        row["ci95"][0]
        for row in int8["speedup"]
        if (row["over"], row["batch"]) == ("teacher-eager", 1) and row["scope"] == "model"
    )
    assert gate_of(made, "batch 1")["measured"] == low < 80
    assert gate_of(made, "smaller")["measured"] == pytest.approx(4_000_000 / 300_000)


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (GateSection(quality=QualityGate(min_low=0.99)), "low end"),
        (GateSection(quality=QualityGate(min_low=0.1, min_ratio=0.95)), "teacher's"),
        (GateSection(slices=SlicesGate(min_low=0.9)), "worst slice"),
        (GateSection(fidelity=FidelityGate(min_overlap=0.9)), "overlap"),
        (GateSection(latency=LatencyGate(min_speedup={32: 81})), "batch 32"),
        (GateSection(size=SizeGate(min_ratio=14)), "smaller"),
    ],
)
def test_a_gate_that_asks_for_more_fails(judged: Judged, gate: GateSection, words: str) -> None:
    made = judged(gate=gate)
    assert not made["passed"]
    assert [words in failed["name"] for failed in made["gates"] if not failed["passed"]] == [True]


def test_quality_passes_on_the_low_end_and_not_on_the_point(judged: Judged) -> None:
    made = judged({"test": {"int8": 54}}, gate=GateSection(quality=QualityGate(min_low=0.9)))
    assert variant(made, "int8")["vs_teacher"]["ndcg@10"]["ratio"] == pytest.approx(0.9)
    assert not made["passed"]


def test_the_worst_slice_is_named_and_one_without_a_ratio_is_not_judged(judged: Judged) -> None:
    made = judged(gate=GateSection(slices=SlicesGate(min_low=0.5)))
    (gate,) = made["gates"]
    slices = variant(made, "int8")["slices"]
    lows = {part["name"]: part["vs_teacher"]["ci95"][0] for part in slices if part["vs_teacher"]}
    assert (gate["measured"], gate["passed"]) == (min(lows.values()), True)
    assert min(lows, key=lambda name: lows[name]) == "history 41-80"
    assert (
        gate["note"]
        == "history 41-80 (40 users); not judged, the teacher hits nothing there: history 81-120 (40 users)"
    )
    assert gate["note"] in pages.terminal(made).replace("\n      ", " ")


def test_slices_that_cannot_be_judged_fail_their_gate(judged: Judged) -> None:
    gate = GateSection(slices=SlicesGate(min_low=0.1))
    (judgement,) = judged({"test": {"teacher": 0, "markov": 0}}, gate=gate)["gates"]
    assert (judgement["measured"], judgement["passed"]) == (None, False)
    assert judgement["note"].startswith(
        "not judged, the teacher hits nothing there: history 1-40 (40 users); history 41"
    )


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


def test_pages_say_who_is_served_with_what_and_how_fast(judged: Judged) -> None:
    text = pages.markdown(judged())
    assert re.search(r"\| history 41-80 \| 40 \| 0\.800 \[0\.\d{3}, 0\.\d{3}\] \| 0\.5000 \|", text)
    assert "| history 81-120 | 40 | the teacher hits nothing | 0.0000 |" in text
    assert "| popularity | 0.9% |" in text
    assert "| int8 (chosen) | 1 | 2 | none | 4,321* (48.7 ms) |" in text


def test_a_report_without_gates_passes(judged: Judged) -> None:
    made = judged(gate=GateSection())
    assert made["gates"] == []
    assert made["passed"]


def test_a_batch_that_was_not_measured_fails_its_gate_and_says_so(judged: Judged) -> None:
    made = judged(gate=GateSection(latency=LatencyGate(min_speedup={1: 2, 64: 2})))
    gate = gate_of(made, "batch 64")
    assert (gate["measured"], gate["passed"]) == (None, False)
    assert gate["note"] == "batch 64 was not measured; measure.batch_sizes has 1, 32"
    assert not made["passed"]


def test_a_teacher_that_hits_nothing_fails_the_gate_instead_of_the_run(judged: Judged) -> None:
    made = judged({"test": {"teacher": 0, "markov": 0}}, gate=GateSection(quality=QualityGate(min_low=0.1)))
    assert variant(made, "int8")["vs_teacher"]["ndcg@10"] is None
    assert made["gates"][0]["note"] == "the teacher ranks no test item among its first ten"


def test_seeds_are_pooled(judged: Judged) -> None:
    made = judged({"test": {"int8": 60}, "ms": {"int8": 0.1}}, {"test": {"int8": 48}, "ms": {"int8": 0.1}})
    int8 = variant(made, "int8")
    assert made["seeds"] == [0, 1]
    assert int8["quality"]["ndcg@10"]["mean"] == pytest.approx((60 + 48) / 2 / USERS)
    assert int8["vs_teacher"]["ndcg@10"]["ratio"] == pytest.approx(54 / 60)
    assert int8["load_ms"] == 20.5
    assert {row["samples"] for row in int8["latency_ms"]} == {80}


def test_a_choice_is_made_on_all_seeds_together(judged: Judged) -> None:
    assert chosen(judged({"validation": {"int8": 50}})) == "table8"
    assert chosen(judged({"validation": {"int8": 50}}, {"validation": {"int8": 60}})) == "int8"


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
    monkeypatch.setattr(sys.modules[__name__], "CONTROLS", ["control", "teacher", "table8"])
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
    monkeypatch.setattr(sys.modules[__name__], "CONTROLS", [])
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


def test_the_page_asks_nothing_of_the_network_and_names_every_variant(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = judged()
    folder = tmp_path / "run" / "report"
    monkeypatch.setattr(pages, "html", draw_html)
    pages.write(made, folder)
    page = (folder / "report.html").read_text()
    assert "://" not in page
    assert not re.search(r"<script|<link|<img|@import|src=", page)
    assert page.count("<svg") == 4
    assert "Learning curves" in page
    assert "A &lt;fast&gt; one" in page
    for text in (page, (folder / "report.md").read_text(), (folder / "summary.txt").read_text()):
        assert "secret" not in text
        for name in (*NAMES, "popularity", "markov"):
            assert name in text


def test_pages_are_the_same_every_time(judged: Judged) -> None:
    made = judged()
    assert draw_html(made) == draw_html(made)


def test_the_terminal_table_fits_a_terminal(judged: Judged) -> None:
    made = judged({"test": {"markov": 90}}, gate=GateSection(latency=LatencyGate(min_speedup={1: 2, 64: 2})))
    for row in made["variants"]:
        row["name"] = row["name"] + "-" * 40
    text = pages.terminal(made)
    assert max(map(len, text.splitlines())) <= 100
    assert "* int8---" in text
    assert "FAIL  speedup over teacher-eager, batch 64" in text
    assert "FAILED: 1 of 2 gates" in text
    assert "WARNING: the teacher ranks below the Markov chain" in text


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


def test_what_is_only_timed_as_a_whole_is_drawn_and_listed_with_that(judged: Judged) -> None:
    made = judged()
    (whole,) = (row for row in made["variants"] if row["name"] == "control")
    whole["latency_ms"] = [row | {"p50": 12.5} for row in whole["latency_ms"] if row["scope"] == "request"]
    assert whole["latency_ms"]
    (line,) = (line for line in pages.terminal(made).splitlines() if line.split()[:1] == ["control"])
    assert "12.5" in line
    assert "control" in plots.quality_against_latency(made)
    assert "control" in plots.latency_percentiles(made)


@pytest.mark.parametrize(
    ("measured_ms", "passed"), [(2.0, True), (2.19, True), (1.81, True), (2.21, False), (1.79, False)]
)
def test_a_latency_that_was_not_foretold_fails(
    judged: Judged, monkeypatch: pytest.MonkeyPatch, measured_ms: float, passed: bool
) -> None:
    row = {"batch": 32, "predicted_ms": 2.0, "measured_ms": measured_ms}
    told = ("teacher", "student", "control", "int8")  # whatever made them: taught, on labels alone, or rounded
    for name in told:
        monkeypatch.setitem(FORETOLD, name, [row])
    made = judged()
    gates = [gate for gate in made["gates"] if "as foretold" in gate["name"]]
    assert [(gate["name"], gate["passed"]) for gate in gates] == [
        (f"{name}: latency as foretold, batch 32", passed) for name in told
    ]
    assert gates[1]["note"] == f"2 ms foretold, {measured_ms:.4g} ms measured"
    assert variant(made, "student")["foretold"] == [row | {"seed": 0}]


def test_twenty_microseconds_are_forgiven(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORETOLD, "student", [{"batch": 1, "predicted_ms": 0.03, "measured_ms": 0.049}])
    assert gate_of(judged(), "as foretold")["passed"]


def test_a_pruned_model_has_a_picture_of_what_stays(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    title = "What stays of each layer"
    made = judged()
    assert title not in draw_html(made)
    monkeypatch.setitem(LAYERS, "student", [[1, 37], [2, 11]])
    pruned = draw_html(judged())
    assert title in pruned
    assert ">37<" in pruned
    assert ">11<" in pruned


@pytest.mark.parametrize("left", [[[2, 64]], [[1, 64], [1, 64]], [[2, 32], [2, 32]]])
def test_so_has_one_that_lost_layers_or_was_cut_evenly(judged: Judged, left: list[list[int]]) -> None:
    made = judged()
    (row,) = (row for row in made["variants"] if row["name"] == "student")
    row["layers"] = left
    assert not plots.is_pruned(made), "a student may be built so"
    row["kind"] = "prune"
    assert plots.is_pruned(made)
    row["layers"] = LAYERS["teacher"]
    assert not plots.is_pruned(made), "its vocabulary alone was cut"
