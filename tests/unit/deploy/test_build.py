"""Engines are built for what is asked, described, and run only if they are what was built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bundle_fakes
from compress.artifact import Artifact, digest
from compress.data.interactions import Interactions
from compress.errors import ArtifactError, BuildError, ParityError, RecipeError, RecPressError
from compress.recipe.serving import BuildSection
from compress.stage import Workspace
from deploy import build, engine
from deploy.bundle import STANDARD
from deploy.engine import Engine, Engines
from deploy.lowering import tensorrt
from deploy.runtimes import tensorrt_api
from deploy.runtimes.tensorrt import TensorRtEngine
from deploy.runtimes.tensorrt_api import Built, TensorRt, choose

Run = Callable[..., dict[str, Any]]

PROFILE = {"x": ([1, 4], [2, 4], [8, 4])}


def section(**fields: Any) -> BuildSection:
    said = {"kind": "build", "input": "served", "compute_capabilities": ["8.6"], **fields}
    return BuildSection.model_validate(said)


class FakeBuilder:
    """Builds what says which graph and GPU it is of."""

    package, version = "tensorrt-rtx", "1.7"

    def build(self, graph: Path, profile: Any, target: str, *, exact: bool) -> Built:
        return Built(f"{graph.name} {target} {exact}".encode(), 0.5, 7)


@pytest.fixture
def run(built_from: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The stage, with a builder that needs no package."""
    monkeypatch.setattr(tensorrt_api, "choose", lambda *_: FakeBuilder())
    monkeypatch.setattr(build, "device_capability", lambda: None)
    (tmp_path / "engines").mkdir()
    return lambda **fields: build.run(section(**fields), built_from, Workspace(tmp_path / "engines", seed=0))


@pytest.fixture
def rtx() -> TensorRt:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'tensorrt-rtx>=1.7'")
    return TensorRt("tensorrt-rtx")


def test_a_folder_per_model_says_what_its_engines_are(
    run: Run, built_from: dict[str, Artifact], tmp_path: Path
) -> None:
    metrics = run(precisions=["fp16", "fp32"], compute_capabilities=["8.0", "8.6"])
    assert metrics["engines"] == 4 * len(bundle_fakes.MODELS)
    assert metrics["bert4rec"]["fp32"]["same_top_k"] == 1
    folder = tmp_path / "engines" / "two_tower"
    described = engine.read(folder)
    assert described.standard_sha256 == digest(built_from["served"].path("two_tower") / STANDARD)
    assert [each.file for each in described.engines] == [
        "fp16-sm80.engine",
        "fp16-sm86.engine",
        "fp32-sm80.engine",
        "fp32-sm86.engine",
    ]
    last = described.engines[-1]
    assert (folder / last.file).read_bytes() == b"fp32.onnx 8.6 True"
    assert (last.graph_sha256, last.layers, last.kernels) == (digest(folder / "fp32.onnx"), 7, None)
    assert last.size_bytes == 18
    assert {path.name for path in folder.iterdir()} == {
        "engine.json",
        "fp16.onnx",
        "fp32.onnx",
        *(each.file for each in described.engines),
    }


def test_profiles_reach_all_that_a_model_reads(run: Run, tmp_path: Path) -> None:
    run(models=["bert4rec", "cross_encoder"])
    profiles = {
        name: engine.read(tmp_path / "engines" / name).engines[0].profile for name in ("bert4rec", "cross_encoder")
    }
    smallest, typical, largest = profiles["bert4rec"]["history"]
    assert (smallest, largest) == ([1, 1], [32, 12])
    assert typical[0] == 8
    assert 4 <= typical[1] <= 12  # as people's histories are
    smallest, _, largest = profiles["bert4rec"]["exclude"]
    assert (smallest, largest) == ([1, 0], [32, bundle_fakes.ITEMS])
    (user,), (_, longest) = profiles["cross_encoder"]["user"][2], profiles["cross_encoder"]["items"][2]
    assert user + longest == 64  # positions of both together


@pytest.mark.parametrize(
    ("lengths", "length"), [(None, (1, 10, 20)), ([2, 4, 8], (2, 4, 8)), ([5, 50, 90], (5, 20, 20))]
)
def test_lengths_lie_within_what_a_call_can_have(lengths: Any, length: Any) -> None:
    asked = section(lengths=lengths, batch_sizes=[1, 2, 3])
    sizes = build.axis_sizes(asked, {"length": (1, 20), "excluded": (0, 500)}, {"length": 10, "excluded": 40})
    assert sizes["length"] == length
    assert sizes["excluded"] == (0, 40, 500)
    assert sizes["batch"] == sizes["candidates"] == (1, 2, 3)


