"""Writes each model as a bundle: one served ONNX graph in standard operators, lowered per target, held to PyTorch.

`python -m deploy.export recipe.yaml`
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact, digest
from compress.command import main
from compress.provenance import hardware
from compress.recipe.serving import ExportSection
from compress.stage import Workspace
from deploy import parity
from deploy.bundle import ITEMS, STANDARD, Bundle
from deploy.rankers import PLAIN, RANKERS

if TYPE_CHECKING:  # torch is loaded when there is work, not to find out that there is none
    from transformers import PreTrainedModel

    from compress.data.interactions import Interactions
    from compress.methods.rounding import Rounding
    from compress.models.family import Family, ServedGraph

TRAINING = ("steps", "train_seconds", "teacher_seconds", "peak_memory_bytes", "curve")
"""What a stage that trains says of it."""


def run(section: ExportSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes a bundle per input. Returns bytes and parity of each. Raises ParityError if a graph answers otherwise."""
    from tqdm import tqdm

    from compress.data.interactions import Interactions

    data = inputs["data"]
    interactions = Interactions.of(inputs)
    metrics: dict[str, Any] = {}
    for name in tqdm(section.inputs(), desc="export", disable=None):
        folder = workspace.folder / name
        folder.mkdir()
        described = inputs[name] if ITEMS in inputs[name].manifest.files else data  # a refreshed catalogue is its own
        shutil.copyfile(described.path(ITEMS), folder / ITEMS)
        metrics[name] = _export(inputs[name], folder, section, interactions)
    return metrics


def _export(source: Artifact, folder: Path, section: ExportSection, interactions: Interactions) -> dict[str, Any]:
    """One bundle: facts about the model, and how each rewriting of it agrees with the one before."""
    from compress import models
    from compress.methods import linear_rounding
    from compress.methods.rounding import Rounding
    from deploy.flops import polynomial

    family, model = models.load(source.path("model"))
    rounding = Rounding.of(source)
    served = family.serve(model, section.top_k, rounding).eval()
    name = model.config.recommender["family"]
    for file in RANKERS[name].files:
        shutil.copyfile(source.path("model") / file, folder / file)
    if rounding.maps:
        linear_rounding.write(rounding.maps, folder)  # what other targets are lowered from
    description = _write_bundle(served, rounding, folder, name, section)

    agreements = _agreements(family, model, served, rounding, description, folder, interactions)
    return {
        "kind": source.manifest.kind,
        "method": "served graph" + (f", {' and '.join(rounding.parts())} int8" if rounding.parts() else ""),
        "parameters": sum(tensor.numel() for tensor in served.state_dict().values()),
        "layers": _layers(model, served),
        "linear": rounding.linear,
        "rounded_from": rounding.rounded_from,
        "training": {key: source.metrics[key] for key in TRAINING if key in source.metrics} or None,
        "flops": polynomial(served) | {"inputs": {name: list(axes) for name, axes in served.axes.items()}},
        "parity": agreements,
    }


