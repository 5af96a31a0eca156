"""Explicit rounding in a graph: QuantizeLinear and DequantizeLinear around the products that a description names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compress.methods.linear_rounding import LinearRounding, Maps


def insert(model: onnx.ModelProto, maps: Maps) -> None:
    """Puts each named product of a standard graph between integers, in place; standard operators, from opset 13.

    Inputs are uint8, weights int8 with a scale per output. A product in the graph more than once (a cross-encoder's
    first projection, of users and of items) shares its weight. Inputs are smoothed by a product in front of the
    rounding: what comes before is read by others too. A bias is corrected where it stands.

    Args:
        maps: by the initialiser that a MatMul multiplies with; None leaves it as it is.

    """
    graph = model.graph
    rounded = {name: how for name, how in maps.items() if how is not None}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.name in rounded}
    constants: dict[str, NDArray[np.generic]] = {}
    for name, tensor in weights.items():
        constants |= _constants(name, numpy_helper.to_array(tensor), rounded[name])
        _correct_bias(graph, name, rounded[name])
    nodes = []
    for place, node in enumerate(graph.node):
        if node.op_type == "MatMul" and node.input[1] in weights:
            nodes += _rounded(node, rounded, str(place))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in weights.values():
        graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())


def _constants(name: str, weight_IO: NDArray[np.float32], how: LinearRounding) -> dict[str, NDArray[np.generic]]:
    """What the products with one weight read."""
    found: dict[str, NDArray[np.generic]] = {
        f"{name}.integers": how.weight_integers(weight_IO),
        f"{name}.scales": how.weight_scales,
        f"{name}.zero_points": np.zeros(len(how.weight_scales), dtype=np.int8),
        f"{name}.input_scale": np.array(how.input_scale, dtype=np.float32),
        f"{name}.input_zero_point": np.array(how.input_zero_point, dtype=np.uint8),
    }
    return found if how.smoothing is None else found | {f"{name}.smoothing": 1 / how.smoothing}


def _correct_bias(graph: onnx.GraphProto, name: str, how: LinearRounding) -> None:
    """Adds what `bias_shift` says to the bias that belongs to a weight by its name, in place."""
    if how.means is None:
        return
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    bias = tensors[name.removesuffix("weight.values") + "bias"]
    corrected = numpy_helper.to_array(bias) + how.bias_shift(numpy_helper.to_array(tensors[name]))
    bias.CopyFrom(numpy_helper.from_array(corrected, bias.name))


def _rounded(product: onnx.NodeProto, maps: Mapping[str, LinearRounding], place: str) -> list[onnx.NodeProto]:
    """A product and what rounds both its sides; `place` makes names of its own."""
    read, name = product.input
    nodes = []
    if maps[name].smoothing is not None:
        nodes.append(helper.make_node("Mul", [read, f"{name}.smoothing"], [f"{read}.{place}.smoothed"]))
        read = f"{read}.{place}.smoothed"
    grid = [f"{name}.input_scale", f"{name}.input_zero_point"]
    integers, back, weight = f"{read}.{place}.integers", f"{read}.{place}.rounded", f"{name}.{place}.rounded"
    nodes += [
        helper.make_node("QuantizeLinear", [read, *grid], [integers]),
        helper.make_node("DequantizeLinear", [integers, *grid], [back]),
        helper.make_node(
            "DequantizeLinear", [f"{name}.integers", f"{name}.scales", f"{name}.zero_points"], [weight], axis=1
        ),
        helper.make_node("MatMul", [back, weight], list(product.output), name=product.name),
    ]
    return nodes
