"""TensorRT: a network is strongly typed, so the graph says the precision of every operation.

Products are narrow, fp16 or bf16, whatever sums, norms, compares or masks is fp32, as in torch's autocast; inputs and
outputs keep their types. Int8 weights become DequantizeLinear, the one operator that TensorRT lets read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compress.errors import RecPressError

Precision = Literal["fp32", "fp16", "bf16"]

NARROW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

SMALLEST_NORMAL = {"fp16": 2.0**-14, "bf16": 2.0**-126}
LARGEST = {"fp16": 65504.0, "bf16": 3.38e38}

PRODUCTS = frozenset({"MatMul"})

WIDE = frozenset(
    {"LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Pow", "Exp", "Log", "Erf"}
    | {"Sigmoid", "Cast", "ConstantOfShape", "ScatterElements", "TopK"}
)
"""Operators that are fp32 whatever feeds them; a Cast or a ConstantOfShape makes the mask, whose size no half holds."""

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min"})
"""Operators that are fp32 where nobody reads them but what is: squares that are summed, sums that are normalised."""


def lower(graph: Path, lowered: Path, precision: Precision) -> None:
    """Writes `lowered`, the same recommender with products in this precision.

    Args:
        graph: the standard graph.

    Raises: RecPressError if the graph has an operator that is not ONNX's own.

    """
    model = ir.load(graph)
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            raise RecPressError(
                f"{graph}: node {node.name}: {node.domain}.{node.op_type} is another runtime's operator; give the "
                "standard graph"
            )
    _split_gemms(model.graph)
    _dequantize_weights(model.graph)
    if precision != "fp32":
        _narrow(model.graph, precision)
    RemoveUnusedNodesPass()(model)
    ir.save(model, lowered)


def _split_gemms(graph: ir.Graph) -> None:
    """Gemm as MatMul and Add: its bias may hold MASKED, which no narrow product can add."""
    for node in list(graph):
        if node.op_type != "Gemm" or any(
            node.attributes[name].value != plain
            for name, plain in (("alpha", 1.0), ("beta", 1.0), ("transA", 0), ("transB", 0))
            if name in node.attributes
        ):
            continue
        left, right, bias = node.inputs
        product = _node("MatMul", [left, right], node, "product", node.outputs[0])
        total = _node("Add", [product.outputs[0], bias], node, "sum", node.outputs[0])
        graph.insert_before(node, (product, total))
        _replace(graph, node, total.outputs[0])


def _dequantize_weights(graph: ir.Graph) -> None:
    """Spells int8 constants that stand as Cast * scale, scales along one axis, as DequantizeLinear."""
    for node in list(graph):
        if node.op_type != "Mul":
            continue
        cast, scale = node.inputs[0].producer(), node.inputs[1]
        if cast is None or cast.op_type != "Cast" or scale.const_value is None:
            continue
        integers = cast.inputs[0]
        if integers.const_value is None or integers.dtype != ir.DataType.INT8:
            continue
        scales = scale.const_value.numpy()
        axis = int(np.argmax(scales.shape))
        flat = _constant(graph, f"{scale.name}.flat", scales.reshape(-1))
        weight = _node("DequantizeLinear", [integers, flat], node, "dequantize", node.outputs[0], axis=axis)
        graph.insert_before(node, weight)
        _replace(graph, node, weight.outputs[0])


def _narrow(graph: ir.Graph, precision: Precision) -> None:
    """Decides each node's precision, in order, and puts a Cast wherever two that meet differ."""
    wide = _wide_nodes(graph)
    if precision == "bf16":  # .98 instead of .99 of the top 10 stay where scores have 8 bits; fp16 loses a thousandth
        wide |= _scoring_products(graph)
    dtype, changed = NARROW[precision], _Changed(graph, NARROW[precision])
    for node in list(graph):
        floats = [place for place, value in enumerate(node.inputs) if value is not None and _is_float(value)]
        narrow = node not in wide and bool(floats)
        if narrow and node.op_type not in PRODUCTS:
            narrow = all(_can_be_narrow(node.inputs[place], node, precision) for place in floats)
        for place in floats:
            node.replace_input_with(place, changed.to(node.inputs[place], node, dtype if narrow else ir.DataType.FLOAT))
        if narrow:
            for output in node.outputs:
                if output.dtype == ir.DataType.FLOAT:
                    output.dtype = dtype
    for place, output in enumerate(graph.outputs):
        if output.dtype == dtype:
            graph.outputs[place] = changed.output(output)


