"""Gates, each of which can fail: judged once, on low ends, and what was not measured fails."""

from __future__ import annotations

import pytest

from benchmarks import pages
from compress.recipe.judging import FidelityGate, GateSection, LatencyGate, QualityGate, SizeGate, SlicesGate
from report_fakes import FORETOLD, USERS, Judged, gate_of, variant


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
