"""TensorRT: a network is strongly typed, so the graph says the precision of every operation.

Products are narrow, fp16 or bf16; whatever sums, norms, compares or masks is fp32, as in torch's autocast. Inputs and
outputs keep their types. Int8 weights become DequantizeLinear, the one operator that TensorRT lets read them; products
of int8 or fp8 have QuantizeLinear and DequantizeLinear on both sides and fp16 around them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compress.errors import BuildError
from compress.methods.linear_rounding import Maps
from deploy.lowering import quantize_dequantize, tensorrt_rules
from deploy.lowering.quantize_dequantize import Dialect

Around = Literal["fp32", "fp16", "bf16"]
"""What is narrow, or nothing."""

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

DIALECTS: dict[str, Dialect] = {"int8": quantize_dequantize.signed, "fp8": quantize_dequantize.fp8}
"""Of precisions that are made from a description of static products."""

FLOAT = ir.DataType.FLOAT
NARROW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
FLOATS = frozenset({FLOAT, *NARROW.values()})

LARGEST = {"fp16": 65504.0, "bf16": 3.38e38}
SMALLEST = {"fp16": 2.0**-14, "bf16": 2.0**-126}
"""Numbers below have fewer digits."""

PRODUCTS = frozenset({"MatMul", "Gemm"})

WIDE = frozenset(
    {"LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Pow", "Exp", "Log"}
    | {"Cast", "ConstantOfShape", "ScatterElements", "TopK"}
)
"""Operators that are fp32 whatever feeds them. Cast and ConstantOfShape begin a mask, whose size no fp16 holds."""

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min"})
"""Operators that are fp32 where only such read them: squares that are averaged, sums that are normalised."""

GEMM_OF_SERVED_GRAPHS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def lower(graph: Path, lowered: Path, precision: Precision, maps: Maps | None = None, around: Around = "fp16") -> None:
    """Writes `lowered`, the same recommender with products in this precision.

    Args:
        graph: the standard graph.
        maps: of int8 and fp8, how each product is rounded.
        around: of int8 and fp8, what else would be narrow.

    Raises: BuildError if the graph has an operator that is not ONNX's own, or Attention, or breaks another rule of
        TensorRT's.

    """
    model = _rounded(graph, maps or {}, DIALECTS[precision]) if precision in DIALECTS else ir.load(graph)
    tensorrt_rules.check(model.graph, graph, [tensorrt_rules.operators_are_standard])
    for node in model.graph:
        if node.op_type == "Attention":  # fused or nothing: not in fp32, and in fp16 for some head sizes alone
            raise BuildError(f"{graph}: node {node.name}: TensorRT builds few Attentions; export MatMul and Softmax")
    for node in list(model.graph):
        _split_gemm(model.graph, node)
        _dequantize_weight(model.graph, node)
    narrow = around if precision in DIALECTS else precision
    if narrow != "fp32":
        _narrow(model.graph, narrow)
    RemoveUnusedNodesPass()(model)
    tensorrt_rules.check(model.graph, lowered)
    ir.save(model, lowered)


def _rounded(graph: Path, maps: Maps, dialect: Dialect) -> ir.Model:
    model = onnx.load(graph)
    quantize_dequantize.insert(model, maps, dialect)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))  # what was put in has types by that


def _split_gemm(graph: ir.Graph, node: ir.Node) -> None:
    """Gemm as MatMul and Add: its bias may hold MASKED, which no narrow product can add."""
    if node.op_type != "Gemm":
        return
    said = {name: node.attributes[name].value for name in GEMM_OF_SERVED_GRAPHS if name in node.attributes}
    if len(node.inputs) == 3 and said.items() <= GEMM_OF_SERVED_GRAPHS.items():
        left, right, bias = node.inputs
        product = _before(graph, node, "MatMul", [left, right], node.outputs[0], f"{node.name}.product")
        _replace(graph, node, _before(graph, node, "Add", [product, bias], node.outputs[0], f"{node.name}.sum"))


def _dequantize_weight(graph: ir.Graph, node: ir.Node) -> None:
    """An int8 constant that stands as Cast * scale, the scales along one axis, as DequantizeLinear."""
    if node.op_type != "Mul" or node.inputs[0] is None or node.inputs[1] is None:
        return
    cast, scales = node.inputs[0].producer(), _array(node.inputs[1])
    if cast is None or cast.op_type != "Cast" or scales is None or not scales.ndim:
        return
    integers = cast.inputs[0]
    if integers is not None and integers.dtype == ir.DataType.INT8 and integers.const_value is not None:
        flat = _constant(graph, f"{node.inputs[1].name}.flat", scales.reshape(-1))
        inputs, name, axis = [integers, flat], f"{node.name}.dequantize", int(np.argmax(scales.shape))
        _replace(graph, node, _before(graph, node, "DequantizeLinear", inputs, node.outputs[0], name, axis=axis))


def _narrow(graph: ir.Graph, precision: str) -> None:
    """Decides each node's precision, in order, and puts a Cast wherever two that meet differ."""
    narrow, casts = NARROW[precision], _Casts(graph)
    wide = _wide_nodes(graph)
    if precision == "bf16":  # with scores of 8 bits 46% of 300 users kept the order of their ten, so 59%; in fp16 91%
        wide |= _scoring_nodes(graph)
    for node in list(graph):
        floats = [(place, value) for place, value in enumerate(node.inputs) if value and value.dtype in FLOATS]
        asked = [value for _, value in floats if value.const_value is not None or node.op_type not in PRODUCTS]
        fits = all(_can_be(value, precision, node.op_type) for value in asked)
        dtype = narrow if floats and node not in wide and fits else FLOAT
        for place, value in floats:
            node.replace_input_with(place, casts.to(dtype, value, node))
        for output in node.outputs:
            if output.dtype == FLOAT:
                output.dtype = dtype
    for place, output in enumerate(graph.outputs):
        if output.dtype == narrow:
            graph.outputs[place] = casts.output(output)


