"""What is asked of TensorRT's packages, which of them is taken, and what each refuses, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bundle_fakes
from compress.artifact import Artifact
from compress.data.interactions import Interactions
from compress.errors import BuildError, RecipeError
from compress.recipe.serving import BuildSection
from deploy import build, engine
from deploy.bundle import STANDARD
from deploy.lowering import tensorrt
from deploy.runtimes import tensorrt_api
from deploy.runtimes.tensorrt_api import TensorRt, choose

PROFILE = {"x": ([1, 4], [2, 4], [8, 4])}


SECTION = BuildSection.model_validate({"kind": "build", "input": "served"})


@pytest.fixture
def rtx() -> TensorRt:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'tensorrt-rtx>=1.7'")
    return TensorRt("tensorrt-rtx")


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


def whole_package(configs: list[Any]) -> Any:
    """TensorRT as it builds for the GPU that is here, as far as it is asked; it keeps its configurations."""

    class Config:
        profiling_verbosity = hardware_compatibility_level = None

        def __init__(self) -> None:
            self.profiles: list[Any] = []
            self.flags: list[str] = []
            self.timings = b""
            configs.append(self)

        def add_optimization_profile(self, profile: Any) -> None:
            self.profiles.append(profile)

        def set_flag(self, flag: str) -> None:
            self.flags.append(flag)

        def create_timing_cache(self, content: bytes) -> Any:
            return SimpleNamespace(serialize=lambda: content + b"timed ")

        def set_timing_cache(self, cache: Any, _: bool) -> None:
            self.timings = cache.serialize()

    class Logger:
        Severity = SimpleNamespace(ERROR=1)

    builder = SimpleNamespace(
        create_network=lambda _: SimpleNamespace(num_layers=3),
        create_builder_config=Config,
        create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *_: None),
        build_serialized_network=lambda *_: b"engine",
    )
    return SimpleNamespace(
        ILogger=Logger,
        IBuilderConfig=Config,
        Builder=lambda _: builder,
        OnnxParser=lambda *_: SimpleNamespace(parse=lambda _: True),
        ProfilingVerbosity=SimpleNamespace(DETAILED=2),
        BuilderFlag=SimpleNamespace(VERSION_COMPATIBLE="version"),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere"),
    )


def test_a_package_that_times_kernels_is_told_what_it_has_timed_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs: list[Any] = []
    monkeypatch.setattr(tensorrt_api, "APIS", {"tensorrt": lambda: whole_package(configs)})
    monkeypatch.setattr(TensorRt, "_timings", b"")
    package, path = TensorRt("tensorrt"), graph_of(tmp_path, [helper.make_node("Relu", ["x"], ["y"])])
    package.build(path, [PROFILE, PROFILE], "9.0", exact=False, version_compatible=True, hardware="ampere_plus")
    TensorRt("tensorrt").build(path, [PROFILE], "9.0", exact=False)
    first, second = configs
    assert (len(first.profiles), first.flags, first.hardware_compatibility_level) == (2, ["version"], "ampere")
    assert (len(second.profiles), second.flags, second.hardware_compatibility_level) == (1, [], None)
    assert (first.timings, second.timings) == (b"timed ", b"timed timed ")


def test_kernels_are_what_the_inspector_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorRT writes it, with dynamic shapes and without details too."""
    layers = [
        {
            "Name": "MatMul_1 + Add_2",
            "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
            "Metadata": "[ONNX Layer: MatMul_1]\\x1e[ONNX Layer: Add_2]",
        },
        {"Name": "q", "Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]},
        {"Name": "dynamic", "Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}], "Metadata": ""},
        {"Name": "again", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}, {}]},
        "name_alone",
    ]
    told = json.dumps({"Layers": layers, "Bindings": ["x", "y"]})
    package = api("SM86")()
    package.LayerInformationFormat = SimpleNamespace(JSON=1)
    inspector = SimpleNamespace(get_engine_information=lambda _: told)
    loaded = SimpleNamespace(create_engine_inspector=lambda: inspector)
    runtimes = []

    def runtime(_: Any) -> Any:
        runtimes.append(SimpleNamespace(deserialize_cuda_engine=lambda _: loaded, engine_host_code_allowed=False))
        return runtimes[-1]

    package.Runtime = runtime
    package.ILogger.Severity = SimpleNamespace(ERROR=1)
    monkeypatch.setattr(tensorrt_api, "APIS", {"tensorrt-rtx": lambda: package})
    kernels = TensorRt("tensorrt-rtx").kernels(b"", "x.engine")
    assert [(each.precision, each.is_fused) for each in kernels] == [
        ("fp16", True),
        ("int8", False),
        ("other", False),
        ("fp16", False),
        ("other", False),
    ]
    assert kernels[0].outputs == ["Row major linear FP16 format"]
    assert "[ONNX Layer: Add_2]" in kernels[0].metadata
    assert kernels[-1].name == "name_alone"
    TensorRt("tensorrt-rtx").load(b"", "x.engine", version_compatible=True)
    assert [each.engine_host_code_allowed for each in runtimes] == [False, True]


