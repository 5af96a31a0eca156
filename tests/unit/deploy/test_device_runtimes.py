"""Runtimes of a device answer alike, whatever executes them; here the device is the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bundle_fakes
from compress import models
from compress.artifact import Artifact
from compress.data.interactions import Interactions
from compress.errors import RecPressError
from compress.methods.rounding import Rounding
from deploy import parity
from deploy.bundle import STANDARD
from deploy.rankers import PLAIN
from deploy.recommender import Recommender
from deploy.runtimes import Arrays, DeviceRuntime
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu, OnnxRuntimeCuda
from deploy.runtimes.torch import TorchEager
from deploy.runtimes.torch_device import How, TorchDevice

NAMES = [name for name in bundle_fakes.MODELS if name != "rounded"]

Made = dict[str, Artifact]


class OnCpu(OnnxRuntimeCuda):
    """The same calls where the provider is one that every ONNX Runtime has."""

    provider = "CPUExecutionProvider"
    options: Mapping[str, str] = {}
    memory = "cpu"


def bundle_of(made: Made, name: str) -> Path:
    return made["served"].path(name)


def checkpoint(made: Made, name: str) -> tuple[Any, Any]:
    return models.load(made["served"].folder.parent / name / "model")


def served(how: How) -> Callable[[Made, str], DeviceRuntime]:
    def load(made: Made, name: str) -> DeviceRuntime:
        family, model = checkpoint(made, name)
        return TorchDevice.served(family.serve(model, 10, Rounding()), how, "cpu")

    return load


def plain(how: How) -> Callable[[Made, str], DeviceRuntime]:
    return lambda made, name: TorchDevice.plain(*checkpoint(made, name), 10, how, "cpu")


def onnxruntime(made: Made, name: str) -> DeviceRuntime:
    return OnCpu(bundle_of(made, name) / STANDARD)


SERVED = {
    "fp32": (served(How()), 1.0),
    "fp32 recorded": (served(How(recorded=True)), 1.0),
    "tf32": (served(How("tf32")), 1.0),
    "fp16": (served(How("fp16", recorded=True)), 0.97),
    "bf16": (served(How("bf16")), 0.8),
    "onnxruntime": (onnxruntime, 1.0),
}
"""How a served graph runs, and how much of the top 10 that of the standard graph must at least share."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", SERVED)
def test_a_served_graph_answers_as_the_standard_one(built_from: Made, name: str, how: str) -> None:
    load, least = SERVED[how]
    folder = bundle_of(built_from, name)
    ours = Recommender.load(folder, runtime=load(built_from, name))
    standard = Recommender.load(folder, runtime=OnnxRuntimeCpu(folder / STANDARD, 1))
    found = parity.compare(ours.rank, standard.rank, parity.requests(Interactions.of(built_from), standard))
    assert found.overlap >= least
    if least == 1.0:
        assert found.same_top_k == 1
        assert found.max_score_error < 1e-4
    else:
        assert found.max_score_error > 0, "nothing was rounded"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "least"), [("fp32", 1.0), ("fp16", 0.9), ("bf16", 0.8)])
def test_a_plain_model_answers_as_in_eager_pytorch(built_from: Made, name: str, precision: str, least: float) -> None:
    folder = bundle_of(built_from, name)
    runtimes = plain(How(precision, recorded=True))(built_from, name), TorchEager(*checkpoint(built_from, name), 10, 1)
    ours, eager = (Recommender.load(folder, runtime=runtime, rankers=PLAIN) for runtime in runtimes)
    found = parity.compare(ours.rank, eager.rank, parity.requests(Interactions.of(built_from), eager))
    assert found.overlap >= least
    assert (found.max_score_error < 1e-4) == (precision == "fp32")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize(("precision", "least"), [("int8", 0.9), ("nf4", 0.5)])
def test_a_model_in_few_bits_is_smaller_and_nearly_the_same(tmp_path: Path, precision: str, least: float) -> None:
    import fakes
    from compress.models.bert4rec import Bert4Rec

    model = fakes.tiny_model(items=60, hidden_size=64, num_attention_heads=2, intermediate_size=256)
    half, ours = (TorchDevice.plain(Bert4Rec(), model, 10, How(how), "cpu") for how in ("fp16", precision))
    call = calls()[1]
    shared = [len({*ours} & {*theirs}) / 10 for ours, theirs in zip(ours(call)[0], half(call)[0], strict=True)]
    assert np.mean(shared) >= least
    assert ours.weights_bytes < 0.75 * half.weights_bytes


