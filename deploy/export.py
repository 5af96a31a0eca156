"""Writes each model as a bundle: one served ONNX graph in standard operators, lowered per target, held to PyTorch.

`python -m deploy.export recipe.yaml`
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact, digest
from compress.command import main
from compress.provenance import hardware
from compress.recipe.serving import ExportSection
from compress.stage import Workspace
from deploy import parity
from deploy.bundle import ITEMS, STANDARD, Bundle

if TYPE_CHECKING:  # torch is loaded when there is work, not to find out that there is none
    from compress.data.interactions import Interactions
    from compress.methods.rounding import Rounding
    from compress.models.family import ServedGraph
    from deploy.runtimes import Runtime

PARITY_USERS = 64


def run(section: ExportSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes a bundle per input. Returns bytes and parity of each. Raises ParityError if a graph answers otherwise."""
    from tqdm import tqdm

    from compress.data.interactions import Interactions

    data = inputs["data"]
    interactions = Interactions.load(data.folder)
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
    from compress.methods.rounding import Rounding
    from deploy.flops import flops_by_length
    from deploy.runtimes.onnxruntime import OnnxRuntimeCpu
    from deploy.runtimes.torch import TorchEager, TorchServed

    family, model = models.load(source.path("model"))
    rounding = Rounding(**source.metrics.get("rounding", {}))
    served = family.serve(model, section.top_k, rounding).eval()
    description = _write_bundle(served, rounding, folder, model.config.recommender["family"], section)

    eager, rewritten = TorchEager(family, model, served.top_k, threads=1), TorchServed(served)
    users = interactions.users("validation")
    histories = [interactions.history("validation", user) for user in users[:: max(1, len(users) // PARITY_USERS)]]
    comparisons: list[tuple[str, Runtime, Runtime, bool]] = [("rewrite", rewritten, eager, rounding.linear == "none")]
    for file in (STANDARD, *description.targets.values()):
        exact = file == STANDARD or rounding.linear != "dynamic"
        comparisons.append((file, OnnxRuntimeCpu(folder / file, 1), rewritten, exact))
    agreements = {}
    for what, ours, reference, exact in comparisons:
        agreement = parity.compare(ours, reference, histories, served.max_length, served.pad_id)
        parity.check(agreement, f"{folder.name}: {what}", exact=exact)
        agreements[what] = agreement.as_metrics()
    return {
        "kind": source.manifest.kind,
        "method": "served graph" + (f", {' and '.join(rounding.parts())} int8" if rounding.parts() else ""),
        "parameters": sum(tensor.numel() for tensor in served.state_dict().values()),
        "flops": flops_by_length(rewritten, description),
        "parity": agreements,
    }


def _write_bundle(served: ServedGraph, rounding: Rounding, folder: Path, family: str, section: ExportSection) -> Bundle:
    """The standard graph, a lowered one per target, and their description."""
    from deploy.lowering import LOWERINGS

    write_graph(served, folder / STANDARD)
    targets = {target: f"{target}.onnx" for target in section.targets}
    vnni = hardware().get("vnni") == "true"
    for target, file in targets.items():
        LOWERINGS[target](folder / STANDARD, folder / file, rounding, served.linear_weights, vnni=vnni)
    description = Bundle(
        family=family,
        precision="int8" if rounding.parts() else "fp32",
        catalogue_size=served.catalogue_size,
        pad_id=served.pad_id,
        max_length=served.max_length,
        top_k=served.top_k,
        needs_vnni=vnni and rounding.linear == "dynamic",
        targets=targets,
        sha256={file: digest(folder / file) for file in (STANDARD, ITEMS, *targets.values())},
    )
    description.write(folder)
    return description


def write_graph(served: ServedGraph, path: Path) -> None:
    """The standard graph, dynamic in batch and lengths: inputs history and exclude, outputs items and scores."""
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

    example = torch.zeros(3, min(7, served.max_length), dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            served,
            example,
            dynamo=True,
            input_names=["history", "exclude"],
            output_names=["items", "scores"],
            dynamic_shapes=({0: "batch", 1: "length"}, {0: "batch", 1: "excluded"}),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    optimizer.optimize_ir(program.model, should_fold=is_no_weight)
    ClearMetadataAndDocStringPass()(program.model)  # stack traces of this machine, larger than a small model
    ir.save(program.model, path)


if __name__ == "__main__":
    raise SystemExit(main("export"))
