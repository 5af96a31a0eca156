"""Times the parts of a served graph on the runtime that serves: attention by heads, FFN by neurons, by width and batch.

`python -m deploy.profile recipe.yaml`

B: rows, L: positions, H: width.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact, write_json
from compress.command import main
from compress.errors import RecipeError
from compress.recipe.pruning import ProfileSection
from compress.stage import Workspace
from deploy.bundle import ROWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compress.data.interactions import Interactions
    from compress.methods.shapes import LayerShape
    from compress.models.family import Family, ServedGraph
    from deploy.clock import Call

TABLE = "latency.json"
VERSION = 1

TOTAL, SHELL, CALL = "total", "shell", "call"
"""What is timed besides the parts: the whole graph, it without layers, and one that computes nothing."""


def run(section: ProfileSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `latency.json`, in milliseconds. Returns what the whole graph takes."""
    from compress import models
    from compress.data.interactions import Interactions
    from compress.methods import shapes
    from compress.methods.rounding import Rounding
    from deploy.layer_graphs import TOP_K, shell

    family, model = models.load(inputs[section.input].path("model"))
    served = family.serve(model, TOP_K, Rounding()).eval()
    if not served.uniform:
        raise RecipeError(
            f"input: {section.input} reads attention: one_way, so that its layers compute users once, not per "
            "candidate, and a table of layers cannot tell; prune it by parameters, bytes or flops"
        )
    sizes = typical_sizes(family, model, served, Interactions.of(inputs), section.length)
    found = [shapes.shape(layer) for layer in shapes.encoders(model)[0].encoder.layer]
    profiled = _Profiled(served, shell(family, model), model.config.hidden_size, shapes.head_size(model), found)
    tables = {str(size): _table(section, profiled, sizes, size) for size in section.batch_sizes}
    table = {
        "schema_version": VERSION,
        "runtime": "onnxruntime-cpu",
        "family": model.config.recommender["family"],
        "threads": section.threads,
        "linear": section.linear,
        "sizes": sizes,
        "ids": known_ids(served),
        "hidden_size": profiled.hidden_size,
        "head_size": profiled.head_size,
        "layers": [[each.heads, each.neurons] for each in found],
        "batches": tables,
    }
    write_json(workspace.folder / TABLE, table)
    return {f"ms_b{size}": round(each["total"], 4) for size, each in tables.items()}


@dataclass(frozen=True)
class _Profiled:
    """The model whose graph is timed."""

    served: ServedGraph
    shell: ServedGraph
    hidden_size: int
    head_size: int
    layers: list[LayerShape]

    @property
    def roles(self) -> dict[str, int]:
        """Layers of a kind that are timed together: those inside, the last one."""
        return {"inner": len(self.layers) - 1, "last": 1} if len(self.layers) > 1 else {"last": 1}


def typical_sizes(
    family: Family, model: Any, served: ServedGraph, interactions: Interactions, length: int | None
) -> dict[str, int]:
    """Of every axis but the rows: the median over validation requests, or their shares of `length` positions."""
    import numpy as np

    found: dict[str, list[int]] = {}
    for user in interactions.users("validation")[:64]:
        arrays = family.inputs(model, interactions.asked("validation", np.array([user])))
        for name, axes in served.axes.items():
            for axis, size in zip(axes, arrays[name].shape, strict=True):
                if isinstance(axis, str) and axis not in ROWS:
                    found.setdefault(axis, []).append(size)
    sizes = {axis: max(1, int(np.median(values))) for axis, values in found.items()}
    if length is not None:
        positions = {axis: size for axis, size in sizes.items() if axis != "excluded"}
        sizes |= {axis: max(1, round(size * length / sum(positions.values()))) for axis, size in positions.items()}
    if positions_in(sizes) > served.max_length:
        raise RecipeError(f"length: {length} positions; the model reads {served.max_length}")
    return sizes


def positions_in(sizes: Mapping[str, int]) -> int:
    """Of a row of inputs of these sizes."""
    return sum(size for axis, size in sizes.items() if axis != "excluded")


def known_ids(served: ServedGraph) -> int:
    """So many items, and tokens, any model of the family knows."""
    return min(served.catalogue_size, 100)


def drawn_inputs(
    axes: Mapping[str, Sequence[str | int]], floats: Collection[str], ids: int, sizes: Mapping[str, int], rows: int
) -> dict[str, NDArray[Any]]:
    """A served graph's inputs, drawn at random: how long products take does not depend on what is in them.

    Args:
        axes: of each input, as `ServedGraph.axes`.
        floats: which of them are no ids.
        ids: how many the model knows at least.
        sizes: of all axes but the rows.

    """
    import numpy as np

    random = np.random.default_rng(0)
    every = {**sizes, **dict.fromkeys(ROWS, rows)}
    shapes = {name: [axis if isinstance(axis, int) else every[axis] for axis in axes[name]] for name in axes}
    return {
        name: random.random(shape, dtype=np.float32) if name in floats else random.integers(0, ids, shape)
        for name, shape in shapes.items()
    }