def calls() -> list[Arrays]:
    """Of a bert4rec of 60 items, two of them of one shape, one with nothing excluded."""
    random = np.random.default_rng(0)
    shapes = ((1, 3, 2), (4, 8, 5), (1, 3, 2), (2, 5, 0))
    return [
        {"history": random.integers(0, 60, (rows, length)), "exclude": random.integers(0, 60, (rows, excluded))}
        for rows, length, excluded in shapes
    ]


@pytest.mark.parametrize("how", SERVED)
def test_a_shape_that_comes_again_is_answered_anew(built_from: Made, how: str) -> None:
    """From what is kept for the shape; what was returned before stays as it was."""
    kept, fresh = (SERVED[how][0](built_from, "bert4rec") for _ in range(2))
    first = [kept(call) for call in calls()]
    expected = [[array.copy() for array in answer] for answer in first]
    assert not np.array_equal(first[0][0], first[2][0]), "two different calls of one shape"
    for call, answer in zip(reversed(calls()), reversed(expected), strict=True):
        for ours, alone in zip(kept(call), fresh(call), strict=True):
            np.testing.assert_array_equal(ours, alone)
        np.testing.assert_array_equal(kept(call)[0], answer[0])
    for answer, copy in zip(first, expected, strict=True):
        np.testing.assert_array_equal(answer[1], copy[1])


def test_buffers_are_kept_for_a_shape_and_the_oldest_go(built_from: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.runtimes.torch_device.SHAPES", 2)
    runtime = served(How(recorded=True))(built_from, "bert4rec")
    assert isinstance(runtime, TorchDevice)
    for call in calls()[:3]:
        runtime(call)
    assert len(runtime._recorded) == 2
    before = {shape: recorded.sent["history"].data_ptr() for shape, recorded in runtime._recorded.items()}
    runtime(calls()[0])
    assert {shape: each.sent["history"].data_ptr() for shape, each in runtime._recorded.items()} == before
    runtime(calls()[3])
    shapes = [recorded.sent["history"].shape for recorded in runtime._recorded.values()]
    assert shapes == [(1, 3), (2, 5)], "the shape used last stays"


def test_a_compiled_graph_answers_as_itself(built_from: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced for all shapes, and executed as traced: what a compiler makes of it is its own business."""
    compiled = torch.compile
    traced: list[bool] = []

    def compile_eagerly(forward: Any, *, dynamic: bool) -> Any:
        traced.append(dynamic)
        return compiled(forward, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    ours = served(How(compiled=True, recorded=True))(built_from, "bert4rec")
    monkeypatch.undo()
    eager = served(How())(built_from, "bert4rec")
    for call in calls():
        for mine, theirs in zip(ours(call), eager(call), strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert traced == [True]


@pytest.mark.parametrize("how", SERVED)
def test_time_on_the_device_is_a_part_of_the_call(built_from: Made, how: str) -> None:
    runtime = SERVED[how][0](built_from, "bert4rec")
    few, many = calls()[0], {name: np.tile(array, (512, 1)) for name, array in calls()[0].items()}
    least = {len(call["history"]): min(runtime.device_ms(call, 5) for _ in range(3)) for call in (few, many)}
    assert 0 < least[1] < least[512]
    assert runtime.weights_bytes > 1000


@pytest.mark.parametrize("make", [served, plain])
def test_an_unknown_precision_is_one_line(built_from: Made, make: Any) -> None:
    with pytest.raises(RecPressError) as raised:
        make(How("fp13"))(built_from, "bert4rec")
    assert str(raised.value).startswith("precision fp13: PyTorch runs this in fp32, tf32, fp16, bf16")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(built_from: Made) -> None:
    family, model = checkpoint(built_from, "bert4rec")
    for make in (
        lambda: TorchDevice.plain(family, model, 10, How()),
        lambda: TorchDevice.served(family.serve(model, 10, Rounding()), How()),
    ):
        with pytest.raises(RecPressError, match=r"^PyTorch sees no GPU here; a CUDA build of torch"):
            make()


def test_an_onnx_runtime_without_cuda_is_one_line_with_the_remedy(built_from: Made) -> None:
    import onnxruntime

    if OnnxRuntimeCuda.provider in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(RecPressError, match=r"no CUDAExecutionProvider: .*pip install onnxruntime-gpu$"):
        OnnxRuntimeCuda(bundle_of(built_from, "bert4rec") / STANDARD)