def _wide_nodes(graph: ir.Graph) -> set[ir.Node]:
    wide: set[ir.Node] = set()
    for node in reversed(graph):
        readers = {use.node for output in node.outputs for use in output.uses()}
        if node.op_type in WIDE or (node.op_type in ARITHMETIC and readers and readers <= wide):
            wide.add(node)
    return wide


def _scoring_products(graph: ir.Graph) -> set[ir.Node]:
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
            found |= {node, *(use.node for value in node.inputs for use in _constants_behind(value))}
        else:
            queue += [value.producer() for value in node.inputs if value is not None]
    return found


def _constants_behind(value: ir.Value | None) -> list[ir.Usage]:
    """Who reads a constant, or what it was before nodes that read nothing else changed it."""
    if value is None:
        return []
    node = value.producer()
    if node is None:
        return list(value.uses()) if value.const_value is not None and value.const_value.size > 1 else []
    behind = [each for source in node.inputs for each in _constants_behind(source)]
    only = all(_is_constant(source) for source in node.inputs)
    return [*value.uses(), *behind] if only else []


def _is_constant(value: ir.Value | None) -> bool:
    if value is None or value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and all(_is_constant(source) for source in node.inputs)


def _can_be_narrow(value: ir.Value, node: ir.Node, precision: Precision) -> bool:
    """A constant that stays what it is, or what a narrow node made."""
    if value.const_value is None:
        return value.dtype == NARROW[precision]
    sizes = np.abs(value.const_value.numpy())
    smallest = sizes[sizes > 0].min(initial=np.inf)
    # A weight may be rounded to nothing, a scale or the floor of a division must not.
    exact = sizes.ndim == 0 or node.op_type == "DequantizeLinear"
    fits: bool = sizes.max(initial=0) <= LARGEST[precision] and (not exact or smallest >= SMALLEST_NORMAL[precision])
    return fits


class _Changed:
    """Values of a graph in the other precision, each made once."""

    def __init__(self, graph: ir.Graph, narrow: ir.DataType) -> None:
        self.graph = graph
        self.narrow = narrow
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def to(self, value: ir.Value, reader: ir.Node, dtype: ir.DataType) -> ir.Value:
        """The value as `reader` needs it: a constant that is written so, or a Cast before it."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self._made:
            if value.const_value is not None:
                array = value.const_value.numpy().astype(dtype.numpy())
                made = _constant(self.graph, f"{value.name}.{dtype.name.lower()}", array)
            else:
                cast = _node("Cast", [value], None, dtype.name.lower(), value, to=int(dtype))
                cast.outputs[0].dtype = dtype
                self.graph.insert_before(reader, cast)
                made = cast.outputs[0]
            self._made[value, dtype] = made
        return self._made[value, dtype]

    def output(self, value: ir.Value) -> ir.Value:
        """A graph's output as float32, under the name that it had."""
        name = value.name
        value.name = f"{name}.{self.narrow.name.lower()}"
        cast = _node("Cast", [value], None, "float", value, to=int(ir.DataType.FLOAT))
        cast.outputs[0].dtype, cast.outputs[0].name = ir.DataType.FLOAT, name
        self.graph.append(cast)
        return cast.outputs[0]


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, *NARROW.values())


def _node(
    op_type: str, inputs: list[ir.Value | None], instead: ir.Node | None, suffix: str, like: ir.Value, **attributes: int
) -> ir.Node:
    """A node whose output has the type and shape of `like`, named after what it stands for."""
    name = f"{instead.name if instead else like.name}.{suffix}"
    node = ir.node(op_type, inputs, attributes, name=name)
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{name}.output", like.dtype, like.shape
    return node


def _replace(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    node.outputs[0].replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
