"""Explicit rounding in a graph: QuantizeLinear and DequantizeLinear around the products that a description names.

One description, a dialect per target: `unsigned` is ONNX Runtime's on a CPU, `signed` and `fp8` are TensorRT's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compress.methods.linear_rounding import Floats, LinearRounding, Maps, half_at_least

FP8 = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.FLOAT8E4M3FN)
FP8_LARGEST = 448.0
"""Of E4M3 (Micikevicius et al. 2022, arXiv 2209.05433); it has no infinity."""


class Stored(NamedTuple):
    """A product's grids in a target's types. I: its inputs, O: its outputs."""

    weight_IO: NDArray[Any]
    weight_scales: Floats
    """(O)."""
    input_scale: float
    input_zero_point: NDArray[Any]
    """Of one number, which says the type of what is read too."""
    bias_shift: Floats
    """(O), what its bias takes."""


Dialect = Callable[[LinearRounding, Floats], Stored]


def unsigned(how: LinearRounding, weight_IO: Floats) -> Stored:
    """Inputs uint8, wherever their 0 lies."""
    zero_point = np.array(how.input_zero_point, dtype=np.uint8)
    shift_O = how.bias_shift(weight_IO)
    return Stored(how.weight_integers(weight_IO), how.weight_scales, how.input_scale, zero_point, shift_O)


def signed(how: LinearRounding, weight_IO: Floats) -> Stored:
    """Inputs int8 around 0."""
    even = how.symmetric()
    integers_IO, zero_point = even.weight_integers(weight_IO), np.zeros((), dtype=np.int8)
    return Stored(integers_IO, even.weight_scales, even.input_scale, zero_point, even.bias_shift(weight_IO))


def fp8(how: LinearRounding, weight_IO: Floats) -> Stored:
    """Both sides E4M3, the largest number of each range its largest."""
    scale = float(half_at_least(np.array(how.largest_input / FP8_LARGEST)))
    weight_scales = half_at_least(how.largest_weights / np.float32(FP8_LARGEST))
    steps_IO = (how.smoothed_weight(weight_IO) / weight_scales).clip(-FP8_LARGEST, FP8_LARGEST)
    no_shift_O = np.zeros_like(weight_scales)  # its steps are finer where most weights are: errors even out
    return Stored(steps_IO.astype(FP8), weight_scales, scale, np.zeros((), dtype=FP8), no_shift_O)


def insert(model: onnx.ModelProto, maps: Maps, dialect: Dialect = unsigned) -> None:
    """Puts each named product of a standard graph between rounded numbers, in place; operators are ONNX's own.

    Weights have a scale per output. A product in the graph more than once (a cross-encoder's first projection, of
    users and of items) shares its weight. Inputs are smoothed by a product in front of the rounding: what comes before
    is read by others too. A bias is corrected where it stands.

    Args:
        maps: by the initialiser that a MatMul multiplies with; None leaves it as it is.
        dialect: uint8 and int8 need opset 13, E4M3 19.

    """
    graph = model.graph
    rounded = {name: how for name, how in maps.items() if how is not None}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.name in rounded}
    constants: dict[str, NDArray[Any]] = {}
    biases: dict[str, Floats] = {}
    for name, tensor in weights.items():
        stored = dialect(rounded[name], numpy_helper.to_array(tensor))
        constants |= _constants(name, stored, rounded[name].smoothing)
        if stored.bias_shift.any():
            biases[bias_of(name)] = stored.bias_shift
    for bias in [tensor for tensor in graph.initializer if tensor.name in biases]:
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + biases[bias.name], bias.name))
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


def _constants(name: str, stored: Stored, smoothing: Floats | None) -> dict[str, NDArray[Any]]:
    """What the products with one weight read."""
    found: dict[str, NDArray[Any]] = {
        f"{name}.integers": stored.weight_IO,
        f"{name}.scales": stored.weight_scales,
        f"{name}.zero_points": np.zeros(len(stored.weight_scales), dtype=stored.weight_IO.dtype),
        f"{name}.input_scale": np.array(stored.input_scale, dtype=np.float32),
        f"{name}.input_zero_point": stored.input_zero_point,
    }
    return found if smoothing is None else found | {f"{name}.smoothing": 1 / smoothing}


def bias_of(weight: str) -> str:
    """The name of the bias that belongs to a linear map's weight."""
    return weight.removesuffix("weight.values") + "bias"


def _rounded(product: onnx.NodeProto, maps: Mapping[str, LinearRounding], place: str) -> list[onnx.NodeProto]:
    """A product and what rounds both its sides; `place` makes names of its own."""
    read, name = product.input
    nodes = []
    if maps[name].smoothing is not None:
        nodes.append(_node("Mul", [read, f"{name}.smoothing"], f"{read}.{place}.smoothed"))
        read = f"{read}.{place}.smoothed"
    grid = [f"{name}.input_scale", f"{name}.input_zero_point"]
    integers, back, weight = f"{read}.{place}.integers", f"{read}.{place}.rounded", f"{name}.{place}.rounded"
    return [
        *nodes,
        _node("QuantizeLinear", [read, *grid], integers),
        _node("DequantizeLinear", [integers, *grid], back),
        _node("DequantizeLinear", [f"{name}.integers", f"{name}.scales", f"{name}.zero_points"], weight, axis=1),
        helper.make_node("MatMul", [back, weight], list(product.output), name=product.name),
    ]


def _node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=output, **attributes)
