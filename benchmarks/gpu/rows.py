"""What is measured on a GPU: each model in each runtime and precision, as people would run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress import models
from compress.artifact import Artifact
from compress.methods.linear_rounding import QUANTIZATION
from compress.methods.rounding import Rounding
from compress.recipe.judging import MeasureSection
from compress.recipe.serving import BuildSection, QuantizeSection
from compress.stage import Stage, Workspace, lineage
from deploy import bundle
from deploy.bundle import STANDARD
from deploy.runtimes import DeviceRuntime
from deploy.runtimes.torch_device import How, TorchDevice

PLAIN = (How(), How("tf32"), How("fp16"), How("bf16"), How("fp16", compiled=True, recorded=True))
"""Of the teacher, SDPA in all; the first is what everything is held to, the last the best that needs no other model."""

FEW_BITS = (How("int8"), How("nf4"))
"""Of the teacher in bitsandbytes."""

SERVED = (How(recorded=True), How("fp16", recorded=True), How("fp16", compiled=True, recorded=True))

HALVES, INTEGERS = ("fp16", "bf16"), ("int8", "fp8")
"""Precisions of engines: of any weights, and of those with static scales as well."""


def nothing() -> None:
    """What most rows need before their start."""


@dataclass(frozen=True)
class Row:
    """A model in a runtime."""

    model: str
    weights_of: str
    """The stage that trained them: a model and the same in int8 share it."""
    bundle: str
    """What was exported of it; of a model that was not, what was of its weights."""
    runtime: str
    precision: str
    how: str
    load: Callable[[], DeviceRuntime]
    """As a server that starts. Raises: where this machine lacks what it needs, in one line if it is foreseen."""
    prepare: Callable[[], Any] = nothing
    """Once, before servers start: an engine is built."""
    plain: bool = False
    """Asked as people ask the Hugging Face model, not as the served graph."""

    @property
    def name(self) -> str:
        return f"{self.model} · {self.runtime} {self.precision} · {self.how}"

    def facts(self) -> dict[str, str]:
        keys = ("name", "model", "weights_of", "runtime", "precision", "how")
        return {key: getattr(self, key) for key in keys}


def rows_of(
    measure: Stage, inputs: Mapping[str, Artifact], device: str, batches: Sequence[int], scratch: Path
) -> Iterator[Row]:
    """The teacher in eager float32 first.

    Args:
        inputs: of the measure stage.
        batches: sizes that engines must take.
        scratch: where engines and lowered graphs may lie until the end.

    """
    section = measure.section
    assert isinstance(section, MeasureSection), "found by its section"
    made = {stage.name: stage for stage in lineage(measure)}
    teacher = section.teacher
    names = list(dict.fromkeys([teacher, *section.candidates]))
    trained = {name: _trained(made[name]).name for name in names}
    bundles = {weights: weights if weights in names else name for name, weights in reversed(trained.items())}
    floating = {name: bundles[name] for name in dict.fromkeys(trained.values())}
    paths = {name: inputs[section.export].path(name) for name in names}
    for how in (*PLAIN, *FEW_BITS):
        load = partial(_plain, made[teacher].folder / "model", paths[teacher], how, device)
        yield Row(teacher, teacher, teacher, "torch", how.precision, f"plain, {how}", load, plain=True)
    for name, exported in floating.items():
        for how in SERVED:
            load = partial(_served, made[name].folder / "model", paths[exported], how, device)
            yield Row(name, name, exported, "torch", how.precision, f"served graph, {how}", load)
    for name in names:
        load = partial(_onnxruntime, paths[name] / STANDARD)
        yield Row(name, trained[name], name, "onnxruntime", "fp32", "IO binding", load)
    for weights, name in floating.items():
        graph = scratch / f"{name}-fp16.onnx"
        lower = partial(_lower, paths[name] / STANDARD, graph)
        yield Row(name, weights, name, "onnxruntime", "fp16", "IO binding", partial(_onnxruntime, graph), lower)
    for name in names:
        for precision in (
            *(HALVES if name in floating.values() else ()),
            *(INTEGERS if _is_static(paths[name]) else ()),
        ):
            said = _build_section(section.export, name, precision, batches)
            if said is not None:
                folder = scratch / f"{name}-{precision}"
                build, load = partial(_build, said, inputs, folder), partial(_engine, folder / name, precision)
                yield Row(name, trained[name], name, "tensorrt", precision, "CUDA graphs", load, build)


def _trained(stage: Stage) -> Stage:
    """The stage that a quantized model's weights come from; of another, itself."""
    return _trained(stage.inputs[stage.section.input]) if isinstance(stage.section, QuantizeSection) else stage


def _is_static(exported: Path) -> bool:
    """Whether a bundle's products have the scales that an engine of integers needs, whatever stage they come from."""
    return (exported / QUANTIZATION).exists()


def _plain(checkpoint: Path, exported: Path, how: How, device: str) -> DeviceRuntime:
    family, model = models.load(checkpoint)
    return TorchDevice.plain(family, model, bundle.read(exported).top_k, how, device)


def _served(checkpoint: Path, exported: Path, how: How, device: str) -> DeviceRuntime:
    family, model = models.load(checkpoint)
    return TorchDevice.served(family.serve(model, bundle.read(exported).top_k, Rounding()), how, device)


def _onnxruntime(graph: Path) -> DeviceRuntime:
    from deploy.runtimes.onnxruntime import OnnxRuntimeCuda

    return OnnxRuntimeCuda(graph)


def _lower(graph: Path, lowered: Path) -> None:
    """To half precision, in ONNX's own operators: what TensorRT reads, ONNX Runtime reads as well."""
    from deploy.lowering import tensorrt

    tensorrt.lower(graph, lowered, "fp16")


def _build_section(export: str, name: str, precision: str, batches: Sequence[int]) -> BuildSection | None:
    """An engine for the GPU that is here; None of a precision that none is built in."""
    sizes = sorted(batches)
    said = {"kind": "build", "input": export, "models": [name], "precisions": [precision]}
    try:
        return BuildSection.model_validate(said | {"batch_sizes": [1, sizes[len(sizes) // 2], sizes[-1]]})
    except ValidationError:
        return None


def _build(section: BuildSection, inputs: Mapping[str, Artifact], folder: Path) -> None:
    from deploy import build

    folder.mkdir()
    build.run(section, inputs, Workspace(folder, seed=0))


def _engine(folder: Path, precision: str) -> DeviceRuntime:
    from deploy.runtimes.tensorrt import TensorRtEngine

    return TensorRtEngine(folder, precision)
