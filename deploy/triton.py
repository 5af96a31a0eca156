"""A model repository for NVIDIA's Triton Inference Server, of exported bundles and the engines built of them.

A repository holds graphs alone: ids and tokens in, ids and scores out. What a request needs before and after, the id
map, tokenisation, candidates, the popular items for whom nothing is known, is the bundle's and stays in one place,
`Recommender`, which asks Triton through `deploy.runtimes.triton`. As a Python backend it would be a second copy of this
package in Triton's image, and every tensor would be copied once more between processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.artifact import digest
from compress.errors import ArtifactError, RecipeError
from compress.recipe.serving import BuildSection
from deploy import bundle, engine
from deploy.bundle import STANDARD
from deploy.runtimes import Arrays
from deploy.runtimes.triton import STANDARD_SHA256

CONFIG = "config.pbtxt"
WARM_UP = "warmup"
"""The folder that Triton looks for warm-up data in."""

TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}


class Word(str):
    """A value that stands without quotes: an enum's."""


@dataclass(frozen=True)
class Served:
    """The files that a Triton model is, and how they are run."""

    backend: str
    files: Mapping[str, Path]
    """By the name in the version's folder."""
    by_capability: Mapping[str, str]
    """Which of them a GPU runs, of engines."""
    device: Word
    graph: Path
    """ONNX, with the inputs and outputs of the files."""
    profiles: int = 0
    """Of an engine."""


def write(folder: Path, source: Path, section: BuildSection, engines: Path | None, calls: Sequence[Arrays]) -> None:
    """Writes one model: `config.pbtxt`, `1/` and `warmup/`.

    Args:
        folder: of the model; its name is the model's.
        source: the bundle.
        engines: the folder of the model's engines, if there are any.
        calls: of real requests, one user each, that Triton warms up with.
    Raises: RecipeError if the folder is there already; ArtifactError if the engines are of another bundle.

    """
    if folder.exists():
        raise RecipeError(f"{folder} is there already: remove it, or give --triton another folder")
    served = _engines(source, section, engines) or _graph(source, section)
    (folder / "1").mkdir(parents=True)
    for name, path in served.files.items():
        shutil.copyfile(path, folder / "1" / name)
    (folder / WARM_UP).mkdir()
    config = _config(folder, source, served, section, calls)
    (folder / CONFIG).write_text("".join(_lines(config)), encoding="utf-8")


def _graph(source: Path, section: BuildSection) -> Served:
    """ONNX Runtime with the graph that was lowered for a processor, or with the standard one on a GPU."""
    on_gpu = section.triton.device == "gpu"
    graph = source / (STANDARD if on_gpu else bundle.read(source).targets["onnxruntime-cpu"])
    return Served("onnxruntime", {"model.onnx": graph}, {}, Word("KIND_GPU" if on_gpu else "KIND_CPU"), graph)


def _engines(source: Path, section: BuildSection, folder: Path | None) -> Served | None:
    """Engines in the first precision, if they are TensorRT's: Triton does not run those of TensorRT-RTX."""
    if folder is None or section.triton.device != "gpu":
        return None
    described = engine.read(folder)
    if described.standard_sha256 != digest(source / STANDARD):
        raise ArtifactError(f"{folder}: engines of another {STANDARD} than {source} has; run the build stage again")
    found = [
        each for each in described.engines if each.builder == "tensorrt" and each.precision == section.precisions[0]
    ]
    if not found:
        return None
    for each in found:
        engine.content(folder, each)
    files = {each.file: folder / each.file for each in found}
    return Served(
        "tensorrt",
        files,
        {each.compute_capability: each.file for each in found},
        Word("KIND_GPU"),
        engine.graph(folder, found[0]),
        min(len(each.profiles) for each in found),
    )


def _config(
    folder: Path, source: Path, served: Served, section: BuildSection, calls: Sequence[Arrays]
) -> dict[str, Any]:
    inputs, outputs = _signature(served.graph)
    # Only what lies side by side along the first axis of all can be put together with other requests.
    is_batched = all(axes[0] == "batch" for _, axes in [*inputs.values(), *outputs.values()])
    skipped = 1 if is_batched else 0
    _, usual, most = section.batch_sizes
    instances: dict[str, Any] = {"count": section.triton.instances, "kind": served.device}
    config: dict[str, Any] = {
        "name": folder.name,
        "backend": served.backend,
        "max_batch_size": most if is_batched else 0,
        "input": [_tensor(name, said, skipped) for name, said in inputs.items()],
        "output": [_tensor(name, said, skipped) for name, said in outputs.items()],
        "instance_group": [instances | {"profile": [str(place) for place in range(served.profiles)]}],
    }
    if is_batched:
        preferred = sorted({usual, most})
        delay = section.triton.max_queue_delay_us
        config["dynamic_batching"] = {"preferred_batch_size": preferred, "max_queue_delay_microseconds": delay}
    if served.by_capability:
        config["default_model_filename"] = next(iter(served.files))
        config["cc_model_filenames"] = [{"key": key, "value": file} for key, file in served.by_capability.items()]
    config["model_warmup"] = [
        _warm_up(folder, f"request-{place}", call, inputs, skipped) for place, call in enumerate(calls)
    ]
    facts = {f"sha256:{name}": digest(folder / "1" / name) for name in served.files}
    facts |= {STANDARD_SHA256: digest(source / STANDARD)}
    if served.backend == "onnxruntime" and served.device == "KIND_CPU":
        facts |= {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}  # instances are what runs side by side
    config["parameters"] = [{"key": key, "value": {"string_value": value}} for key, value in facts.items()]
    return config


Signature = Mapping[str, tuple[str, list[str | int]]]
"""By name: the element type as numpy names it, and the axes' names or sizes."""


def _signature(graph: Path) -> tuple[Signature, Signature]:
    import onnx

    def of(values: Iterable[Any]) -> Signature:
        return {
            value.name: (
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
            )
            for value in values
        }

    said = onnx.load(graph).graph
    return of(said.input), of(said.output)


def _tensor(name: str, said: tuple[str, list[str | int]], skipped: int) -> dict[str, Any]:
    dtype, axes = said
    dims = [axis if isinstance(axis, int) else -1 for axis in axes[skipped:]]
    return {"name": name, "data_type": Word(TYPES[dtype]), "dims": dims}


def _warm_up(folder: Path, name: str, call: Arrays, inputs: Signature, skipped: int) -> dict[str, Any]:
    """A real request in files: random ids would lie outside of the tables that they look up."""
    told = []
    for key, array in call.items():
        file = f"{name}-{key}"
        (folder / WARM_UP / file).write_bytes(np.ascontiguousarray(array).tobytes())
        data_type, dims = Word(TYPES[inputs[key][0]]), list(array.shape[skipped:])
        told.append({"key": key, "value": {"data_type": data_type, "dims": dims, "input_data_file": file}})
    return {"name": name, "batch_size": 1, "inputs": told}


def _lines(message: Mapping[str, Any], indent: str = "") -> Iterable[str]:
    """Protocol buffers' text format; a list of messages, a map among them, is its field again and again."""
    for key, value in message.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                yield f"{indent}{key} {{\n"
                yield from _lines(each, f"{indent}  ")
                yield f"{indent}}}\n"
            else:
                quoted = f'"{each}"' if isinstance(each, str) and not isinstance(each, Word) else each
                yield f"{indent}{key}: {quoted}\n"