def test_what_answers_otherwise_is_not_built(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SHARED", 1.01)
    with pytest.raises(ParityError, match=r"bert4rec: in fp16 it shares .* take fp16 out of precisions"):
        run()


def test_without_a_gpu_the_recipe_says_which(run: Run) -> None:
    with pytest.raises(RecipeError, match=r'^stages.engines: no GPU here: .* compute_capabilities: \["8.0", "8.6"\]$'):
        run(compute_capabilities=None)


def test_without_a_package_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ModuleNotFoundError

    monkeypatch.setattr(tensorrt_api, "APIS", {"tensorrt": absent, "tensorrt-rtx": absent})
    with pytest.raises(RecipeError) as raised:
        choose("auto", ["8.6"], None, "stages.engines")
    assert str(raised.value).startswith("stages.engines: no builder for 8.6: tensorrt is not installed: pip install")
    assert "pip install 'tensorrt-rtx>=1.7'" in str(raised.value)


def api(*generations: str) -> Any:
    """A package that builds for these, or, if there are none, for the GPU that is here."""
    config = SimpleNamespace(set_compute_capability=None) if generations else SimpleNamespace()
    members = {"NONE": 0, "CURRENT": 1, **dict.fromkeys(generations)}
    logger = type("ILogger", (), {"__init__": lambda self: None})
    return lambda: SimpleNamespace(
        IBuilderConfig=config, ComputeCapability=SimpleNamespace(__members__=members), ILogger=logger
    )


@pytest.mark.parametrize(
    ("targets", "here", "chosen"),
    [(["8.6"], "8.6", "tensorrt"), (["8.6"], "9.0", "tensorrt-rtx"), (["12.0", "8.6"], None, "tensorrt-rtx")],
)
def test_the_first_package_that_builds_for_the_gpus_is_taken(
    monkeypatch: pytest.MonkeyPatch, targets: list[str], here: str | None, chosen: str
) -> None:
    monkeypatch.setattr(tensorrt_api, "APIS", {"tensorrt": api(), "tensorrt-rtx": api("SM75", "SM86", "SM120")})
    assert choose("auto", targets, here, "").package == chosen


def test_gpus_that_no_package_builds_for_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "APIS", {"tensorrt": api(), "tensorrt-rtx": api("SM75", "SM120")})
    monkeypatch.setattr(tensorrt_api, "version", lambda package: "11.4" if package == "tensorrt" else "1.7")
    with pytest.raises(RecipeError) as raised:
        choose("auto", ["9.0"], None, "stages.engines")
    assert str(raised.value) == (
        "stages.engines: no builder for 9.0: tensorrt 11.4 builds for the GPU that is here, and there is none; "
        "tensorrt-rtx 1.7 builds for 7.5, 12.0"
    )


def one_engine(folder: Path, content: bytes = b"an engine") -> Engine:
    """A folder with an engine that nothing has built."""
    (folder / "fp16-sm86.engine").write_bytes(content)
    made = Engine(
        file="fp16-sm86.engine",
        sha256=digest(folder / "fp16-sm86.engine"),
        size_bytes=len(content),
        precision="fp16",
        compute_capability="8.6",
        builder="tensorrt-rtx",
        version="1.7",
        graph="fp16.onnx",
        graph_sha256="",
        profile={},
        build_seconds=1.0,
        layers=3,
        kernels=None,
        fusions=None,
    )
    Engines(model="m", standard_sha256="", engines=[made]).write(folder)
    return made


def test_an_engine_that_was_changed_is_not_loaded(tmp_path: Path) -> None:
    one_engine(tmp_path)
    (tmp_path / "fp16-sm86.engine").write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"fp16-sm86.engine is damaged: its sha256 is not the manifest's"):
        TensorRtEngine(tmp_path)


def test_an_engine_outside_its_folder_is_not_loaded(tmp_path: Path) -> None:
    made = one_engine(tmp_path).model_copy(update={"file": "../fp16-sm86.engine"})
    Engines(model="m", standard_sha256="", engines=[made]).write(tmp_path)
    with pytest.raises(ArtifactError, match="is missing; build it again"):
        TensorRtEngine(tmp_path)


@pytest.mark.parametrize("damage", ["no", "checksum", "json"])
def test_a_damaged_description_is_one_line(tmp_path: Path, damage: str) -> None:
    one_engine(tmp_path)
    path = tmp_path / engine.DESCRIPTION
    if damage == "no":
        path.unlink()
    elif damage == "checksum":
        path.write_text(path.read_text().replace('"m"', '"other"'))
    else:
        path.write_text("{")
    with pytest.raises(ArtifactError) as raised:
        engine.read(tmp_path)
    assert "\n" not in str(raised.value)
    assert "build" in str(raised.value)


def test_a_precision_that_was_not_built_is_one_line(tmp_path: Path) -> None:
    one_engine(tmp_path)
    with pytest.raises(ArtifactError, match="no engine in bf16; name it in the build stage's precisions"):
        TensorRtEngine(tmp_path, "bf16")


