"""Stand-ins for what models over texts need: items with words, their tokens, models whose every weight matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel

import fakes
from compress import artifact, tokenize
from compress.artifact import Artifact
from compress.data.interactions import INTERACTIONS, ITEMS, Interactions
from compress.data.texts import TOKENIZER, Texts, read_tokenizer
from compress.models.cross_encoder import CrossEncoder
from compress.models.two_tower import TwoTower
from compress.recipe.model import CrossEncoderModel, TwoTowerModel
from compress.recipe.texts import TokenizeSection
from compress.stage import Workspace

COUNT = 24
"""Items of the catalogue unless told otherwise."""

WORDS = (
    "red",
    "green",
    "blue",
    "old",
    "new",
    "café",
    "sea",
    "moon",
    "wolf",
    "river",
    "stone",
    "glass",
    "(part",
    "two)",
)
WORDS += ("it's", "x-ray", "1984", "l'été", "ÜBER", "naïve")
KINDS = ("drama", "sci-fi", None, "film noir")


def table(items: int = COUNT, seed: int = 0) -> pl.DataFrame:
    """`items.parquet` of a catalogue: texts of one to six words, one of them missing, and a column of kinds."""
    random = np.random.default_rng(seed)
    words = [" ".join(random.choice(WORDS, size=random.integers(1, 7))) for _ in range(items)]
    return pl.DataFrame(
        {
            "item": pl.Series(range(items), dtype=pl.Int32),
            "item_id": [f"id-{item}" for item in range(items)],
            "text": [None, *words[1:]],
            "kind": [KINDS[item % len(KINDS)] for item in range(items)],
            "year": [1900 + item for item in range(items)],
            "popularity": [0] * items,
        }
    )


def stored(
    folder: Path, kind: str = "prepare", name: str = "data", metrics: Mapping[str, Any] | None = None
) -> Artifact:
    """What lies in a folder as a finished stage."""
    described = {"name": name, "kind": kind, "fingerprint": "", "ingredients": {}, "environment": {}}
    return artifact.write(folder, seed=0, seconds=0.0, metrics=dict(metrics or {}), **described)


def data(folder: Path, items: pl.DataFrame, people: Interactions | None = None) -> Artifact:
    """The prepare stage's artifact: these items, used by these people."""
    folder.mkdir(parents=True)
    people = people or fakes.interactions(items=items.height)
    users = np.repeat(np.arange(people.user_count), np.diff(people.offsets))
    columns = {"user": users, "item": people.items, "timestamp": people.timestamps, "part": people.parts}
    pl.DataFrame(columns).write_parquet(folder / INTERACTIONS)
    items.with_columns(popularity=pl.Series(people.popularity())).write_parquet(folder / ITEMS)
    return stored(folder)


def section(**options: Any) -> TokenizeSection:
    fields: dict[str, Any] = {"tokenizer": {"vocab_size": 120}, "history": {"last": 4}}
    return TokenizeSection.model_validate({"kind": "tokenize", **fields, **options})


def tokenized(folder: Path, items: pl.DataFrame, **options: Any) -> tuple[Texts, dict[str, Any]]:
    """The tokenize stage run on these items: what it leaves and what it says. `options` are its section's fields."""
    source = data(folder / "data", items)
    made = folder / "texts"
    made.mkdir()
    metrics = tokenize.run(section(**options), {"data": source}, Workspace(made, seed=0))
    return Texts.load(made), metrics


def texts(folder: Path, items: int = COUNT, **options: Any) -> Texts:
    """Of the catalogue above."""
    return tokenized(folder, table(items), **options)[0]


def tokenizer(texts: Texts) -> Tokenizer:
    return read_tokenizer(texts.folder / TOKENIZER)


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """The model in eval mode; no weight has its fresh value, so that a bias or a norm left out shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.normal_(1, 0.3)
            elif parameter.dim() == 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 1 if "embeddings" in name else 1.5 / parameter.shape[1] ** 0.5)
    return model.eval()


def cross_encoder_section(**options: Any) -> CrossEncoderModel:
    return CrossEncoderModel.model_validate({"family": "cross_encoder", "texts": "texts", **_sizes(options)})


def two_tower_section(**options: Any) -> TwoTowerModel:
    return TwoTowerModel.model_validate({"family": "two_tower", "texts": "texts", **_sizes(options)})


def _sizes(options: Mapping[str, Any]) -> dict[str, Any]:
    fields = {"max_length": 64, "dropout": 0.0, "negatives": 3}
    if "checkpoint" not in options:
        fields |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return {**fields, **options}


def cross_encoder(texts: Texts, seed: int = 0, labels: int = 1, **options: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    model = CrossEncoder().build(cross_encoder_section(**options), len(texts.items), texts)
    if labels != 1:
        model.config.num_labels = labels
        model.num_labels = labels
        model.classifier = torch.nn.Linear(model.config.hidden_size, labels)
    return shaken(model)


def two_tower(texts: Texts, seed: int = 0, **options: Any) -> BertModel:
    torch.manual_seed(seed)
    return shaken(TwoTower().build(two_tower_section(**options), len(texts.items), texts))


def without(texts: Texts, *kept: Sequence[int]) -> list[NDArray[np.int64]]:
    """What is excluded of users whose candidates are these."""
    return [np.setdiff1d(np.arange(len(texts.items)), few) for few in kept]


def batch_of(examples: Any, count: int | None = None) -> dict[str, Tensor]:
    """A batch of the first so many examples, or of all."""
    batch: dict[str, Tensor] = examples.collate([examples[index] for index in range(count or len(examples))])
    return batch


def pretrained(folder: Path, architecture: Any = BertModel, seed: int = 0, **options: Any) -> Any:
    """A checkpoint as people save it: three layers, more tokens than anybody's texts have."""
    torch.manual_seed(seed)
    fields = {"vocab_size": 150, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = BertConfig(**{**fields, "intermediate_size": 20, "max_position_embeddings": 60, **options})
    model = shaken(architecture(config))
    model.save_pretrained(folder)
    return model
