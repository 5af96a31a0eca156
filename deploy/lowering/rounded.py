"""A lowered graph's numbers on a CPU: float32 arithmetic, rounded wherever the graph says fp16 or bf16.

ONNX Runtime has few such kernels on a CPU; what it has none for it computes in float32, without the rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

FLOAT = ir.DataType.FLOAT
NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def write(lowered: Path, rounded: Path) -> None:
    """Writes the twin of a graph that `tensorrt.lower` wrote: sums inside a product are float32 on a GPU as well."""
    model = ir.load(lowered)
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype in NARROW and value.const_value is not None:
            _set(value, value.const_value.numpy())
    for node in list(graph):
        if node.op_type == "DequantizeLinear":
            # Between integers nothing is narrow: they are multiplied, and their sum is scaled in float32.
            whole = all(_multiplies_integers(reader) for reader in node.outputs[0].consumers())
            if node.inputs[0] is not None and node.inputs[0].const_value is not None:
                _fold(graph, node, FLOAT if whole else node.outputs[0].dtype or FLOAT)
            elif whole:
                node.outputs[0].dtype = FLOAT
            else:
                _round_after(graph, node)
        elif node.outputs[0].dtype in NARROW:
            _round_after(graph, node)
    RemoveUnusedNodesPass()(model)
    ir.save(model, rounded)


def _set(value: ir.Value, array: NDArray[Any]) -> None:
    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
    value.dtype, value.shape = FLOAT, ir.Shape(array.shape)


def _multiplies_integers(node: ir.Node) -> bool:
    sources = [value.producer() for value in node.inputs if value is not None]
    return node.op_type == "MatMul" and all(source and source.op_type == "DequantizeLinear" for source in sources)


def _fold(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    """A weight as its floating point: ONNX Runtime's kernels for int8 ones round what they are multiplied with."""
    integers, scales, *_ = (value.const_value.numpy() for value in node.inputs if value and value.const_value)
    axis = node.attributes["axis"].value
    shape = [-1 if place == axis else 1 for place in range(integers.ndim)]
    weight = ir.Value(name=f"{node.name}.folded", type=ir.TensorType(FLOAT))
    _set(weight, (integers.astype(np.float32) * scales.astype(np.float32).reshape(shape)).astype(dtype.numpy()))
    graph.register_initializer(weight)
    node.outputs[0].replace_all_uses_with(weight)


def _round_after(graph: ir.Graph, node: ir.Node) -> None:
    output = node.outputs[0]
    narrow, output.dtype = output.dtype or FLOAT, FLOAT
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
    uses = list(output.uses())
    down = ir.node("Cast", [output], {"to": int(narrow)}, name=f"{output.name}.rounded")
    up = ir.node("Cast", [down.outputs[0]], {"to": int(FLOAT)}, name=f"{output.name}.wide")
    for cast, dtype in ((down, narrow), (up, FLOAT)):
        cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = f"{cast.name}.output", dtype, output.shape
    graph.insert_after(node, (down, up))
    for use in uses:
        use.node.replace_input_with(use.idx, up.outputs[0])
