"""Whole recipes over texts, run as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress import artifact
from conftest import ROOT, recpress

SMALLER = {
    "data.users": "60",
    "stages.teacher.examples": "200",
    "stages.student.examples": "200",
    "stages.control.examples": "200",
    "stages.served.inputs": "[teacher, int8]",
    "measure.candidates": "[int8]",
    "measure.control": "null",
    "measure.threads": "1",  # two that wait for each other take a minute on a busy machine
    "measure.batch_sizes": "[1]",
    "measure.seconds": "0.2",
}

TAUGHT = """\
name: taught
data: {source: synthetic, users: 80, items: 60, length: 16}
candidates: retrieved
stages:
  texts: {kind: tokenize, tokenizer: {vocab_size: 200}, history: {last: 3}}
  retrieved: {kind: retrieve, by: markov, candidates: 20}
  teacher:
    kind: finetune
    model: {family: cross_encoder, texts: texts, hidden_size: 32, num_attention_heads: 2, max_length: 48, negatives: 5}
    examples: 300
    batch_size: 8
    epochs: 2
    learning_rate: 3.0e-3
  student:
    kind: distill
    teacher: teacher
    model: {family: two_tower, texts: texts, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
      max_length: 48, in_batch: false, negatives: 5, dropout: 0.0}
    examples: 300
    batch_size: 8
    epochs: 2
    learning_rate: 3.0e-3
    losses:
      - {kind: margin_mse}
      - {kind: kl}
"""


def finished(recipe: Path, runs: Path, *overrides: str) -> str:
    """What a recipe that ran to its end has printed."""
    ended = recpress(recipe, "--runs", runs, "--one-process", *overrides)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr
    return ended.stdout


@pytest.mark.parametrize("name", ["tiny_cross_encoder", "tiny_two_tower"])
def test_a_tiny_recipe_over_texts_ends_with_a_report(tmp_path: Path, name: str) -> None:
    changes = [part for key, value in SMALLER.items() for part in ("--set", f"{key}={value}")]
    page = Path(finished(ROOT / "recipes" / f"{name}.yaml", tmp_path, *changes).split()[-1])
    report = json.loads((page.parent / "report.json").read_text())
    assert report["passed"]
    assert set(report["baselines"]) == {"popularity", "markov", "tfidf"}
    assert all(facts["quality"]["ndcg@10"]["mean"] > 0 for facts in report["baselines"].values())
    assert {variant["name"] for variant in report["variants"]} == {"teacher-eager", "teacher", "int8"}


def test_a_tiny_hybrid_is_held_against_its_parts(tmp_path: Path) -> None:
    changes = SMALLER | {
        "stages.encoder.examples": "100",
        "stages.small.examples": "100",
        "stages.teacher.epochs": "1",
        "stages.student.epochs": "1",
    }
    del changes["stages.control.examples"]
    overrides = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    page = Path(finished(ROOT / "recipes" / "tiny_hybrid.yaml", tmp_path, *overrides).split()[-1])
    report = json.loads((page.parent / "report.json").read_text())
    assert set(report["baselines"]) == {"popularity", "markov", "tfidf", "first-stage", "head"}
    of = {name: facts["quality"]["ndcg@10"]["mean"] for name, facts in report["baselines"].items()}
    assert of["first-stage"] == pytest.approx(of["markov"], abs=0.01), "the chain's own order of what it found"
    assert {variant["name"] for variant in report["variants"]} == {"teacher-eager", "teacher", "int8"}


def test_a_cross_encoder_teaches_two_towers(tmp_path: Path) -> None:
    path = tmp_path / "taught.yaml"
    path.write_text(TAUGHT)
    finished(path, tmp_path / "runs")
    home = tmp_path / "runs" / "taught" / "seed-0"
    metrics = {stage: artifact.read(home / stage).metrics for stage in ("retrieved", "teacher", "student")}
    families = {
        stage: json.loads((home / stage / "model" / "config.json").read_text())["recommender"]["family"]
        for stage in ("teacher", "student")
    }
    assert families == {"teacher": "cross_encoder", "student": "two_tower"}
    for stage in ("teacher", "student"):
        ceiling = metrics["retrieved"]["validation"]["recall"]
        assert 0 < metrics[stage]["recall@10"] <= ceiling, "nobody finds what was not retrieved"
    assert metrics["student"]["overlap@10"] > 0.55, "of 20 candidates half would be common by chance"
