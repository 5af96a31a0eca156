"""A graph in TensorRT's dialect answers as the standard one, in every family and precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import bundle_fakes
from compress.artifact import Artifact
from compress.data.histories import MASKED, Asked
from compress.data.interactions import Interactions
from compress.errors import BuildError
from compress.methods import linear_rounding
from compress.methods.linear_rounding import QUANTIZATION
from deploy import bundle, parity
from deploy.bundle import STANDARD
from deploy.lowering import rounded, tensorrt
from deploy.lowering.tensorrt import Precision
from deploy.parity import Parity
from deploy.recommender import Recommender
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu

NARROW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
FP32_ALONE = {"LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "ScatterElements", "TopK"}

Lower = Callable[[str, Precision], Path]


@pytest.fixture
def lower(built_from: dict[str, Artifact], tmp_path: Path) -> Lower:
    """The graph of one of the bundles in a precision."""

    def lowered(name: str, precision: Precision) -> Path:
        path, folder = tmp_path / f"{name}-{precision}.onnx", built_from["served"].folder / name
        maps = linear_rounding.read(folder / QUANTIZATION) if name in bundle_fakes.STATIC else None
        tensorrt.lower(folder / STANDARD, path, precision, maps)
        return path

    return lowered


def agreement(inputs: dict[str, Artifact], name: str, lowered: Path) -> Parity:
    """With the standard graph, on validation requests, every rounding made."""
    twin = lowered.with_suffix(".rounded.onnx")
    rounded.write(lowered, twin)
    folder = inputs["served"].path(name)
    ours, standard = (Recommender.load(folder, runtime=OnnxRuntimeCpu(graph, 1)) for graph in (twin, folder / STANDARD))
    return parity.compare(ours.rank, standard.rank, parity.requests(Interactions.of(inputs), standard))


def types(graph: onnx.GraphProto) -> dict[str, int]:
    """The element type of every value that is known."""
    named = [*graph.value_info, *graph.input, *graph.output]
    found = {value.name: value.type.tensor_type.elem_type for value in named}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize("name", bundle_fakes.MODELS)
def test_in_fp32_it_is_the_same_graph_in_other_words(built_from: dict[str, Artifact], lower: Lower, name: str) -> None:
    found = agreement(built_from, name, lower(name, "fp32"))
    assert found.same_top_k == 1
    assert found.max_score_error < 1e-5


@pytest.mark.parametrize("name", bundle_fakes.MODELS)
@pytest.mark.parametrize(("precision", "overlap", "error"), [("fp16", 0.97, 0.06), ("bf16", 0.8, 0.5)])
def test_in_fewer_bits_the_best_items_are_the_same(
    built_from: dict[str, Artifact], lower: Lower, name: str, precision: Precision, overlap: float, error: float
) -> None:
    """Weights drawn at random rank more closely than trained ones: half of these candidates lie within .1."""
    found = agreement(built_from, name, lower(name, precision))
    assert found.overlap >= overlap
    assert 0 < found.max_score_error < error


@pytest.mark.parametrize("name", bundle_fakes.MODELS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_are_narrow_and_what_sums_or_masks_is_not(lower: Lower, name: str, precision: Precision) -> None:
    model = onnx.load(lower(name, precision))
    onnx.checker.check_model(model, full_check=True)  # no operator is given two types
    kinds = types(model.graph)
    wide = {node.op_type for node in model.graph.node if kinds[node.input[0]] == TensorProto.FLOAT}
    narrow = {node.op_type for node in model.graph.node if kinds[node.input[0]] == NARROW[precision]}
    products = [kinds[node.output[0]] for node in model.graph.node if node.op_type == "MatMul"]
    assert FP32_ALONE & {node.op_type for node in model.graph.node} <= wide
    assert not FP32_ALONE & narrow
    assert products.count(TensorProto.FLOAT) == (1 if precision == "bf16" else 0)  # the one that makes scores


@pytest.mark.parametrize("name", bundle_fakes.MODELS)
def test_inputs_and_outputs_keep_names_types_and_axes(built_from: dict[str, Artifact], lower: Lower, name: str) -> None:
    standard = onnx.load(built_from["served"].path(name) / STANDARD).graph
    lowered = onnx.load(lower(name, "fp16")).graph
    for ours, theirs in ((lowered.input, standard.input), (lowered.output, standard.output)):
        assert [(each.name, each.type) for each in ours] == [(each.name, each.type) for each in theirs]


@pytest.mark.parametrize("name", ["bert4rec", "two_tower"])
def test_what_is_excluded_is_masked_as_it_was(built_from: dict[str, Artifact], lower: Lower, name: str) -> None:
    folder = built_from["served"].path(name)
    ranker = Recommender.load(folder).ranker
    all_but_three = np.arange(3, bundle_fakes.ITEMS)
    asked = Asked(Interactions.of(built_from).asked("validation", np.array([0])).histories, [all_but_three])
    items_BK, scores_BK = ranker.rank(OnnxRuntimeCpu(lower(name, "fp16"), 1), asked)
    assert set(items_BK[0, :3]) == {0, 1, 2}
    assert (scores_BK[0, 3:] == np.float32(MASKED)).all()  # -1e9, which fp16 does not hold


def test_a_history_that_is_all_padding_has_finite_scores(built_from: dict[str, Artifact], lower: Lower) -> None:
    path = lower("bert4rec", "fp16")
    twin = path.with_suffix(".rounded.onnx")
    rounded.write(path, twin)
    pad = bundle.read(built_from["served"].path("bert4rec")).pad_id
    padding: NDArray[np.int64] = np.full((2, 5), pad, dtype=np.int64)
    _, scores = OnnxRuntimeCpu(twin, 1)({"history": padding, "exclude": padding})
    assert np.isfinite(scores).all()


def test_int8_weights_stay_int8(lower: Lower) -> None:
    graph = onnx.load(lower("rounded", "fp16")).graph
    kinds = types(graph)
    readers = {node.op_type for node in graph.node for name in node.input if kinds[name] == TensorProto.INT8}
    assert readers == {"DequantizeLinear"}
    large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) >= 16 * 16]
    assert {tensor.data_type for tensor in large if "position" not in tensor.name} == {TensorProto.INT8}


ROUNDED = [("int8", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN)]


@pytest.mark.parametrize("name", bundle_fakes.STATIC)
@pytest.mark.parametrize(("precision", "kind"), ROUNDED)
def test_both_sides_of_each_described_product_are_rounded_and_fp16_is_around(
    built_from: dict[str, Artifact], lower: Lower, name: str, precision: Precision, kind: int
) -> None:
    model = onnx.load(lower(name, precision))
    onnx.checker.check_model(model, full_check=True)
    kinds, made_by = types(model.graph), {node.output[0]: node for node in model.graph.node}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    sources = [[made_by[each].op_type for each in node.input if each in made_by] for node in products]
    rounded_products = [node for node, ops in zip(products, sources, strict=True) if ops == ["DequantizeLinear"] * 2]
    maps = linear_rounding.read(built_from["served"].folder / name / QUANTIZATION)
    assert len(rounded_products) >= len(maps) > 0
    assert sum("DequantizeLinear" in ops for ops in sources) == len(rounded_products), "on both sides or on none"
    for node in rounded_products:
        for each in node.input:
            assert kinds[made_by[each].input[0]] == kind
            assert kinds[each] == TensorProto.FLOAT16
    assert not {tensor.name for tensor in model.graph.initializer} & set(maps), "no weight lies there as floats"


@pytest.mark.parametrize("name", bundle_fakes.STATIC)
def test_int8_products_store_a_byte_a_weight(built_from: dict[str, Artifact], lower: Lower, name: str) -> None:
    int8, fp16 = (onnx.load(lower(name, precision)).graph for precision in ("int8", "fp16"))
    maps = linear_rounding.read(built_from["served"].folder / name / QUANTIZATION)
    bytes_of = {tensor.name: len(tensor.raw_data) for tensor in int8.initializer}
    halves = {tensor.name.removesuffix(".float16"): len(tensor.raw_data) for tensor in fp16.initializer}
    for each in maps:
        assert 2 * bytes_of[f"{each}.integers"] == halves[each]


def of_one_product(folder: Path, scale: float, domain: str = "") -> Path:
    """A graph of an int8 weight with this scale."""
    integers = numpy_helper.from_array(np.ones((4, 2), dtype=np.int8), "integers")
    scales = numpy_helper.from_array(np.full((1, 2), scale, dtype=np.float32), "scales")
    nodes = [
        helper.make_node("Cast", ["integers"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scales"], ["weight"], name="mul"),
        helper.make_node("MatMul", ["x", "weight"], ["y"], name="product", domain=domain),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in SHAPES.items()]
    graph = helper.make_graph(nodes, "one", values[:1], values[1:2], [integers, scales], value_info=values[2:])
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "one.onnx")
    return folder / "one.onnx"


SHAPES = {"x": [None, 4], "y": [None, 2], "floats": [4, 2], "weight": [4, 2]}


@pytest.mark.parametrize(("scale", "kind"), [(0.01, TensorProto.FLOAT16), (1e-6, TensorProto.FLOAT)])
def test_a_scale_too_small_for_fp16_stays_fp32(tmp_path: Path, scale: float, kind: int) -> None:
    tensorrt.lower(of_one_product(tmp_path, scale), tmp_path / "lowered.onnx", "fp16")
    graph = onnx.load(tmp_path / "lowered.onnx").graph
    (weight,) = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert types(graph)[weight.input[1]] == kind


def test_a_product_with_a_bias_that_no_fp16_holds_stays_fp32(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in "xy"]
    node = helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], name="gemm", transB=1)
    constants = {"weight": np.ones((4, 4), np.float32), "bias": np.full(4, MASKED, np.float32)}
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph([node], "one", values[:1], values[1:], tensors)
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    tensorrt.lower(path, tmp_path / "lowered.onnx", "fp16")
    (scores,) = OnnxRuntimeCpu(tmp_path / "lowered.onnx", 1)({"x": np.ones((1, 4), np.float32)})
    assert (scores == np.float32(MASKED)).all()


def test_attention_as_one_operator_is_refused_in_one_line(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2, None, 8]) for name in "xy"]
    node = helper.make_node("Attention", ["x", "x", "x"], ["y"], name="attend")
    graph = helper.make_graph([node], "one", values[:1], values[1:])
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), path)
    with pytest.raises(BuildError) as raised:
        tensorrt.lower(path, tmp_path / "lowered.onnx", "fp16")
    assert str(raised.value) == f"{path}: node attend: TensorRT builds few Attentions; export MatMul and Softmax"


def test_an_operator_of_another_runtime_is_named_in_one_line(tmp_path: Path) -> None:
    path = of_one_product(tmp_path, 1.0, "com.microsoft")
    with pytest.raises(BuildError) as raised:
        tensorrt.lower(path, tmp_path / "lowered.onnx", "fp16")
    assert str(raised.value) == (
        f"{path}: node product: com.microsoft.MatMul is of another runtime; lower the standard graph"
    )
