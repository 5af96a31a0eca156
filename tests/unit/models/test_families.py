"""A model folder goes and comes back; what is none is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

import fakes
from compress import models
from compress.data.histories import Asked
from compress.errors import ArtifactError
from compress.models.bert4rec import Bert4Rec


@pytest.mark.parametrize("attention", ["causal", "masked"])
@torch.no_grad()
def test_a_saved_model_comes_back_with_the_same_scores(tmp_path: Path, attention: str) -> None:
    model = fakes.tiny_model(attention=attention)
    Bert4Rec().save(model, tmp_path)
    family, loaded = models.load(tmp_path)
    histories = fakes.histories(1, 4, 9)
    nothing = fakes.nothing(histories)
    assert isinstance(family, Bert4Rec)
    assert not loaded.training
    assert family.score(loaded, Asked(histories, nothing)).equal(family.score(model, Asked(histories, nothing)))
    assert loaded.config.recommender == model.config.recommender


def test_a_saved_model_is_safetensors_and_json_alone(tmp_path: Path) -> None:
    Bert4Rec().save(fakes.tiny_model(), tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_foreign_models_folder_is_one_line(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError) as raised:
        models.load(tmp_path)
    families = ", ".join(models.FAMILIES)
    assert str(raised.value) == f"{tmp_path}: no recommender: config.json names no family of {families}"


@pytest.mark.parametrize(
    "config",
    [
        None,
        "",
        "[1]",
        "null",
        "{}",
        '{"recommender": 3}',
        '{"recommender": {"family": "gru4rec"}}',
        '{"recommender": {"family": ["bert4rec"]}}',
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_model_folder_is_one_line(tmp_path: Path, config: str | bytes | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_bytes(config if isinstance(config, bytes) else config.encode())
    with pytest.raises(ArtifactError, match="no recommender") as raised:
        models.load(tmp_path)
    assert "\n" not in str(raised.value)
