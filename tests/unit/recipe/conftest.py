"""One small recipe that has every kind of section, and what `load` says of it once something in it is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.errors import RecipeError
from compress.recipe import Recipe, load

BASE = """\
name: small
seed: 0
data: {source: csv, path: ratings.csv, columns: {user: who}}
stages:
  teacher:
    kind: finetune
    model: {family: bert4rec, hidden_size: 8, num_hidden_layers: 2}
    early_stopping: {patience: 3}
    loss: {kind: gbce, negatives: 8}
  student:
    kind: distill
    teacher: teacher
    model: &student {family: bert4rec, hidden_size: 4, num_hidden_layers: 1}
    losses:
      - {kind: kl, temperature: 2}
      - {kind: hidden, layers: {1: 2}}
  control: {kind: finetune, model: *student, epochs: 3}
  int8: {kind: quantize, input: student}
  served: {kind: export, inputs: [teacher, student, control, int8]}
measure: {export: served, teacher: teacher, control: control, candidates: [student, int8]}
gate:
  quality: {min_low: 0.9}
  latency: {min_speedup: {1: 2}}
"""

Accept = Callable[..., Recipe]
Reject = Callable[..., str]


@pytest.fixture
def base() -> str:
    return BASE


@pytest.fixture
def accept(tmp_path: Path) -> Accept:
    """Loads a text (or bytes), with overrides."""

    def loaded(text: str | bytes = BASE, *overrides: str) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path, overrides)

    return loaded


@pytest.fixture
def reject(tmp_path: Path, accept: Accept) -> Reject:
    """The one line said of a text (or bytes) that is no recipe, without the folder it lies in."""

    def said(text: str | bytes, *overrides: str) -> str:
        with pytest.raises(RecipeError) as raised:
            accept(text, *overrides)
        assert "\n" not in str(raised.value)
        return str(raised.value).replace(f"{tmp_path}/", "")

    return said


@pytest.fixture
def reject_change(reject: Reject) -> Reject:
    """The same for the small recipe with one place changed."""

    def said(old: str, new: str) -> str:
        assert old in BASE
        return reject(BASE.replace(old, new, 1))

    return said