def _agreements(
    family: Family,
    model: PreTrainedModel,
    served: ServedGraph,
    rounding: Rounding,
    description: Bundle,
    folder: Path,
    interactions: Interactions,
) -> dict[str, Any]:
    """How each rewriting answers beside the one before, by what was rewritten. Raises ParityError if one does not."""
    from deploy.lowering import onnxruntime_cpu
    from deploy.recommender import Recommender
    from deploy.runtimes.onnxruntime import OnnxRuntimeCpu
    from deploy.runtimes.torch import TorchEager, TorchServed

    load = partial(Recommender.load, folder)
    eager = load(runtime=TorchEager(family, model, served.top_k, threads=1), rankers=PLAIN)
    rewritten = load(runtime=TorchServed(served))
    standard = load(runtime=OnnxRuntimeCpu(folder / STANDARD, 1))
    targets = {file: load(runtime=OnnxRuntimeCpu(folder / file, 1)) for file in description.targets.values()}
    exact, other, alike = (True, 1.0), (False, parity.OTHER_NUMBERS), (False, parity.SAME_INTEGERS)
    comparisons = [
        ("rewrite", rewritten, eager, exact if rounding.linear in ("none", "static") else other),
        (STANDARD, standard, rewritten, exact),
    ]
    if rounding.linear == "static":  # what that does to answers is seen in PyTorch, a graph has the same integers
        integers = family.serve(model, served.top_k, rounding)
        integers.fake_quantize(onnxruntime_cpu.as_multiplied(rounding, vnni=_vnni()).maps)
        rounded = load(runtime=TorchServed(integers))
        comparisons.append(("rounded", rounded, rewritten, other))
        comparisons += [(file, graph, rounded, alike) for file, graph in targets.items()]
    else:
        how = other if rounding.linear == "dynamic" else exact
        comparisons += [(file, graph, rewritten, how) for file, graph in targets.items()]
    asked, found = parity.requests(interactions, rewritten), {}
    for what, ours, reference, (is_exact, least_overlap) in comparisons:
        agreement = parity.compare(ours.rank, reference.rank, asked)
        parity.check(agreement, f"{folder.name}: {what}", exact=is_exact, least_overlap=least_overlap)
        found[what] = agreement.as_metrics()
    return found


def _vnni() -> bool:
    return hardware().get("vnni") == "true"


def _layers(model: Any, served: ServedGraph) -> dict[str, Any]:
    """What the layers that are served have, heads and neurons of each."""
    from compress.methods import shapes

    found = [shapes.shape(layer) for layer in shapes.encoders(model)[0].encoder.layer]
    return {
        "family": model.config.recommender["family"],
        "uniform": served.uniform,
        "hidden_size": model.config.hidden_size,
        "head_size": shapes.head_size(model),
        "positions": served.max_length,
        "shapes": [[each.heads, each.neurons] for each in found],
        "floats": sorted(served.floats),
    }


def _write_bundle(served: ServedGraph, rounding: Rounding, folder: Path, family: str, section: ExportSection) -> Bundle:
    """The standard graph, a lowered one per target, and their description."""
    from deploy.lowering import LOWERINGS

    write_graph(served, folder / STANDARD)
    targets = {target: f"{target}.onnx" for target in section.targets}
    vnni = _vnni()
    for target, file in targets.items():
        LOWERINGS[target](folder / STANDARD, folder / file, rounding, served.linear_weights, vnni=vnni)
    description = Bundle(
        family=family,
        precision="int8" if rounding.parts() else "fp32",
        catalogue_size=served.catalogue_size,
        pad_id=served.pad_id,
        max_length=served.max_length,
        top_k=served.top_k,
        needs_vnni=vnni and rounding.linear in ("dynamic", "static"),
        targets=targets,
        sha256={file.name: digest(file) for file in sorted(folder.iterdir())},
    )
    description.write(folder)
    return description


def write_graph(served: ServedGraph, path: Path) -> None:
    """The standard graph: `served`, every axis of its inputs dynamic."""
    import logging
    import warnings

    import onnx_ir as ir
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import optimizer

    def is_no_weight(node: ir.Node) -> bool | None:
        """Folding a weight would write an int8 table out as the float32 it stands for, or a matrix a second time."""
        shapes = [value.shape for value in node.inputs if value is not None and value.const_value is not None]
        return False if any(shape is not None and len(shape) > 1 for shape in shapes) else None

    sizes = {name: min(3 + place, served.max_length) for place, name in enumerate(served.axis_names)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            served,
            served.example(sizes),
            dynamo=True,
            input_names=list(served.axes),
            output_names=list(served.outputs),
            dynamic_shapes=tuple(
                {place: name for place, name in enumerate(axes) if isinstance(name, str)}
                for axes in served.axes.values()
            ),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    optimizer.optimize_ir(program.model, should_fold=is_no_weight)
    ClearMetadataAndDocStringPass()(program.model)  # stack traces of this machine, larger than a small model
    ir.save(program.model, path)


if __name__ == "__main__":
    raise SystemExit(main("export"))
