"""Exported bundles of three families without training, for what is made of bundles."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fakes
import text_fakes
from compress import models, quantize
from compress.artifact import Artifact, digest
from compress.calibration import calibrate
from compress.data.calibration import CalibrationRequests
from compress.data.interactions import Interactions
from compress.methods import linear_rounding
from compress.recipe.serving import CalibrationSection, ExportSection, QuantizeSection
from compress.stage import Workspace
from deploy import bundle, export

ITEMS = 60
MODELS = ("bert4rec", "cross_encoder", "two_tower", "rounded")
"""The last is the first, weights and item table int8 in the file."""

STATIC = {f"static_{name}": name for name in ("bert4rec", "cross_encoder", "two_tower")}
"""Bundles that say besides how products become int8, by what they are otherwise."""


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
    for name, source in STATIC.items():
        _with_scales(folder / "served" / name, folder / "served" / source, each[source], people)
    return {"data": made["data"], "served": text_fakes.stored(folder / "served", "export", "served", facts)}


def _with_scales(folder: Path, plain: Path, model: Any, people: Interactions) -> None:
    """A bundle as export writes one of a static model, whose standard graph is that of the model in floats."""
    family = models.FAMILIES[model.config.recommender["family"]]
    requests = CalibrationRequests(people, 16, 0)
    shutil.copytree(plain, folder)
    linear_rounding.write(calibrate(family, model, requests, CalibrationSection(), 0.5), folder)
    said = digest(folder / linear_rounding.QUANTIZATION)
    description = bundle.read(plain)
    hashes = {**description.sha256, linear_rounding.QUANTIZATION: said}
    description.model_copy(update={"sha256": hashes}).write(folder)
