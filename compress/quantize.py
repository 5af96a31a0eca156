"""Says what becomes int8: rounds the item table, calibrates static products, measures what rounding costs.

`python -m compress.quantize recipe.yaml`
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.serving import QuantizeSection
from compress.stage import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.data.interactions import Interactions
    from compress.methods.linear_rounding import Maps
    from compress.models.family import Family


def run(section: QuantizeSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `model/`, its item table on the int8 grid but still floats: what PyTorch and every target agree on.

    With static products also their description.

    Returns validation metrics before export, all rounded as it will be; `rounding`, what `export` lowers; and the stage
    in floating point that was rounded.
    """
    from compress import models
    from compress.data.interactions import Interactions
    from compress.evaluation import evaluate, served
    from compress.methods import linear_rounding
    from compress.methods.rounding import Rounding, round_rows

    interactions = Interactions.of(inputs)
    family, model = models.load(inputs[section.input].path("model"))
    error = 0.0
    if section.item_table == "int8-per-row":
        error = round_rows(model.get_input_embeddings().weight)
    # Of what is made of the table and stored, such as items' vectors, the family knows itself.
    model.config.recommender = {**model.config.recommender, "item_table": section.item_table}
    family.save(model, workspace.folder / "model")
    rounding = Rounding(section.linear, section.item_table)
    facts: dict[str, Any] = {}
    if section.linear == "static":
        maps, facts = _static(section, family, model, interactions, workspace.seed)
        linear_rounding.write(maps, workspace.folder)
        rounding = replace(rounding, maps=maps)
    recommend = served(family, model, rounding, interactions.judged_items)
    return {
        **evaluate(recommend, interactions, "validation"),
        "rounding": {"linear": section.linear, "item_table": section.item_table},
        "item_table_relative_error": round(error, 6),
        "rounded_from": inputs[section.input].metrics.get("rounded_from", section.input),
        **facts,
    }


def _static(
    section: QuantizeSection, family: Family, model: PreTrainedModel, interactions: Interactions, seed: int
) -> tuple[Maps, dict[str, Any]]:
    """How products are rounded, those that harm most for the time they save left as they are, and facts about it."""
    from compress.calibration import SENSITIVITY_REQUESTS, calibrate, sensitivity
    from compress.data.calibration import CalibrationRequests, validation_requests

    assert section.calibration is not None, "static sections have one"
    requests = CalibrationRequests(interactions, section.calibration.histories, seed)
    before, started = _peak_bytes(), time.monotonic()
    maps: Maps = calibrate(
        family,
        model.eval(),
        requests,
        section.calibration,
        section.smooth,
        weight_bits=section.weight_bits,
        per_channel=section.per_channel,
        bias_correction=section.bias_correction,
    )
    facts: dict[str, Any] = {
        "calibration_histories": len(requests),
        "calibration_seconds": round(time.monotonic() - started, 2),
        "calibration_memory_bytes": _peak_bytes() - before,
    }
    if section.keep:
        asked = validation_requests(interactions, SENSITIVITY_REQUESTS, seed)
        harm, work = sensitivity(family, model, asked, maps)
        kept = sorted(harm, key=lambda name: -harm[name] / work[name])[: section.keep]
        maps = {name: None if name in kept else how for name, how in maps.items()}
        facts |= {
            "sensitivity": {name: round(loss, 8) for name, loss in harm.items()},
            "multiply_adds": {name: round(count) for name, count in work.items()},
            "kept": kept,
            "sensitivity_requests": len(asked),
        }
    return maps, facts


def _peak_bytes() -> int:
    """The most that this process has held: what calibration adds to it is what it needs beyond loading a model."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    raise SystemExit(main("quantize"))
