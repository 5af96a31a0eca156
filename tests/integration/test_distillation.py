"""Distillation as a recipe runs it: several teachers, chains of students, and what is asked once for all of them."""

from __future__ import annotations

from pathlib import Path

from compress import artifact
from conftest import recpress

RECIPE = """\
name: taught
data: {source: synthetic, users: 80, items: 60, length: 16}
stages:
  teacher: {kind: finetune, model: &big {family: bert4rec, hidden_size: 32, num_hidden_layers: 2}, epochs: 2}
  other: {kind: finetune, model: {family: bert4rec, hidden_size: 16, num_hidden_layers: 1}, epochs: 2}
  student: {kind: distill, teacher: teacher, model: &small {family: bert4rec, hidden_size: 16, num_hidden_layers: 1},
    epochs: 4, cache: {variants: 2, top: 30}, losses: [{kind: kl, temperature: 2,
    schedule: {temperature: {to: 1}}}, {kind: softmax, weight: 0.3, schedule: {weight: {to: 0, shape: cosine}}}]}
  second: {kind: distill, teacher: teacher, model: {family: bert4rec, hidden_size: 8, num_hidden_layers: 1},
    epochs: 4, cache: {variants: 2, top: 30}, losses: [{kind: relaxed_ranking, top: 10, others: 10}]}
  both: {kind: distill, teacher: [teacher, other], combine: by_loss, model: *small, epochs: 2,
    initialize: {layers: last, width: important-units}, losses: [{kind: ranknet}]}
  chained: {kind: distill, teacher: student, model: {family: bert4rec, hidden_size: 8, num_hidden_layers: 1}, epochs: 2,
    losses: [{kind: lambda_loss}, {kind: relations, layers: {1: 1}, heads: 2},
    {kind: attention, layers: {1: 1}}]}
"""


def test_students_share_what_their_teacher_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "taught.yaml"
    path.write_text(RECIPE)
    ended = recpress(path, "--runs", tmp_path / "runs", "--one-process")
    assert ended.returncode == 0, ended.stderr[-3000:]
    home = tmp_path / "runs" / "taught" / "seed-0"
    metrics = {stage: artifact.read(home / stage).metrics for stage in ("student", "second", "both", "chained")}
    assert metrics["student"]["teacher_asked"] == 2 * 80, "two variants of everybody's window, for four epochs"
    assert metrics["second"]["teacher_asked"] == 0
    assert "teacher_asked" not in metrics["both"]
    assert all(found["overlap@10"] > 0.1 for found in metrics.values())
    (home / "student" / "manifest.json").unlink()
    again = recpress(path, "--runs", tmp_path / "runs", "--one-process")
    assert again.returncode == 0, again.stderr[-3000:]
    repeated = artifact.read(home / "student").metrics
    timings = {"train_seconds", "teacher_seconds", "teacher_asked", "peak_memory_bytes"}
    assert {name: value for name, value in repeated.items() if name not in timings} == {
        name: value for name, value in metrics["student"].items() if name not in timings
    }
    assert repeated["teacher_asked"] == 0


LATE = """\
name: late
data: {source: synthetic, users: 80, items: 60, length: 16}
candidates: lists
stages:
  teacher: {kind: finetune, model: {family: bert4rec, hidden_size: 16, num_hidden_layers: 1}, epochs: 2}
  lists: {kind: retrieve, by: markov, candidates: 20}
  student: {kind: distill, teacher: teacher, start: teacher, epochs: 1, learning_rate: 1.0e-9, losses: [{kind: kl}]}
"""


def test_a_teacher_of_before_the_candidates_is_compared_on_them(tmp_path: Path) -> None:
    path = tmp_path / "late.yaml"
    path.write_text(LATE)
    ended = recpress(path, "--runs", tmp_path / "runs", "--one-process")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert artifact.read(tmp_path / "runs" / "late" / "seed-0" / "student").metrics["overlap@10"] > 0.99
