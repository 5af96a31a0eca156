"""Regressions in speed, for `make bench`; a report takes its numbers from `measure`, which interleaves variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.methods.rounding import Rounding
from compress.models import FAMILIES
from compress.recipe.model import Bert4RecModel
from deploy.export import write_graph
from deploy.lowering import LOWERINGS
from deploy.runtimes import Arrays, Runtime
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu
from deploy.runtimes.torch import TorchEager

ITEMS = 4_000
FP32, WEIGHTS, PRODUCTS = Rounding(), Rounding("weights", "int8-per-row"), Rounding("dynamic", "int8-per-row")


def student() -> tuple[Any, Any]:
    torch.manual_seed(0)
    section = Bert4RecModel(family="bert4rec", hidden_size=64, num_hidden_layers=1)
    family = FAMILIES["bert4rec"]
    return family, family.build(section, ITEMS).eval()


def served(rounding: Rounding, folder: Path) -> Runtime:
    family, model = student()
    graph = family.serve(model, 10, rounding).eval()
    write_graph(graph, folder / "model.onnx")
    lower = LOWERINGS["onnxruntime-cpu"]
    lower(folder / "model.onnx", folder / "cpu.onnx", rounding, graph.linear_weights, vnni=False)
    return OnnxRuntimeCpu(folder / "cpu.onnx", threads=1)


def requests(batch: int) -> Arrays:
    history = np.random.default_rng(0).integers(ITEMS, size=(batch, 100))
    return {"history": history, "exclude": history}


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("rounding", [FP32, WEIGHTS, PRODUCTS], ids=["fp32", "weights8", "int8"])
def test_served_student(benchmark: Any, tmp_path: Path, rounding: Rounding, batch: int) -> None:
    runtime = served(rounding, tmp_path)
    items, _ = benchmark(runtime, requests(batch))
    assert items.shape == (batch, 10)


@pytest.mark.parametrize("batch", [1, 32])
def test_eager_student(benchmark: Any, batch: int) -> None:
    runtime = TorchEager(*student(), top_k=10, threads=1)
    items, _ = benchmark(runtime, requests(batch))
    assert items.shape == (batch, 10)
