"""Families of recommenders: `FAMILIES` is the list, `load` reads a model folder whatever its family."""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from transformers import PreTrainedModel

from compress.data.texts import Texts
from compress.errors import ArtifactError
from compress.models.bert4rec import Bert4Rec
from compress.models.cross_encoder import CrossEncoder
from compress.models.family import Family
from compress.models.two_tower import TwoTower
from compress.recipe.model import AnyModel

transformers.utils.logging.set_verbosity_error()  # it warns of decoders without a mask, which causal models are
transformers.utils.logging.disable_progress_bar()  # of loading a few megabytes

FAMILIES: dict[str, Family] = {
    "bert4rec": Bert4Rec(),
    "cross_encoder": CrossEncoder(),
    "two_tower": TwoTower(),
}


def build(section: AnyModel, catalogue_size: int, texts: Texts | None = None) -> tuple[Family, PreTrainedModel]:
    """The family of a recipe's model section and a fresh model of it."""
    family = FAMILIES[section.family]
    return family, family.build(section, catalogue_size, texts)


def load(folder: Path) -> tuple[Family, PreTrainedModel]:
    """The family and the model of a Hugging Face folder that a stage saved. Raises ArtifactError if it is none."""
    try:
        name = json.loads((folder / "config.json").read_text())["recommender"]["family"]
        family = FAMILIES[name]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"{folder}: no recommender: config.json names no family of {', '.join(FAMILIES)}") from None
    return family, family.load(folder)
