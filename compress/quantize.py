"""Says what becomes int8: rounds the item table, names the linear maps, measures what rounding the table costs.

`python -m compress.quantize recipe.yaml`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.serving import QuantizeSection
from compress.stage import Workspace


def run(section: QuantizeSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `model/`, its item table on the int8 grid but still floats: what PyTorch and every target agree on.

    Returns validation metrics before export, and `rounding`, what `export` lowers.
    """
    import torch

    from compress import models
    from compress.data.interactions import Interactions
    from compress.evaluation import evaluate, plain
    from compress.methods.rounding import quantize_rows

    interactions = Interactions.of(inputs)
    family, model = models.load(inputs[section.input].path("model"))
    error = 0.0
    if section.item_table == "int8-per-row":
        table = model.get_input_embeddings().weight
        integers, scales = quantize_rows(table.detach())
        error = float(((integers * scales - table).norm() / table.norm()).detach())
        with torch.no_grad():
            table.copy_(integers * scales)
    # Of what is made of the table and stored, such as items' vectors, the family knows itself.
    model.config.recommender = {**model.config.recommender, "item_table": section.item_table}
    family.save(model, workspace.folder / "model")
    return {
        **evaluate(plain(family, model, interactions.judged_items), interactions, "validation"),
        "rounding": {"linear": section.linear, "item_table": section.item_table},
        "item_table_relative_error": round(error, 6),
    }


if __name__ == "__main__":
    raise SystemExit(main("quantize"))
