"""PyTorch and ONNX Runtime on a GPU: what is recorded, padded or moved answers as what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bundle_fakes
import fakes
from compress import models
from compress.artifact import Artifact
from compress.data.interactions import Interactions
from compress.errors import RecPressError
from compress.methods.rounding import Rounding
from compress.models.bert4rec import Bert4Rec
from deploy import parity
from deploy.bundle import STANDARD
from deploy.rankers import PLAIN
from deploy.recommender import Recommender
from deploy.runtimes import Arrays
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu, OnnxRuntimeCuda
from deploy.runtimes.torch import TorchEager
from deploy.runtimes.torch_device import How, TorchDevice

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ITEMS, PAD = 60, 60
WAIT = ("cross_encoder", "two_tower")
"""Their plain models put texts in order of length, and wait for the device to say it."""

NAMES = [name for name in bundle_fakes.MODELS if name != "rounded"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return bundle_fakes.inputs(tmp_path_factory.mktemp("served"))


def served(how: How) -> TorchDevice:
    model = fakes.tiny_model(items=ITEMS, max_length=12)
    return TorchDevice.served(Bert4Rec().serve(model, 10, Rounding()), how)


def calls() -> list[Arrays]:
    """Of shapes that come again with other contents."""
    random = np.random.default_rng(0)
    shapes = ((1, 3, 2), (4, 12, 5), (1, 3, 0), (1, 3, 2), (64, 9, 4))
    return [
        {"history": random.integers(0, ITEMS, (rows, length)), "exclude": random.integers(0, ITEMS, (rows, excluded))}
        for rows, length, excluded in shapes
    ]


def assert_alike(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...], error: float) -> None:
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=error)


@pytest.mark.parametrize("how", [How(), How(recorded=True), How(compiled=True), How(compiled=True, recorded=True)])
def test_what_is_recorded_or_compiled_answers_as_on_the_cpu(how: How) -> None:
    model = fakes.tiny_model(items=ITEMS, max_length=12)
    there = served(how)
    here = TorchDevice.served(Bert4Rec().serve(model, 10, Rounding()), How(), "cpu")
    for call in calls() * 2:
        assert_alike(there(call), here(call), 1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_replay_is_what_is_enqueued(precision: str) -> None:
    replayed, enqueued = served(How(precision, recorded=True)), served(How(precision))
    for call in calls() * 2:
        for ours, theirs in zip(replayed(call), enqueued(call), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_padded_history_is_answered_as_alone(recorded: bool) -> None:
    runtime = served(How(recorded=recorded))
    for call in calls():
        padding = np.full((len(call["history"]), 12 - call["history"].shape[1]), PAD)
        padded = {"history": np.hstack([padding, call["history"]]), "exclude": np.hstack([padding, call["exclude"]])}
        assert_alike(runtime(padded), runtime(call), 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [How(), How("tf32"), How("fp16"), How("bf16"), How("fp16", recorded=True)])
def test_a_plain_model_answers_as_in_eager_pytorch(inputs: dict[str, Artifact], name: str, how: How) -> None:
    folder = inputs["served"].path(name)
    family, model = models.load(inputs["served"].folder.parent / name / "model")
    there, here = TorchDevice.plain(family, model, 10, how), TorchEager(family, model, 10, 1)
    ours, theirs = (Recommender.load(folder, runtime=runtime, rankers=PLAIN) for runtime in (there, here))
    requests = parity.requests(Interactions.of(inputs), theirs)
    if how.recorded and name in WAIT:
        with pytest.raises(RecPressError, match="cannot be recorded as a CUDA graph"):
            ours.rank(requests)
        return
    found = parity.compare(ours.rank, theirs.rank, requests)
    assert found.overlap >= {"fp32": 0.99, "tf32": 0.9, "fp16": 0.9, "bf16": 0.8}[how.precision]


@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_few_bits_take_less_memory_on_the_gpu(how: str) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    model = fakes.tiny_model(items=ITEMS, hidden_size=64, intermediate_size=256)
    half, ours = (TorchDevice.plain(Bert4Rec(), model, 10, How(each)) for each in ("fp16", how))
    assert ours.weights_bytes < 0.75 * half.weights_bytes
    call = {"history": calls()[1]["history"][:, :8], "exclude": calls()[1]["exclude"]}
    shared = [len({*mine} & {*theirs}) / 10 for mine, theirs in zip(ours(call)[0], half(call)[0], strict=True)]
    assert np.mean(shared) >= 0.5


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_answers_on_the_gpu_as_on_the_cpu(inputs: dict[str, Artifact], name: str) -> None:
    folder: Path = inputs["served"].path(name)
    try:
        runtime = OnnxRuntimeCuda(folder / STANDARD)
    except RecPressError as error:
        pytest.skip(str(error))
    ours = Recommender.load(folder, runtime=runtime)
    standard = Recommender.load(folder, runtime=OnnxRuntimeCpu(folder / STANDARD, 1))
    found = parity.compare(ours.rank, standard.rank, parity.requests(Interactions.of(inputs), standard))
    assert found.same_top_k >= 0.95
    assert found.overlap >= 0.99


def test_the_device_alone_takes_less_than_the_whole_call() -> None:
    from deploy.clock import once

    runtime = served(How(recorded=True))
    call = calls()[1]
    runtime(call)
    whole = np.median([once(lambda: runtime(call))[0] for _ in range(50)])
    assert 0 < min(runtime.device_ms(call) for _ in range(5)) < whole
