"""Each rule of TensorRT's dialect, broken: the line names the node and what to do. What we lower breaks none."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from compress.errors import BuildError
from deploy.lowering import tensorrt_rules
from deploy.runtimes.tensorrt_api import TensorRt

CONSTANTS = """
    float sx = {0.1}, int8 z = {0},
    int8[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] sw = {0.1, 0.2}, int8[2] zw = {0, 0},
    int32[2] b = {1, 2}, float[4] s4 = {1, 2, 3, 4}, int8[4] z4 = {0, 0, 0, 0}, uint8 z8 = {128}, int8 z3 = {3}
"""
PRODUCT = """
    q = QuantizeLinear(x, sx, z)
    a = DequantizeLinear(q, sx, z)
    c = DequantizeLinear<axis = 1>(w, sw, zw)
    y = MatMul(a, c)
"""
LINE = "int8.onnx: node {}: {}"


def model(nodes: str, reads: str = "float[N,4] x") -> onnx.ModelProto:
    """From what is read to y; nodes are named after what they write."""
    head = '<ir_version: 11, opset_import: ["" : 23]>'
    made = onnx.parser.parse_model(f"{head} g ({reads}) => (float[N,M] y) <{CONSTANTS}> {{{nodes}}}")
    read = {name for node in made.graph.node for name in node.input}
    for node in made.graph.node:
        node.name = f"node_{node.output[0]}"
    for tensor in list(made.graph.initializer):
        if tensor.name not in read:
            made.graph.initializer.remove(tensor)
    return made


def graph(nodes: str, reads: str = "float[N,4] x") -> ir.Graph:
    made = model(nodes, reads)
    del made.graph.output[0].type.tensor_type.shape.dim[:]
    return ir.from_proto(onnx.shape_inference.infer_shapes(made)).graph


def said_of(nodes: str, reads: str = "float[N,4] x") -> str:
    with pytest.raises(BuildError) as raised:
        tensorrt_rules.check(graph(nodes, reads), "int8.onnx")
    return str(raised.value)


def changed(old: str, new: str) -> str:
    assert old in PRODUCT
    return PRODUCT.replace(old, new)


def test_a_product_in_the_dialect_breaks_no_rule() -> None:
    tensorrt_rules.check(graph(PRODUCT), "int8.onnx")


def test_a_zero_point_besides_zero_is_named() -> None:
    found = said_of(changed("z)", "z3)"))
    assert found == LINE.format(
        "node_q", "its zero point is not 0; round symmetrically, a step the larger end of the range / 127"
    )


def test_an_unsigned_byte_is_named() -> None:
    found = said_of(changed("z)", "z8)"))
    assert found == LINE.format("node_q", "rounds to uint8, whose zero point lies anywhere; round to int8 around 0")


def test_without_a_zero_point_a_byte_is_unsigned() -> None:
    found = said_of("q = QuantizeLinear(x, sx)\n y = DequantizeLinear(q, sx)")
    assert found.startswith(LINE.format("node_q", "rounds to uint8"))


def test_inputs_with_a_scale_each_are_named() -> None:
    found = said_of(changed("(x, sx, z)", "(x, s4, z4)"))
    assert found == LINE.format(
        "node_q",
        "what a product reads has one constant scale; move differences between inputs to the weight (smooth: 0.5)",
    )


@pytest.mark.parametrize("weight", ["DequantizeLinear<axis = 0>(w, s4, z4)", "DequantizeLinear(w, sx, z)"])
def test_a_weight_without_a_scale_per_output_is_named(weight: str) -> None:
    found = said_of(changed("DequantizeLinear<axis = 1>(w, sw, zw)", weight))
    assert found == LINE.format(
        "node_y", "its weight's scales do not lie along its outputs; give node_c 2 of them and axis 1"
    )


def test_an_int32_bias_is_named() -> None:
    found = said_of(changed("y = MatMul(a, c)", "p = MatMul(a, c)\n d = DequantizeLinear(b, sx)\n y = Add(p, d)"))
    assert found == LINE.format(
        "node_d", "dequantizes an int32 bias; store it in the graph's float type (QuantizeBias: False)"
    )


ATTEND = """
    p = MatMul(x, k)
    {}
    masked = Add(p, {})
    y = Softmax(masked)
