"""Times the parts of a served graph on the runtime that serves: attention by heads, FFN by neurons, by width and batch.

`python -m deploy.profile recipe.yaml`

B: rows, L: positions, H: width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact, write_json
from compress.command import main
from compress.recipe.pruning import ProfileSection
from compress.stage import Workspace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from compress.methods.shapes import LayerShape
    from compress.models.family import Family, ServedGraph
    from deploy.clock import Call

TABLE = "latency.json"
VERSION = 1

ROWS = ("batch", "candidates")
"""Axes of served graphs along which texts or histories stand side by side."""


def run(section: ProfileSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `latency.json`, milliseconds. Returns what the whole graph takes."""
    from compress import models
    from compress.data.interactions import Interactions
    from compress.methods import shapes
    from compress.methods.rounding import Rounding

    family, model = models.load(inputs[section.input].path("model"))
    served = family.serve(model, 10, Rounding()).eval()
    typical = typical_sizes(family, model, served, Interactions.of(inputs), section.length)
    most = [shapes.shape(layer) for layer in shapes.encoders(model)[0].encoder.layer]
    tables = {}
    for batch_size in section.batch_sizes:
        tables[str(batch_size)] = _table(section, served, model, typical, batch_size)
    table = {
        "schema_version": VERSION,
        "runtime": "onnxruntime-cpu",
        "threads": section.threads,
        "linear": section.linear,
        "hidden_size": model.config.hidden_size,
        "sizes": typical,
        "layers": [[each.heads, each.neurons] for each in most],
        "batches": tables,
    }
    write_json(workspace.folder / TABLE, table)
    return {f"total_ms_b{size}": round(each["total_ms"], 4) for size, each in tables.items()}


def typical_sizes(family: Family, model: Any, served: ServedGraph, interactions: Any, length: int | None) -> dict[str, int]:
    """Of every axis but the rows: the median over validation requests; or `length` positions in all, split alike."""
    import numpy as np

    users = interactions.users("validation")[:64]
    found: dict[str, list[int]] = {}
    for user in users:
        arrays = family.inputs(model, interactions.asked("validation", np.array([user])))
        for name, axes in served.axes.items():
            for axis, size in zip(axes, arrays[name].shape, strict=True):
                if isinstance(axis, str) and axis not in ROWS:
                    found.setdefault(axis, []).append(size)
    sizes = {axis: max(1, int(np.median(values))) for axis, values in found.items()}
    if length is not None:
        positions = [axis for axis in sizes if axis != "excluded"]
        total = sum(sizes[axis] for axis in positions)
        sizes |= {axis: max(1, round(sizes[axis] * length / total)) for axis in positions}
    return sizes


def rows_of(served: ServedGraph, sizes: Mapping[str, int], batch_size: int) -> dict[str, NDArray[np.int64]]:
    """Inputs of these sizes, ids drawn at random: what is computed does not depend on them."""
    import numpy as np

    random = np.random.default_rng(0)
    everything = {**sizes, **dict.fromkeys(ROWS, batch_size)}
    arrays = {}
    for name, axes in served.axes.items():
        shape = [axis if isinstance(axis, int) else everything[axis] for axis in axes]
        if name in served.floats:
            arrays[name] = random.random(shape, dtype=np.float32)
        else:
            arrays[name] = random.integers(0, served.pad_id or served.catalogue_size, shape)
    return arrays


def _table(
    section: ProfileSection, served: ServedGraph, model: Any, sizes: Mapping[str, int], batch_size: int
) -> dict[str, Any]:
    """Of one batch size: the whole graph, and every part at every width."""
    import numpy as np
    import torch

    from compress.methods.shapes import LayerShape
    from deploy.clock import interleave

    arrays = rows_of(served, sizes, batch_size)
    seen = _states(served, {name: torch.from_numpy(array) for name, array in arrays.items()})
    widths = sorted({*section.hidden_sizes, model.config.hidden_size}, reverse=True)
    most = _most(model)
    size = model.config.hidden_size // model.config.num_attention_heads
    heads = sorted({1 + round(place * (most.heads - 1) / 11) for place in range(12)})
    neurons = sorted({round(most.neurons * step / section.steps) for step in range(1, section.steps + 1)})
    with tempfile.TemporaryDirectory() as scratch:
        timer = _Timer(Path(scratch), section, seen)
        calls: dict[Any, list[Call]] = {"total": [timer.whole(served, arrays)]}
        for width in widths:
            for role in seen:
                for shape in _shapes(heads, neurons):
                    calls[width, role, shape] = [timer.part(role, shape, width, size, model)]
        samples = interleave(calls, turns=12, seconds=4.0 * len(calls), label=f"profile, batch {batch_size}")
    found = {key: float(np.median(values)) for key, values in samples.items()}
    hidden: dict[str, Any] = {}
    for width in widths:
        parts = {role: _part(found, width, role, heads, neurons) for role in seen}
        hidden[str(width)] = {"inner": parts.get("inner", parts["last"]), "last": parts["last"]}
    whole = hidden[str(model.config.hidden_size)]
    inside = [_cost(whole["inner" if more else "last"], each) for each, more in _with_last(model)]
    for width in widths:  # what is outside the layers is proportional to the width, the runtime's own share apart
        hidden[str(width)]["rest"] = (found["total"] - sum(inside)) * width / model.config.hidden_size
    return {"total_ms": found["total"], "rows": batch_size, "hidden": hidden}


def _most(model: Any) -> LayerShape:
    from compress.methods import shapes

    found = [shapes.shape(layer) for layer in shapes.encoders(model)[0].encoder.layer]
    return shapes.LayerShape(max(each.heads for each in found), max(each.neurons for each in found))


def _with_last(model: Any) -> list[tuple[LayerShape, bool]]:
    """Each layer, and whether another follows."""
    from compress.methods import shapes

    found = [shapes.shape(layer) for layer in shapes.encoders(model)[0].encoder.layer]
    return [(each, place + 1 < len(found)) for place, each in enumerate(found)]


def _shapes(heads: list[int], neurons: list[int]) -> list[LayerShape]:
    """What is timed: nothing, heads alone, neurons alone."""
    from compress.methods.shapes import LayerShape

    return [LayerShape(0, 0), *(LayerShape(each, 0) for each in heads), *(LayerShape(0, each) for each in neurons)]


def _part(found: Mapping[Any, float], width: int, role: str, heads: list[int], neurons: list[int]) -> dict[str, Any]:
    from compress.methods.shapes import LayerShape

    def more(shape: LayerShape) -> float:
        return max(0.0, found[width, role, shape] - found[width, role, LayerShape(0, 0)])

    return {
        "layer": found[width, role, LayerShape(0, 0)],
        "heads": {str(each): more(LayerShape(each, 0)) for each in heads},
        "neurons": {str(each): more(LayerShape(0, each)) for each in neurons},
    }
