"""What must hold: a row for each condition of the gate, judged from the numbers that the report shows.

What was sampled, users or calls, passes on the low end of its 95% interval, never on the point alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.foretold import NEGLIGIBLE_MS, TOLERANCE
from compress.recipe.judging import GateSection, PeersGate, QualityGate, SlicesGate

Json = dict[str, Any]

LOW = "low end of 95%"

WORDS = {"10": "ten", "100": "hundred"}


def judge(section: GateSection, chosen: Json, reference: Json, peers: Sequence[Json] = ()) -> list[Json]:
    """One row for each condition; what was not measured has not passed."""
    gates = _judge_quality(section.quality, chosen["vs_teacher"]) if section.quality else []
    if section.slices:
        gates.append(_judge_slices(section.slices, chosen["slices"]))
    if section.fidelity:
        low = chosen["vs_teacher"]["overlap@10_ci95"][0]
        gates.append(_gate(f"overlap@10 with the teacher, {LOW}", section.fidelity.min_overlap, low))
    if section.latency:
        gained = {batch: row["ci95"][0] for batch, row in speedups(chosen, reference["name"]).items()}
        known = ", ".join(map(str, gained)) or "none"
        for batch, required in section.latency.min_speedup.items():
            note = None if batch in gained else f"batch {batch} was not measured; measure.batch_sizes has {known}"
            name = f"speedup over {reference['name']}, batch {batch}, {LOW}"
            gates.append(_gate(name, required, gained.get(batch), note))
    if section.peers:
        gates.append(_judge_peers(section.peers, chosen, peers))
    if section.size:
        ratio = reference["size_bytes"] / chosen["size_bytes"]
        gates.append(_gate("times smaller than the teacher's checkpoint", section.size.min_ratio, ratio))
    return gates


def judge_foretold(variants: Sequence[Json]) -> list[Json]:
    """How far each model's measured latency is from what the profile foretold of it: a tenth, or 20 microseconds."""
    gates = []
    for variant in variants:
        for row in variant["foretold"]:
            off = abs(row["measured_ms"] - row["predicted_ms"])
            nearness = 1.0 if off <= NEGLIGIBLE_MS else 1 - off / row["predicted_ms"]
            note = f"{row['predicted_ms']:.4g} ms foretold, {row['measured_ms']:.4g} ms measured"
            gates.append(
                _gate(f"{variant['name']}: latency as foretold, batch {row['batch']}", 1 - TOLERANCE, nearness, note)
            )
    return gates


def speedups(variant: Json, over: str) -> dict[int, Json]:
    """Batch size -> the row that says how many times shorter the variant's median model time is."""
    return {row["batch"]: row for row in variant["speedup"] if row["scope"] == "model" and row["over"] == over}


def _judge_peers(gate: PeersGate, chosen: Json, peers: Sequence[Json]) -> Json:
    """Over the peer that answers a request fastest."""
    rows = {
        row["over"]: row
        for row in reversed(chosen["speedup"])  # the smallest batch comes first and is kept
        if row["scope"] == "request" and row["over"] in {peer["name"] for peer in peers}
    }
    fastest = min(rows, key=lambda name: rows[name]["ratio"], default=None)
    note = next(
        (
            f"{peer['name']}: ndcg@10 {peer['quality']['ndcg@10']['mean']:.4f}"
            for peer in peers
            if peer["name"] == fastest
        ),
        None,
    )
    low = rows[fastest]["ci95"][0] if fastest else None
    return _gate(f"speedup over the fastest peer, request, {LOW}", gate.min_speedup, low, note)


def _judge_quality(gate: QualityGate, versus: Json) -> list[Json]:
    compared = versus.get(gate.metric)
    note = None
    if gate.metric not in versus:
        note = "not measured: lists are too short; raise top_k of the export stage"
    elif not compared:
        note = (
            f"the teacher ranks no test item among its first {WORDS.get(gate.metric.partition('@')[2], 'candidates')}"
        )
    low, ratio = (compared["ci95"][0], compared["ratio"]) if compared else (None, None)
    gates = [_gate(f"{gate.metric} over the teacher's, {LOW}", gate.min_low, low, note)]
    if gate.min_ratio is not None:
        gates.append(_gate(f"{gate.metric} over the teacher's", gate.min_ratio, ratio, note))
    return gates


def _judge_slices(gate: SlicesGate, slices: Sequence[Json]) -> Json:
    """The worst slice stands for all; one where the teacher hits nothing has no ratio and is only named."""
    judged = [part for part in slices if part["vs_teacher"]]
    worst = min(judged, key=lambda part: part["vs_teacher"]["ci95"][0], default=None)
    notes = [_users(worst)] if worst else []
    if len(judged) < len(slices):
        left_out = "; ".join(_users(part) for part in slices if not part["vs_teacher"])
        notes.append(f"not judged, the teacher hits nothing there: {left_out}")
    low = worst["vs_teacher"]["ci95"][0] if worst else None
    return _gate(f"ndcg@10 over the teacher's on the worst slice, {LOW}", gate.min_low, low, "; ".join(notes))


def _users(part: Json) -> str:
    return f"{part['name']} ({part['users']:,} users)"


def _gate(name: str, required: float, measured: float | None, note: str | None = None) -> Json:
    passed = measured is not None and measured >= required
    return {"name": name, "required": required, "measured": measured, "passed": passed, "note": note}
