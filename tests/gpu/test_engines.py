"""Engines answer as ONNX Runtime does, on a GPU and with a package that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bundle_fakes
from compress.artifact import Artifact
from compress.data.histories import MASKED
from compress.data.interactions import Interactions
from compress.errors import ArtifactError, RecipeError, RecPressError
from compress.recipe.serving import BuildSection
from compress.stage import Workspace
from deploy import build, parity
from deploy.bundle import STANDARD
from deploy.lowering import rounded
from deploy.recommender import Recommender
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu
from deploy.runtimes.tensorrt import TensorRtEngine
from deploy.runtimes.tensorrt_api import choose

pytestmark = pytest.mark.gpu

PRECISIONS = ("fp16", "fp32")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    here = build.device_capability()
    if here is None:
        pytest.skip("no CUDA device")
    try:
        choose("auto", [here], here, "engines")
    except RecipeError as error:
        pytest.skip(str(error))
    return bundle_fakes.inputs(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def engines(inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per model, built for the GPU that is here."""
    folder = tmp_path_factory.mktemp("made") / "engines"
    folder.mkdir()
    said = {"kind": "build", "input": "served", "precisions": PRECISIONS}
    build.run(BuildSection.model_validate(said), inputs, Workspace(folder, seed=0))
    return folder


@pytest.mark.parametrize("name", bundle_fakes.MODELS)
@pytest.mark.parametrize(("precision", "same", "error"), [("fp32", 1.0, 1e-3), ("fp16", 0.0, 0.06)])
def test_an_engine_answers_as_onnx_runtime(
    inputs: dict[str, Artifact], engines: Path, name: str, precision: str, same: float, error: float
) -> None:
    source = inputs["served"].path(name)
    ours = Recommender.load(source, runtime=TensorRtEngine(engines / name, precision))
    standard = Recommender.load(source, runtime=OnnxRuntimeCpu(source / STANDARD, 1))
    requests = parity.requests(Interactions.of(inputs), standard)
    found = parity.compare(ours.rank, standard.rank, requests)
    assert found.overlap >= 0.97
    assert found.same_top_k >= same
    assert found.max_score_error < error


@pytest.mark.parametrize("name", bundle_fakes.STATIC)
def test_integers_on_a_gpu_are_those_that_were_lowered(inputs: dict[str, Artifact], tmp_path: Path, name: str) -> None:
    """With several profiles: which of them a call takes changes no answer. Random weights rank closely."""
    (tmp_path / "int8").mkdir()
    said = {"kind": "build", "input": "served", "models": [name], "precisions": ["int8"], "buckets": 2}
    build.run(BuildSection.model_validate(said), inputs, Workspace(tmp_path / "int8", seed=0))
    source, folder = inputs["served"].folder / name, tmp_path / "int8" / name
    rounded.write(folder / "int8.onnx", tmp_path / "twin.onnx")
    ours = Recommender.load(source, runtime=TensorRtEngine(folder, "int8"))
    lowered, floats = (
        Recommender.load(source, runtime=OnnxRuntimeCpu(graph, 1))
        for graph in (tmp_path / "twin.onnx", source / STANDARD)
    )
    requests = parity.requests(Interactions.of(inputs), floats)
    found = parity.compare(ours.rank, lowered.rank, requests)
    noise = parity.compare(lowered.rank, floats.rank, requests)
    assert found.overlap >= 0.7
    assert found.max_score_error <= 2 * noise.max_score_error


def test_a_shape_that_comes_again_is_answered_again(inputs: dict[str, Artifact], engines: Path) -> None:
    """From buffers and a CUDA graph that other shapes have been between."""
    runtime = TensorRtEngine(engines / "bert4rec")
    random = np.random.default_rng(0)
    calls = [
        {"history": random.integers(0, 50, (rows, length)), "exclude": random.integers(0, 50, (rows, excluded))}
        for rows, length, excluded in ((1, 3, 2), (4, 12, 5), (1, 3, 0), (1, 3, 2))
    ]
    first = [runtime(call) for call in calls]
    for call, (items, scores) in zip([*calls, *calls], [*first, *first], strict=True):
        again = runtime(call)
        np.testing.assert_array_equal(again[0], items)
        np.testing.assert_array_equal(again[1], scores)
    assert (first[0][1] > MASKED).all()


def calls() -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {"history": random.integers(0, 50, (rows, length)), "exclude": random.integers(0, 50, (rows, excluded))}
        for rows, length, excluded in ((1, 3, 2), (4, 12, 5), (1, 3, 0), (32, 7, 9))
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_replay_is_what_is_enqueued(engines: Path, precision: str) -> None:
    runtime = TensorRtEngine(engines / "bert4rec", precision)
    replayed = [runtime(call) for call in calls()]
    if runtime.replayed is None:
        pytest.skip("TensorRT-RTX records by itself")
    assert runtime.replayed
    for each in runtime._calls.values():
        each.graph = None
    for call, answer in zip(calls(), replayed, strict=True):
        for ours, theirs in zip(runtime(call), answer, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert runtime.replayed is False


def test_a_padded_history_is_answered_as_alone(engines: Path) -> None:
    runtime, pad = TensorRtEngine(engines / "bert4rec", "fp32"), bundle_fakes.ITEMS
    for call in calls():
        padding = np.full((len(call["history"]), 12 - call["history"].shape[1]), pad)
        padded = runtime({name: np.hstack([padding, array]) for name, array in call.items()})
        items, scores = runtime(call)
        np.testing.assert_array_equal(padded[0], items)
        np.testing.assert_allclose(padded[1], scores, atol=1e-3)


def test_an_engine_answers_for_its_own_bundle_alone(inputs: dict[str, Artifact], engines: Path) -> None:
    with pytest.raises(ArtifactError, match=r"was made of another model.onnx"):
        Recommender.load(inputs["served"].path("two_tower"), runtime=TensorRtEngine(engines / "bert4rec"))


def test_a_call_outside_the_profile_is_one_line(engines: Path) -> None:
    runtime = TensorRtEngine(engines / "bert4rec")
    history = np.zeros((33, 4), dtype=np.int64)
    with pytest.raises(RecPressError, match="outside its profile"):
        runtime({"history": history, "exclude": history})


def test_what_was_built_here_is_inspected(engines: Path) -> None:
    from deploy import engine

    for each in engine.read(engines / "bert4rec").engines:
        assert each.kernels
        assert each.compute_capability == "{}.{}".format(*torch.cuda.get_device_capability())
