"""A standard graph whose products are rounded in floating point: what an int8 or fp8 graph is held to.

As `compress.methods.fake_quantization` does it in PyTorch, for where there is a bundle and no PyTorch model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compress.methods.linear_rounding import LinearRounding, Maps
from deploy.lowering.quantize_dequantize import FP8, Dialect, Stored, bias_of

FLOAT = ir.DataType.FLOAT
SIGNED = (-128.0, 127.0)


def write(graph: Path, fake: Path, maps: Maps, dialect: Dialect) -> None:
    """Writes `fake`: the standard graph with each named product's two sides put on their grids and back.

    Args:
        dialect: signed or fp8.

    """
    model = ir.load(graph)
    corrected: set[str] = set()
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        how = maps.get(weight.name or "") if weight is not None else None
        if weight is not None and weight.const_value is not None and how is not None:
            stored, bias = dialect(how, weight.const_value.numpy()), bias_of(weight.name or "")
            if stored.bias_shift.any() and bias not in corrected:  # once, however many products share the weight
                corrected.add(bias)
                value = model.graph.initializers[bias]
                assert value.const_value is not None, "it is an initializer"
                value.const_value = ir.tensor(value.const_value.numpy() + stored.bias_shift, name=bias)
            grid_IO = stored.weight_IO.astype(np.float32) * stored.weight_scales
            rounded = ir.val(f"{node.name}.weight", const_value=ir.tensor(grid_IO))
            model.graph.register_initializer(rounded)
            node.replace_input_with(1, rounded)
            node.replace_input_with(0, _on_grid(model.graph, node, how, stored))
    RemoveUnusedNodesPass()(model)
    ir.save(model, fake)


def _on_grid(graph: ir.Graph, product: ir.Node, how: LinearRounding, stored: Stored) -> ir.Value:
    """What a product reads, smoothed, rounded and put back."""
    made: list[ir.Node] = []

    def then(op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        name = f"{product.name}.{len(made)}"
        made.append(ir.node(op_type, inputs, attributes, name=name))
        made[-1].outputs[0].name = name
        return made[-1].outputs[0]

    def constant(array: object) -> ir.Value:
        tensor = ir.tensor(np.asarray(array, dtype=np.float32))
        value = ir.val(f"{product.name}.constant.{len(graph.initializers)}", const_value=tensor)
        graph.register_initializer(value)
        return value

    x = product.inputs[0]
    if how.smoothing is not None:
        x = then("Mul", x, constant(1 / how.smoothing))
    scale = constant(stored.input_scale)
    steps = then("Div", x, scale)
    if stored.weight_IO.dtype == FP8:
        narrow = then("Cast", steps, to=int(ir.DataType.FLOAT8E4M3FN))
        rounded = then("Cast", narrow, to=int(FLOAT))
    else:
        rounded = then("Clip", then("Round", steps), *map(constant, SIGNED))
    back = then("Mul", rounded, scale)
    graph.insert_before(product, made)
    return back
