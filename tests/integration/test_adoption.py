"""One's own checkpoint through a recipe: as the teacher, as a student's start, and refused where it is misread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compress import artifact
from conftest import recpress

RECIPE = """\
name: mine
data: {{source: synthetic, users: 200, items: 120, seed: 0}}
stages:
  teacher:
    kind: adopt
    path: {folder}
    model: {{family: bert4rec, attention: causal, alignment: right, max_length: 20, token_offset: -1, pad_token: 120}}
  small: {{kind: adopt, path: {folder}, model: {{family: bert4rec, attention: causal, alignment: right, max_length: 20,
    token_offset: -1, pad_token: 120}}}}
  student: {{kind: distill, teacher: teacher, start: small, epochs: 1, batch_size: 16, losses: [{{kind: kl}}]}}
  tuned: {{kind: finetune, start: teacher, epochs: 1, batch_size: 16}}
"""


@pytest.fixture
def recipe(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny recipe's teacher as if it were somebody else's: its tokens are the item ids less one."""
    folder = tiny_run / "tiny" / "seed-0" / "teacher" / "model"
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(folder=folder))
    return path


def metrics(runs: Path, stage: str) -> dict[str, float]:
    return artifact.read(runs / "mine" / "seed-0" / stage).metrics


def test_an_adopted_teacher_is_measured_first_and_teaches(recipe: Path, tiny_run: Path, tmp_path: Path) -> None:
    ended = recpress(recipe, "--runs", tmp_path, "--one-process")
    assert ended.returncode == 0, ended.stderr
    original = artifact.read(tiny_run / "tiny" / "seed-0" / "teacher").metrics
    found = metrics(tmp_path, "teacher")
    assert found["ndcg@10"] == original["ndcg@10"]
    assert found["ndcg@10"] > found["popularity_ndcg@10"] > 0
    assert metrics(tmp_path, "student")["overlap@10"] > 0.7, "it starts as its teacher"
    assert metrics(tmp_path, "tuned")["ndcg@10"] > found["ndcg@10"] / 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("attention=masked mask_token=121 max_length=19", "ranks better as attention: causal, "),
        ("token_offset=-20", "19 of 120 items have no token"),
        ("token_offset=null tokens=shuffled.csv", "does not rank above popularity"),
        ("max_length=50", "max_length: it takes 50 positions, the model has 20"),
    ],
)
def test_a_misread_checkpoint_is_one_line(recipe: Path, tmp_path: Path, overrides: str, message: str) -> None:
    lines = [f"{token},{item + 1}" for item, token in enumerate(np.random.default_rng(0).permutation(120))]
    (tmp_path / "shuffled.csv").write_text("\n".join(["token_id,item_id", *lines]))
    line = [part for override in overrides.split() for part in ("--set", f"stages.teacher.model.{override}")]
    line += ["--set", "stages.student={kind: finetune, start: teacher}"]
    ended = recpress(recipe, "--runs", tmp_path, "--stage", "teacher", *line, module="compress.adopt")
    assert ended.returncode == 2
    assert message in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_checkpoint_that_is_not_there_is_one_line_that_names_its_key(recipe: Path, tmp_path: Path) -> None:
    ended = recpress(recipe, "--runs", tmp_path, "--set", "stages.teacher.path=nowhere", module="compress.adopt")
    assert ended.returncode == 2
    assert "stages.teacher.path: " in ended.stderr.splitlines()[-1]
