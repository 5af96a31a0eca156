"""Teachers in fewer bytes say nearly the same, and teach."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import fakes
import text_fakes
from compress.data.histories import Asked
from compress.errors import RecipeError
from compress.learner import Learner, Taught
from compress.models.bert4rec import Bert4Rec
from compress.models.cross_encoder import CrossEncoder
from compress.models.low_memory import store
from compress.recipe.losses import KL
from compress.recipe.training import FinetuneSection
from compress.stage import Workspace
from compress.training import train

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def wide() -> Any:
    return fakes.tiny_model(hidden_size=64, num_attention_heads=2, intermediate_size=256)


@needs_bitsandbytes
@pytest.mark.parametrize(("how", "share", "error"), [("int8", 0.45, 0.02), ("nf4", 0.35, 0.3)])
@torch.no_grad()
def test_layers_take_fewer_bytes_and_say_nearly_the_same(how: str, share: float, error: float) -> None:
    family, model = Bert4Rec(), wide()
    histories = fakes.histories(3, 8, 5)
    asked = Asked(histories, fakes.nothing(histories))
    before, whole = family.score(model, asked), store(model, "fp32")
    of_layers = sum(value.numel() * 4 for name, value in model.bert.encoder.named_parameters())
    stored = store(model, how)
    after = family.score(model, asked)
    assert whole - stored > (1 - share) * of_layers
    difference = (after - before).std() / before.std()
    assert 0 < difference < error


@needs_bitsandbytes
@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_a_teacher_in_few_bytes_teaches(tmp_path: Path, how: str) -> None:
    family, texts = CrossEncoder(), text_fakes.texts(tmp_path)
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # nf4 on a CPU needs multiples of 32
    student, teacher = (text_fakes.cross_encoder(texts, seed=seed, **sizes) for seed in (0, 1))
    people = fakes.interactions(items=text_fakes.COUNT)
    examples = family.examples(student, people, 0)
    store(teacher, how)
    learner = Learner(family, student, [KL(kind="kl")], text_fakes.COUNT, Taught([(family, teacher)]))
    loss = learner(**examples.collate([examples[row] for row in range(4)]))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert student.classifier.weight.grad.abs().sum() > 0


@needs_bitsandbytes
def test_an_optimizer_in_eight_bits_learns(tmp_path: Path) -> None:
    family = Bert4Rec()
    model = fakes.tiny_model(items=20, hidden_size=64, intermediate_size=256)  # smaller tensors stay in 32 bits
    people = fakes.interactions_of([[(user + step) % 20 for step in range(8)] for user in range(20)], 20)
    fields = {"kind": "finetune", "model": fakes.tiny_section(), "optimizer": "adamw_bnb_8bit", "learning_rate": 3e-3}
    section = FinetuneSection.model_validate({**fields, "epochs": 8, "batch_size": 8, "warmup_steps": 2})
    learner = Learner(family, model, [section.loss], 20)
    examples = family.examples(model, people, 0)
    batch = examples.collate([examples[row] for row in range(20)])
    before = learner.eval()(**batch)["loss"].item()
    train(learner, examples, section, Workspace(tmp_path, 0), lambda: {})
    assert learner.eval()(**batch)["loss"].item() < 0.5 * before


def test_without_its_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"bitsandbytes is not installed; pip install 'recpress\[bitsandbytes\]'"):
        store(wide(), "nf4")
