"""Trains a recommender on labels alone: a teacher, or a student's control.

`python -m compress.finetune recipe.yaml`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.training import FinetuneSection
from compress.stage import Workspace


def run(section: FinetuneSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `model/`, a Hugging Face folder. Returns validation metrics and training facts."""
    from transformers import set_seed

    from compress.data.interactions import Interactions
    from compress.training import begin, learn, rounding_of_start

    interactions = Interactions.of(inputs)
    set_seed(workspace.seed)
    family, model = begin(section, inputs, interactions)
    if section.model and section.item_embeddings == "cooccurrence":
        family.seed_items(model, interactions)
    rounding = rounding_of_start(section, inputs)
    return learn(section, family, model, [section.loss], interactions, workspace, rounding=rounding)


if __name__ == "__main__":
    raise SystemExit(main("finetune"))
