"""Which rows there are of a recipe's models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.gpu.rows import rows_of
from compress.methods.linear_rounding import QUANTIZATION
from compress.recipe import load
from compress.stage import graph

RECIPE = """\
name: rows
data: {source: synthetic}
stages:
  teacher: {kind: finetune, model: &model {family: bert4rec, hidden_size: 8, num_hidden_layers: 1}}
  student: {kind: distill, teacher: teacher, model: *model, losses: [{kind: kl}]}
  hard: {kind: quantize, input: student, linear: static}
  weights: {kind: quantize, input: student, linear: weights}
  aware: {kind: distill, teacher: student, start: hard, losses: [{kind: kl}]}
  served: {kind: export, inputs: [teacher, student, hard, weights, aware]}
measure: {export: served, teacher: teacher, candidates: [student, hard, weights, aware]}
"""


def test_what_has_scales_is_run_in_integers_whatever_stage_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (measure,) = [each for each in graph(load(tmp_path / "recipe.yaml"), tmp_path) if each.kind == "measure"]
    for name in ("hard", "aware"):
        (tmp_path / "served" / name).mkdir(parents=True)
        (tmp_path / "served" / name / QUANTIZATION).touch()
    inputs: Any = {"served": SimpleNamespace(path=lambda name: tmp_path / "served" / name)}
    rows = [row for row in rows_of(measure, inputs, "cuda", [1, 8], tmp_path) if row.runtime == "tensorrt"]
    assert [(row.model, row.precision, row.weights_of) for row in rows if row.precision in ("int8", "fp8")] == [
        (model, precision, weights)
        for model, weights in (("hard", "student"), ("aware", "aware"))
        for precision in ("int8", "fp8")
    ]
    assert {row.model for row in rows if row.precision in ("fp16", "bf16")} == {"teacher", "student", "aware"}
