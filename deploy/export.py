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

if TYPE_CHECKING:  # torch is loaded when there is work, not to find out that there is none
    from compress.data.interactions import Interactions
    from compress.models.family import ServedGraph

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
        shutil.copyfile(data.path("items.parquet"), folder / "items.parquet")
        metrics[name] = _export(inputs[name], folder, section, interactions)
    return metrics


def _export(source: Artifact, folder: Path, section: ExportSection, interactions: Interactions) -> dict[str, Any]:
    from compress import models
    from compress.models.family import Rounding
    from deploy import bundle, parity
    from deploy.flops import flops_by_length
    from deploy.lowering import onnxruntime_cpu
    from deploy.runtimes.onnxruntime import OnnxRuntimeCpu
    from deploy.runtimes.torch import TorchEager, TorchServed

    family, model = models.load(source.path("model"))
    rounding = Rounding(**source.metrics.get("rounding", {}))
    served = family.serve(model, section.top_k, rounding).eval()
    standard = folder / bundle.STANDARD
    write_graph(served, standard)
    targets = {}
    for target in section.targets:
        targets[target] = f"{target}.onnx"
        onnxruntime_cpu.lower(
            standard, folder / targets[target], rounding, served.linear_weights, vnni=hardware().get("vnni") == "true"
        )
    description = bundle.Bundle(
        family=model.config.recommender["family"],
        precision="fp32" if rounding == Rounding() else "int8",
        catalogue_size=served.catalogue_size,
        pad_id=served.pad_id,
        max_length=served.max_length,
        top_k=served.top_k,
        targets=targets,
        sha256={file: digest(folder / file) for file in (bundle.STANDARD, bundle.ITEMS, *targets.values())},
    )
    description.write(folder)

    eager = TorchEager(family, model, served.top_k, threads=1)
    step = max(1, interactions.user_count // PARITY_USERS)
    histories = [interactions.history("validation", user) for user in range(0, interactions.user_count, step)]
    facts: dict[str, Any] = {
        "model": {
            "kind": source.manifest.kind,
            "method": "served graph" + (f", {', '.join(rounding.parts())} int8" if rounding.parts() else ""),
            "parameters": sum(parameter.numel() for parameter in served.state_dict().values()),
            "flops": flops_by_length(TorchServed(served), description),
        }
    }
    for file, exact in [(bundle.STANDARD, True), *((file, rounding.linear == "none") for file in targets.values())]:
        agreement = parity.compare(OnnxRuntimeCpu(folder / file, 1), eager, histories, served.max_length, served.pad_id)
        parity.check(agreement, str(folder / file), exact=exact)
        facts[file] = {"size_bytes": (folder / file).stat().st_size, "parity": agreement.as_metrics()}
    return facts


def write_graph(served: ServedGraph, path: Path) -> None:
    """The standard graph, dynamic in batch and lengths: inputs history and exclude, outputs items and scores."""
    import logging
    import warnings

    import torch

    example = torch.zeros(3, min(7, served.max_length), dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            served,
            example,
            path,
            dynamo=True,
            input_names=["history", "exclude"],
            output_names=["items", "scores"],
            dynamic_shapes=({0: "batch", 1: "length"}, {0: "batch", 1: "excluded"}),
            external_data=False,
            verbose=False,
        )


if __name__ == "__main__":
    raise SystemExit(main("export"))
