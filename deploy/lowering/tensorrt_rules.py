"""What TensorRT does not take, or takes and makes slow, found in a graph before its builder is asked.

The builder's own complaint names a layer that it has made of many nodes; a rule names the node and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx_ir as ir

from compress.errors import BuildError

Rule = Callable[[ir.Node], str | None]
"""What is wrong with a node and what to do about it, or None."""

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
STEPS = frozenset({ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN})
"""What products are rounded to."""

ROUNDING = ("QuantizeLinear", "DequantizeLinear")
ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Cast", "Unsqueeze", "Expand", "Reshape"})
"""What lies between an attention's products and its Softmax, on the scores' side or the mask's."""


def check(graph: ir.Graph, where: object, rules: Iterable[Rule] | None = None) -> None:
    """Raises: BuildError, one line, at the first node that breaks a rule. Args: rules: all of them if None."""
    for node in graph:
        for rule in RULES if rules is None else rules:
            trouble = rule(node)
            if trouble:
                raise BuildError(f"{where}: node {node.name}: {trouble}")


def operators_are_standard(node: ir.Node) -> str | None:
    if node.domain in ("", "ai.onnx"):
        return None
    return f"{node.domain}.{node.op_type} is of another runtime; lower the standard graph"


def attention_is_narrow(node: ir.Node) -> str | None:
    """Opset 23's operator is one fused kernel or none, and there is none in float32 or int8."""
    if node.op_type != "Attention" or all(value.dtype in FLOATS - {ir.DataType.FLOAT} for value in _read(node)[:3]):
        return None
    return "Attention is built in fp16 and bf16 alone; cast what it reads, or export MatMul and Softmax"


def attention_reads_three_values(node: ir.Node) -> str | None:
    """TensorRT-RTX 1.7's builder ends the process otherwise."""
    if node.op_type != "Attention" or len(set(_read(node)[:3])) == len(_read(node)[:3]):
        return None
    return "queries, keys and values are one value, which ends the builder; put an Identity before each"


def types_agree(node: ir.Node) -> str | None:
    """A network is strongly typed: nothing is cast unless the graph says so."""
    found = sorted({value.dtype.name for value in _read(node) if value.dtype in FLOATS})
    return f"{node.op_type} reads {' and '.join(found)}; cast to one of them before it" if len(found) > 1 else None


def zero_points_are_zero(node: ir.Node) -> str | None:
    if node.op_type not in ROUNDING:
        return None
    stored = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    if stored is not None and stored.dtype == ir.DataType.UINT8:
        return "rounds to uint8, whose zero point lies anywhere; round to int8 around 0"
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    zero_points = _constant(node.inputs[2])
    if zero_points is not None and not zero_points.astype("float32").any():
        return None
    return "its zero point is not 0; round symmetrically, a step the larger end of the range / 127"


def inputs_have_one_scale(node: ir.Node) -> str | None:
    """Sums over scales that differ along them cannot be scaled afterwards."""
    rounds_inputs = node.op_type in ROUNDING and _constant(node.inputs[0]) is None
    scales = _constant(node.inputs[1]) if rounds_inputs else None
    if not rounds_inputs or (scales is not None and scales.size == 1):
        return None
    return "what a product reads has one constant scale; move differences between inputs to the weight (smooth: 0.5)"


def weights_have_a_scale_per_output(node: ir.Node) -> str | None:
    sources = _rounded_sources(node)
    if sources is None or sources[1].inputs[0] is None or sources[1].inputs[1] is None:
        return None
    shape, scales = sources[1].inputs[0].shape, sources[1].inputs[1].shape
    if shape is None or scales is None:
        return None
    axis = sources[1].attributes.get_int("axis", 1)
    if len(scales) == 1 and axis % len(shape) == len(shape) - 1:
        return None
    return f"its weight's scales do not lie along its outputs; give {sources[1].name} {shape[-1]} of them and axis 1"


def products_of_integers_have_a_constant(node: ir.Node) -> str | None:
    """Attention in int8 is not fused: slower than in fp16."""
    sources = _rounded_sources(node)
    if sources is None or any(_constant(source.inputs[0]) is not None for source in sources):
        return None
    return "multiplies two rounded inputs; leave attention in fp16 and round products with weights alone"


def masks_are_not_rounded(node: ir.Node) -> str | None:
    """A mask of -1e9 leaves scores no step to be told apart in."""
    if node.op_type != "Softmax":
        return None
    for source in _sources(node.inputs[0]):
        if source.op_type in ROUNDING:
            return f"{source.name} rounds the scores or the mask that it reads; take that rounding out"
    return None


def biases_are_floats(node: ir.Node) -> str | None:
    if node.op_type != "DequantizeLinear" or node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.INT32:
        return None
    return "dequantizes an int32 bias; store it in the graph's float type (QuantizeBias: False)"


def integers_are_dequantized(node: ir.Node) -> str | None:
    """An int8 constant that anything else reads is no weight to the builder."""
    for place, value in enumerate(node.inputs):
        is_array = value is not None and value.const_value is not None and value.const_value.size > 1
        is_read_so = node.op_type in ROUNDING and place in ((0, 2) if node.op_type == "DequantizeLinear" else (2,))
        if value is not None and is_array and value.dtype in STEPS and not is_read_so:
            return f"{node.op_type} reads {value.name}, which is {value.dtype.name}; let a DequantizeLinear read it"
    return None


RULES: tuple[Rule, ...] = (
    operators_are_standard,
    attention_is_narrow,
    attention_reads_three_values,
    biases_are_floats,
    zero_points_are_zero,
    inputs_have_one_scale,
    products_of_integers_have_a_constant,
    weights_have_a_scale_per_output,
    masks_are_not_rounded,
    integers_are_dequantized,
    types_agree,
)


def _read(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _constant(value: ir.Value | None) -> Any:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _rounded_sources(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """What dequantizes both sides of a product, if both are."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    left, right = (value.producer() for value in _read(node)[:2])
    if left is None or right is None or {left.op_type, right.op_type} != {"DequantizeLinear"}:
        return None
    return left, right


def _sources(value: ir.Value | None) -> Iterator[ir.Node]:
    """Nodes that a value is made by, up to and with the first on every way that is no elementwise one."""
    node = None if value is None else value.producer()
    if node is not None:
        yield node
        if node.op_type in ELEMENTWISE:
            for each in _read(node):
                yield from _sources(each)