def _wide_nodes(graph: ir.Graph) -> set[ir.Node]:
    wide: set[ir.Node] = set()
    for node in reversed(graph):
        readers = {reader for output in node.outputs for reader in output.consumers()}
        if node.op_type in WIDE or (node.op_type in ARITHMETIC and readers and readers <= wide):
            wide.add(node)
    return wide


def _scoring_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The last product before each output, and what else reads its constants: a table is not stored in both types."""
    found: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    queue = [output.producer() for output in graph.outputs]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in PRODUCTS:
            found |= {node, *(reader for value in _inputs(node) for reader in _readers_of_constants(value))}
        else:
            queue += [value.producer() for value in _inputs(node)]
    return found


def _readers_of_constants(value: ir.Value) -> list[ir.Node]:
    """Who reads a constant that is no single number, or what it was before nodes that read nothing else changed it."""
    if value.const_value is not None:
        return list(value.consumers()) if value.const_value.size > 1 else []
    node = value.producer()
    if node is None or not _is_constant(value):
        return []
    return [*value.consumers(), *(reader for source in _inputs(node) for reader in _readers_of_constants(source))]


def _is_constant(value: ir.Value) -> bool:
    node = value.producer()
    return value.const_value is not None or (node is not None and all(map(_is_constant, _inputs(node))))


def _can_be(value: ir.Value, precision: str, op_type: str) -> bool:
    """Whether a narrow node may read it as narrow: a constant that stays what it is, or what a narrow node made."""
    array = _array(value)
    if array is None:
        return value.dtype == NARROW[precision]
    sizes = np.abs(array)
    # Weights may be rounded to nothing; the floor of a division or the scale of a row must not lose its digits.
    exact = sizes.ndim == 0 or op_type == "DequantizeLinear"
    smallest = float(sizes[sizes > 0].min(initial=np.inf)) if exact else np.inf
    return float(sizes.max(initial=0)) <= LARGEST[precision] and smallest >= SMALLEST[precision]


class _Casts:
    """Values of a graph in another type, each made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def to(self, dtype: ir.DataType, value: ir.Value, reader: ir.Node) -> ir.Value:
        """The value as `reader` needs it: a constant that is written so, or a Cast before it."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._made:
            name, array = f"{value.name}.{dtype.name.lower()}", _array(value)
            if array is not None:
                self._made[value, dtype] = _constant(self.graph, name, array.astype(dtype.numpy()))
            else:
                cast = _before(self.graph, reader, "Cast", [value], value, name, to=int(dtype))
                cast.dtype = dtype
                self._made[value, dtype] = cast
        return self._made[value, dtype]

    def output(self, value: ir.Value) -> ir.Value:
        """An output of the graph as float32, under the name that it had."""
        name, value.name = value.name, f"{value.name}.narrow"
        cast = ir.node("Cast", [value], {"to": int(FLOAT)}, name=f"{name}.float")
        cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].dtype = name, value.shape, FLOAT
        self.graph.append(cast)
        return cast.outputs[0]


def _inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _array(value: ir.Value) -> NDArray[Any] | None:
    return None if value.const_value is None else value.const_value.numpy()


def _before(
    graph: ir.Graph,
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None] | list[ir.Value],
    like: ir.Value,
    name: str,
    **attributes: int,
) -> ir.Value:
    """The output of a new node before another, of the type and shape of `like`."""
    made = ir.node(op_type, inputs, attributes, name=name)
    output = made.outputs[0]
    output.name, output.dtype, output.shape = f"{name}.output", like.dtype or FLOAT, like.shape
    graph.insert_before(node, made)
    return output


def _replace(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value
