"""A lowered graph's numbers on a CPU: float32 arithmetic, rounded wherever the graph says fp16 or bf16.

ONNX Runtime has few such kernels on a CPU, and computes in float32 what it has none for, without the rounding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def write(lowered: Path, rounded: Path) -> None:
    """Writes the twin of a graph that `tensorrt.lower` wrote: sums of products are float32 on a GPU as well."""
    model = ir.load(lowered)
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype in NARROW:
            _set(value, value.const_value.numpy())
    for node in list(graph):
        output = node.outputs[0]
        if node.op_type == "DequantizeLinear":
            integers, scales = (value.const_value.numpy().astype(np.float32) for value in node.inputs)
            shape = [-1 if axis == node.attributes["axis"].value else 1 for axis in range(integers.ndim)]
            weight = ir.Value(name=f"{output.name}.folded", type=ir.TensorType(ir.DataType.FLOAT))
            _set(weight, (integers * scales.reshape(shape)).astype(output.dtype.numpy()))
            graph.register_initializer(weight)
            output.replace_all_uses_with(weight)
        elif output.dtype in NARROW:
            _round_after(graph, node)
    RemoveUnusedNodesPass()(model)
    ir.save(model, rounded)


def _set(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
    value.dtype, value.shape = ir.DataType.FLOAT, value.const_value.shape


def _round_after(graph: ir.Graph, node: ir.Node) -> None:
    output = node.outputs[0]
    narrow, output.dtype = output.dtype, ir.DataType.FLOAT
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    uses = list(output.uses())
    down = ir.node("Cast", [output], {"to": int(narrow)}, name=f"{output.name}.rounded")
    up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{output.name}.wide")
    down.outputs[0].name, up.outputs[0].name = f"{output.name}.rounded.output", f"{output.name}.wide.output"
    down.outputs[0].dtype, up.outputs[0].dtype = narrow, ir.DataType.FLOAT
    down.outputs[0].shape = up.outputs[0].shape = output.shape
    graph.insert_after(node, (down, up))
    for use in uses:
        use.node.replace_input_with(use.idx, up.outputs[0])