def test_a_whole_engine_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    one_engine(tmp_path)
    with pytest.raises(RecPressError, match="engines run on a GPU, and there is none here"):
        TensorRtEngine(tmp_path)


@pytest.mark.parametrize("name", bundle_fakes.MODELS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_every_family_builds_in_every_precision(
    rtx: TensorRt, built_from: dict[str, Artifact], tmp_path: Path, name: str, precision: tensorrt.Precision
) -> None:
    source, folder = built_from["served"].path(name), tmp_path / name
    model = build._Model(source, folder, section(), Interactions.of(built_from))
    tensorrt.lower(source / STANDARD, folder / f"{precision}.onnx", precision)
    made = model.build(rtx, precision, "8.6", None)
    assert made.size_bytes > 100_000
    assert made.layers > 100
    engine.content(folder, made)


def test_the_first_gpus_with_tensor_cores_run_fp16_alone(
    rtx: TensorRt, built_from: dict[str, Artifact], tmp_path: Path
) -> None:
    source = built_from["served"].path("bert4rec")
    profile = {"history": ([1, 1], [8, 6], [32, 12]), "exclude": ([1, 0], [8, 6], [32, 60])}
    tensorrt.lower(source / STANDARD, tmp_path / "fp16.onnx", "fp16")
    assert rtx.build(tmp_path / "fp16.onnx", profile, "7.5", exact=False).engine
    with pytest.raises(BuildError) as raised:
        rtx.build(source / STANDARD, profile, "7.5", exact=True)
    assert "builds nothing for 7.5" in str(raised.value)
    assert "FP32 GEMM is not supported" in str(raised.value)


def graph_of(
    folder: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any] | None = None, domain: str = ""
) -> Path:
    """A graph from x to y, both float32 with four columns."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in "xy"]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    opsets = [helper.make_opsetid("", 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(nodes, "one", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=11), folder / "one.onnx")
    return folder / "one.onnx"


def refused(rtx: TensorRt, path: Path) -> str:
    """The one line said of a graph."""
    with pytest.raises(BuildError) as raised:
        rtx.build(path, PROFILE, "8.6", exact=True)
    assert "\n" not in str(raised.value)
    return str(raised.value).replace(f"{rtx.package} {rtx.version}", "RTX")


def test_an_operator_of_another_runtime_is_refused_by_name(rtx: TensorRt, tmp_path: Path) -> None:
    node = helper.make_node("BiasGelu", ["x", "b"], ["y"], name="fused", domain="com.microsoft")
    path = graph_of(tmp_path, [node], {"b": np.zeros(4, np.float32)}, "com.microsoft")
    assert refused(rtx, path).startswith("one.onnx: RTX: node fused (BiasGelu): ")


def test_two_types_in_one_operator_are_refused_by_name(rtx: TensorRt, tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "half"], ["y"], name="mixed")
    path = graph_of(tmp_path, [node], {"half": np.zeros(4, np.float16)})
    assert refused(rtx, path).startswith("one.onnx: RTX: node mixed (Add): ")


def test_an_asymmetric_scale_is_refused_by_name(rtx: TensorRt, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dequantize"),
    ]
    path = graph_of(tmp_path, nodes, {"s": np.float32(0.1), "z": np.int8(3)})
    assert refused(rtx, path).startswith("one.onnx: RTX: node quantize (QuantizeLinear): ")


def test_an_int8_weight_that_is_cast_is_refused_where_its_lowered_form_is_not(
    rtx: TensorRt, built_from: dict[str, Artifact]
) -> None:
    profile = {"history": ([1, 1], [8, 6], [32, 12]), "exclude": ([1, 0], [8, 6], [32, 60])}
    with pytest.raises(BuildError, match=r"builds nothing for 8.6: .*Quantized constant \(table.integers\)"):
        rtx.build(built_from["served"].path("rounded") / STANDARD, profile, "8.6", exact=True)


def test_a_file_that_is_no_graph_is_one_line(rtx: TensorRt, tmp_path: Path) -> None:
    (tmp_path / "one.onnx").write_bytes(b"no graph")
    assert refused(rtx, tmp_path / "one.onnx").startswith("one.onnx: RTX: ")


def test_the_command_builds_nothing_of_a_recipe_without_a_build_stage() -> None:
    root = Path(__file__).resolve().parents[3]
    line = [sys.executable, "-m", "deploy.build", "recipes/tiny.yaml"]
    ended = subprocess.run(line, cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert (ended.returncode, ended.stderr) == (2, "recipes/tiny.yaml: the recipe has no build stage\n")


def test_the_description_is_json_that_people_read(tmp_path: Path) -> None:
    one_engine(tmp_path)
    assert json.loads((tmp_path / engine.DESCRIPTION).read_text())["engines"][0]["compute_capability"] == "8.6"
