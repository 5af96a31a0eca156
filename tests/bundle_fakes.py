"""Exported bundles of three families without training, for what is made of bundles."""

from __future__ import annotations

from pathlib import Path

import fakes
import text_fakes
from compress import models, quantize
from compress.artifact import Artifact
from compress.recipe.serving import ExportSection, QuantizeSection
from compress.stage import Workspace
from deploy import export

ITEMS = 60
MODELS = ("bert4rec", "cross_encoder", "two_tower", "rounded")
"""The last is the first, weights and item table int8 in the file."""


def inputs(folder: Path) -> dict[str, Artifact]:
    """What a build stage reads: `data`, and `served` with a bundle per model."""
    table = text_fakes.table(ITEMS)
    people = fakes.interactions(users=14, items=ITEMS)
    made = {"data": text_fakes.data(folder / "data", table, people)}
    texts = text_fakes.tokenized(folder / "texts", table)[0]
    each = {
        "bert4rec": fakes.tiny_model(items=ITEMS, max_length=12),
        "cross_encoder": text_fakes.cross_encoder(texts),
        "two_tower": text_fakes.two_tower(texts),
    }
    for name, model in each.items():
        (folder / name).mkdir()
        models.FAMILIES[name].save(model, folder / name / "model")
        made[name] = text_fakes.stored(folder / name, "finetune", name)
    (folder / "rounded").mkdir()
    section = QuantizeSection(kind="quantize", input="bert4rec", linear="weights")
    facts = quantize.run(section, made, Workspace(folder / "rounded", seed=0))
    made["rounded"] = text_fakes.stored(folder / "rounded", "quantize", "rounded", facts)
    (folder / "served").mkdir()
    facts = export.run(
        ExportSection(kind="export", inputs=MODELS, top_k=10), made, Workspace(folder / "served", seed=0)
    )
    return {"data": made["data"], "served": text_fakes.stored(folder / "served", "export", "served", facts)}