"""
ROUNDED = "q = QuantizeLinear({0}, sx, z)\n r = DequantizeLinear(q, sx, z)"
READS = "float[N,4] x, float[4,N] k, float[N,N] mask"


@pytest.mark.parametrize(
    "nodes",
    [
        ATTEND.format(ROUNDED.format("mask"), "r"),
        ATTEND.format(f"wide = Unsqueeze(mask, zero)\n{ROUNDED.format('wide')}", "r"),
        ATTEND.format("", "mask")
        .replace("Softmax(masked)", "Softmax(r)")
        .replace(" y =", ROUNDED.format("masked") + "\n y ="),
    ],
    ids=["mask", "mask made", "scores"],
)
def test_rounding_at_the_attention_mask_is_named(nodes: str) -> None:
    found = said_of("zero = Constant<value_ints = [0]>()\n" + nodes, READS)
    assert found == LINE.format("node_y", "node_r rounds the scores or the mask that it reads; take that rounding out")


def test_attention_in_floats_is_no_trouble() -> None:
    tensorrt_rules.check(graph(ATTEND.format("", "mask"), READS), "int8.onnx")


def test_a_product_of_two_rounded_inputs_is_named() -> None:
    found = said_of(
        "q = QuantizeLinear(x, sx, z)\n a = DequantizeLinear(q, sx, z)\n t = Transpose(q)\n"
        " c = DequantizeLinear(t, sx, z)\n y = MatMul(a, c)"
    )
    assert found == LINE.format(
        "node_y", "multiplies two rounded inputs; leave attention in fp16 and round products with weights alone"
    )


def test_an_int8_constant_that_something_else_reads_is_named() -> None:
    found = said_of("f = Cast<to = 1>(w)\n y = MatMul(x, f)")
    assert found == LINE.format("node_f", "Cast reads w, which is INT8; let a DequantizeLinear read it")


def test_two_float_types_in_one_product_are_named() -> None:
    found = said_of("h = Cast<to = 10>(x)\n c = DequantizeLinear<axis = 1>(w, sw, zw)\n y = MatMul(h, c)")
    assert found == LINE.format("node_y", "MatMul reads FLOAT and FLOAT16; cast to one of them before it")


QKV = "float[1,2,N,8] q, float[1,2,N,8] k, float[1,2,N,8] v"


def test_attention_in_float32_is_named() -> None:
    found = said_of("y = Attention(q, k, v)", QKV)
    assert found == LINE.format(
        "node_y", "Attention is built in fp16 and bf16 alone; cast what it reads, or export MatMul and Softmax"
    )


def test_attention_in_fp16_is_no_trouble_unless_it_reads_one_value() -> None:
    halves = QKV.replace("float[", "float16[")
    tensorrt_rules.check(graph("y = Attention(q, k, v)", halves), "int8.onnx")
    found = said_of("y = Attention(q, q, q)", halves)
    assert found == LINE.format(
        "node_y", "queries, keys and values are one value, which ends the builder; put an Identity before each"
    )


def test_an_operator_of_another_runtime_is_named() -> None:
    made = graph("y = Identity(x)")
    made[0].domain = "com.microsoft"
    with pytest.raises(BuildError) as raised:
        tensorrt_rules.check(made, "int8.onnx")
    assert str(raised.value) == LINE.format(
        "node_y", "com.microsoft.Identity is of another runtime; lower the standard graph"
    )


def test_every_rule_is_checked() -> None:
    """A rule that is written and not listed would hold nothing."""
    made = {
        rule
        for name, rule in vars(tensorrt_rules).items()
        if callable(rule)
        and getattr(rule, "__module__", "") == tensorrt_rules.__name__
        and not name.startswith("_")
        and name != "check"
    }
    assert made == set(tensorrt_rules.RULES)


BIAS = changed("y = MatMul(a, c)", "p = MatMul(a, c)\n d = DequantizeLinear(b, sx)\n y = Add(p, d)")
TWO_TYPES = "h = Cast<to = 10>(x)\n c = DequantizeLinear<axis = 1>(w, sw, zw)\n y = MatMul(h, c)"


@pytest.mark.parametrize(
    ("nodes", "reads", "said"),
    [
        (PRODUCT, "float[N,4] x", None),
        (changed("z)", "z3)"), "float[N,4] x", "node_q (QuantizeLinear): Assertion failed: shiftIsAllZeros"),
        (changed("z)", "z8)"), "float[N,4] x", "node_q (QuantizeLinear): Assertion failed: shiftIsAllZeros"),
        (BIAS, "float[N,4] x", "node_d (DequantizeLinear)"),
        (TWO_TYPES, "float[N,4] x", "node_y (MatMul)"),
        ("f = Cast<to = 1>(w)\n y = MatMul(x, f)", "float[N,4] x", "Quantized constant (w) is only allowed before DQ"),
        ("y = Attention(q, k, v)", QKV, "Attention operation was not supported"),
        (changed("DequantizeLinear<axis = 1>(w, sw, zw)", "DequantizeLinear(w, sx, z)"), "float[N,4] x", None),
        (ATTEND.format(ROUNDED.format("mask"), "r"), READS, None),
    ],
    ids=["dialect", "zero point", "uint8", "bias", "types", "cast", "attention", "weight scale", "mask"],
)
def test_what_the_builder_itself_says(tmp_path: Path, nodes: str, reads: str, said: str | None) -> None:
    """Some it refuses, in its own words; what it takes in silence and makes worse is what a rule adds."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'tensorrt-rtx>=1.7'")
    made = model(nodes, reads)
    onnx.save(made, tmp_path / "one.onnx")
    shapes = {
        value.name: [axis.dim_value or 4 for axis in value.type.tensor_type.shape.dim] for value in made.graph.input
    }
    profile = {name: (shape, shape, shape) for name, shape in shapes.items()}
    build = partial(TensorRt("tensorrt-rtx").build, tmp_path / "one.onnx", [profile], "8.6", exact=True)
    if said is None:
        assert build().engine
    else:
        with pytest.raises(BuildError, match=re.escape(said)):
            build()
