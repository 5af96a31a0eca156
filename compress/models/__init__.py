"""Families of recommenders: `FAMILIES` is the list, `load` reads a model folder whatever its family."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from compress.artifact import Artifact
from compress.data.features import Features
from compress.data.texts import Texts
from compress.errors import ArtifactError
from compress.models.bert4rec import Bert4Rec
from compress.models.cross_encoder import CrossEncoder
from compress.models.family import Family
from compress.models.hybrid import Hybrid
from compress.models.two_tower import TwoTower
from compress.recipe.model import AnyModel

transformers.utils.logging.set_verbosity_error()  # it warns of decoders without a mask, which causal models are
transformers.utils.logging.disable_progress_bar()  # of loading a few megabytes

FAMILIES: dict[str, Family] = {
    "bert4rec": Bert4Rec(),
    "cross_encoder": CrossEncoder(),
    "two_tower": TwoTower(),
    "hybrid": Hybrid(),
}


READERS: dict[str, Callable[[Path], Any]] = {"tokenize": Texts.load, "features": Features.load}
"""By kind of a stage that leaves no model: what others are built from."""


def build(section: AnyModel, catalogue_size: int, inputs: Mapping[str, Artifact]) -> tuple[Family, PreTrainedModel]:
    """The family of a recipe's model section and a fresh model of it, made of what the stages that it names left."""
    family = FAMILIES[section.family]
    return family, family.build(section, catalogue_size, *(source(inputs[name]) for name in section.inputs()))


def source(stage: Artifact) -> Any:
    """What a stage leaves for others to build models from: texts, features, or a model."""
    read = READERS.get(stage.manifest.kind)
    return read(stage.folder) if read else load(stage.path("model"))[1]


def load(folder: str | Path) -> tuple[Family, PreTrainedModel]:
    """The family and the model of a Hugging Face folder that a stage saved. Raises ArtifactError if it is none."""
    folder = Path(folder)
    try:
        name = json.loads((folder / "config.json").read_text())["recommender"]["family"]
        family = FAMILIES[name]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"{folder}: no recommender: config.json names no family of {', '.join(FAMILIES)}") from None
    return family, family.load(folder)