@pytest.mark.parametrize("name", bundle_fakes.MODELS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_every_family_builds_in_every_precision(
    rtx: TensorRt, built_from: dict[str, Artifact], tmp_path: Path, name: str, precision: tensorrt.Precision
) -> None:
    source, folder = built_from["served"].path(name), tmp_path / name
    model = build._Model(source, folder, SECTION, Interactions.of(built_from))
    tensorrt.lower(source / STANDARD, folder / f"{precision}.onnx", precision)
    made = model.build(rtx, precision, "8.6", None)
    assert made.size_bytes > 100_000
    assert made.layers > 100
    engine.content(folder, made)


@pytest.mark.parametrize("name", bundle_fakes.STATIC)
@pytest.mark.parametrize(("precision", "target"), [("int8", "8.0"), ("int8", "12.0"), ("fp8", "8.9")])
def test_every_family_builds_with_rounded_products(
    rtx: TensorRt, built_from: dict[str, Artifact], tmp_path: Path, name: str, precision: str, target: str
) -> None:
    model = build._Model(built_from["served"].folder / name, tmp_path / name, SECTION, Interactions.of(built_from))
    model.lower(precision)
    made = model.build(rtx, precision, target, None)
    assert made.size_bytes > 100_000
    engine.content(tmp_path / name, made)


def test_an_engine_has_several_profiles(rtx: TensorRt, built_from: dict[str, Artifact], tmp_path: Path) -> None:
    said = {"kind": "build", "input": "served", "buckets": 3}
    source, folder = built_from["served"].path("bert4rec"), tmp_path / "bert4rec"
    model = build._Model(source, folder, BuildSection.model_validate(said), Interactions.of(built_from))
    tensorrt.lower(source / STANDARD, folder / "fp16.onnx", "fp16")
    made = model.build(rtx, "fp16", "8.6", None)
    assert (len(made.profiles), made.version_compatible, made.hardware_compatibility) == (3, False, "none")
    assert made.size_bytes > 100_000


def test_a_package_that_does_not_do_what_is_asked_says_so(rtx: TensorRt, tmp_path: Path) -> None:
    path = graph_of(tmp_path, [helper.make_node("Relu", ["x"], ["y"], name="relu")])
    with pytest.raises(
        BuildError,
        match=r"^tensorrt-rtx .* has no hardware_compatibility: ampere_plus; leave it out.*: pip install tensorrt ",
    ):
        rtx.build(path, [PROFILE], "8.6", exact=False, hardware="ampere_plus")
    with pytest.raises(
        BuildError, match=r"^one.onnx: tensorrt-rtx .* builds nothing for 8.6: .*libnvinfer_lean[^\n]*$"
    ):
        rtx.build(path, [PROFILE], "8.6", exact=False, version_compatible=True)


def test_a_gpu_without_fp8_products_is_one_line(rtx: TensorRt, built_from: dict[str, Artifact], tmp_path: Path) -> None:
    source = built_from["served"].folder / "static_bert4rec"
    model = build._Model(source, tmp_path / "model", SECTION, Interactions.of(built_from))
    model.lower("fp8")
    with pytest.raises(BuildError, match=r"^fp8.onnx: tensorrt-rtx .* builds nothing for 8.6: .*fp8_e4m3[^\n]*$"):
        model.build(rtx, "fp8", "8.6", None)


def test_the_first_gpus_with_tensor_cores_run_fp16_alone(
    rtx: TensorRt, built_from: dict[str, Artifact], tmp_path: Path
) -> None:
    source = built_from["served"].path("bert4rec")
    profile = {"history": ([1, 1], [8, 6], [32, 12]), "exclude": ([1, 0], [8, 6], [32, 60])}
    tensorrt.lower(source / STANDARD, tmp_path / "fp16.onnx", "fp16")
    assert rtx.build(tmp_path / "fp16.onnx", [profile], "7.5", exact=False).engine
    with pytest.raises(BuildError) as raised:
        rtx.build(source / STANDARD, [profile], "7.5", exact=True)
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
        rtx.build(path, [PROFILE], "8.6", exact=True)
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
        rtx.build(built_from["served"].path("rounded") / STANDARD, [profile], "8.6", exact=True)


def test_a_file_that_is_no_graph_is_one_line(rtx: TensorRt, tmp_path: Path) -> None:
    (tmp_path / "one.onnx").write_bytes(b"no graph")
    assert refused(rtx, tmp_path / "one.onnx").startswith("one.onnx: RTX: ")