def _table(section: ProfileSection, profiled: _Profiled, sizes: Mapping[str, int], rows: int) -> dict[str, Any]:
    """Of one batch size: the whole graph, and every part at every width."""
    from compress.methods import costs
    from compress.methods.shapes import LayerShape

    most = LayerShape(max(each.heads for each in profiled.layers), max(each.neurons for each in profiled.layers))
    heads = sorted({1 + round(place * (most.heads - 1) / 11) for place in range(12)}) if most.heads else []
    neurons = sorted({-(-most.neurons * step // section.steps) for step in range(1, section.steps + 1)} - {0})
    tried = [LayerShape(0, 0), *(LayerShape(each, 0) for each in heads), *(LayerShape(0, each) for each in neurons)]
    widths = sorted({*section.hidden_sizes, profiled.hidden_size})
    parts = list(itertools.product(widths, profiled.roles, tried))
    length, took = _timed(section, profiled, sizes, rows, parts)

    def part(width: int, role: str, scale: float) -> dict[str, Any]:
        count, empty = profiled.roles[role], took[width, role, LayerShape(0, 0)]

        def more(shape: LayerShape) -> float:
            return scale * max(0.0, took[width, role, shape] - empty) / count

        return {
            "layer": scale * max(0.0, empty - took[CALL]) / count,
            "heads": _rising({each: more(LayerShape(each, 0)) for each in heads}),
            "neurons": _rising({each: more(LayerShape(0, each)) for each in neurons}),
        }

    def table(rest: float, scale: float) -> dict[str, Any]:
        return {
            str(width): {
                "rest": rest * width / profiled.hidden_size,  # embeddings and head are shorter as a model is narrower
                "inner": part(width, next(iter(profiled.roles)), scale),
                "last": part(width, "last", scale),
            }
            for width in widths
        }

    # What is around the layers is timed by itself; what the layers take more in a model than alone, they take in
    # proportion.
    rest = max(0.0, took[SHELL] - part(profiled.hidden_size, "last", 1.0)["layer"])
    inside = costs.measured({"hidden": table(0.0, 1.0)}, profiled.hidden_size).of(profiled.layers)
    scale = (took[TOTAL] - rest) / inside
    return {"total": took[TOTAL], "length": length, "in_context": scale, "hidden": table(rest, scale)}


def _rising(points: Mapping[int, float]) -> dict[str, float]:
    """Nothing takes longer than what holds it: a point above a later one was disturbed."""
    values = list(points.values())
    return {str(size): min(values[place:]) for place, size in enumerate(points)}


def _timed(
    section: ProfileSection,
    profiled: _Profiled,
    sizes: Mapping[str, int],
    rows: int,
    parts: Sequence[tuple[int, str, LayerShape]],
) -> tuple[int, dict[Any, float]]:
    """Positions of a row; milliseconds of the whole graph, of a call, and of the parts, by what they are."""
    from tqdm import tqdm

    from deploy.clock import interleave, undisturbed
    from deploy.layer_graphs import EmptyGraph, LayerGraph, ends_at_one_position, positions

    served, single = profiled.served, ends_at_one_position(profiled.served)
    length = positions(served, drawn_inputs(served.axes, served.floats, known_ids(served), sizes, rows))
    graphs: dict[Any, ServedGraph] = {TOTAL: served, SHELL: profiled.shell, CALL: EmptyGraph(profiled.hidden_size)}
    for width, role, shape in parts:
        count = profiled.roles[role]
        part = LayerGraph(width, profiled.head_size, shape, count, single=single and role == "last")
        graphs[width, role, shape] = part.eval()
    with tempfile.TemporaryDirectory() as scratch:
        calls: dict[Any, list[Call]] = {}
        for key, graph in tqdm(graphs.items(), desc=f"export, batch {rows}", leave=False, disable=None):
            own = sizes if key in (TOTAL, SHELL) else {"length": length}
            inputs = drawn_inputs(graph.axes, graph.floats, known_ids(served), own, rows)
            calls[key] = [_call(section, Path(scratch) / str(len(calls)), graph, inputs)]
        samples = interleave(calls, turns=12, seconds=3.0 * len(calls), label=f"profile, batch {rows}")
    return length, {key: undisturbed(values) for key, values in samples.items()}


def _call(section: ProfileSection, path: Path, served: ServedGraph, arrays: Mapping[str, NDArray[Any]]) -> Call:
    """The graph, lowered and loaded, on these inputs."""
    from compress.methods.rounding import Rounding
    from compress.provenance import hardware
    from deploy.export import write_graph
    from deploy.lowering import LOWERINGS
    from deploy.runtimes.onnxruntime import OnnxRuntimeCpu

    written, lowered = path.with_suffix(".onnx"), path.with_suffix(".lowered.onnx")
    write_graph(served, written)
    rounding, vnni = Rounding(section.linear), hardware().get("vnni") == "true"
    LOWERINGS["onnxruntime-cpu"](written, lowered, rounding, served.linear_weights, vnni=vnni)
    session, inputs = OnnxRuntimeCpu(lowered, section.threads), dict(arrays)
    return lambda: session(inputs)


if __name__ == "__main__":
    raise SystemExit(main("profile"))
