"""ONNX Runtime on a CPU: int8 products where asked, then its own fusions, done once and saved."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnxruntime as ort
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from deploy.lowering import quantize_dequantize

if TYPE_CHECKING:  # a graph is lowered without torch
    from compress.methods.rounding import Rounding


def lower(graph: Path, lowered: Path, rounding: Rounding, linear_weights: Collection[str], *, vnni: bool) -> None:
    """Writes `lowered`, the same recommender for this target.

    Args:
        graph: the standard graph.
        rounding: what `quantize` said.
        linear_weights: initialisers that `rounding.linear` may turn into int8.
        vnni: whether the processor multiplies int8 without saturating; else weights get 7 bits (AVX2's products of
            unsigned and signed bytes overflow 16 bits).

    """
    with tempfile.TemporaryDirectory(dir=lowered.parent) as scratch:
        rounded = Path(scratch) / "int8.onnx"
        if rounding.linear == "dynamic":
            _quantize_products(graph, rounded, linear_weights, vnni=vnni)
            _fuse(rounded, lowered)
        elif rounding.linear == "static":
            model = onnx.load(graph)
            quantize_dequantize.insert(model, as_multiplied(rounding, vnni=vnni).maps)
            onnx.save(model, rounded)
            # A MatMul and its bias would become a Gemm, for whose floating-point result there is no integer kernel.
            _fuse(rounded, lowered, "MatMulAddFusion")
            _fuse_biases(lowered)
        else:
            _fuse(graph, lowered)


def as_multiplied(rounding: Rounding, *, vnni: bool) -> Rounding:
    """What the products of such a processor are: weights of static ones in 8 bits or 7; see `lower`."""
    return rounding.with_weight_bits(8 if vnni else 7)


def _quantize_products(graph: Path, quantized: Path, linear_weights: Collection[str], *, vnni: bool) -> None:
    model = onnx.load(graph)
    add_pre_process_metadata(model)  # the exporter has inferred all shapes: nothing is left of what it would advise
    named = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in linear_weights]
    quantize_dynamic(
        model,
        quantized,
        op_types_to_quantize=["MatMul"],
        nodes_to_quantize=named,
        per_channel=True,
        reduce_range=not vnni,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _fuse(graph: Path, fused: Path, *disabled: str) -> None:
    """Saves what ONNX Runtime makes of the graph, so that a session finds it done.

    Constants stay unfolded: folding would write an int8 item table out as the float32 it stands for.

    Args:
        disabled: fusions that are left out besides.

    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(fused)
    options.log_severity_level = 3
    without = ["ConstantFolding", *disabled]
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=without)


def _fuse_biases(graph: Path) -> None:
    """Lets integer products add their biases, in place, where ONNX Runtime leaves that to a node or to a Gelu.

    Dynamic products add theirs; without this static ones were 2% slower, with it they are 1.5% faster (two layers 384
    wide, 64 tokens, batch 32, one thread).
    """
    model = onnx.load(graph)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for product in [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]:
        (sum_, *others) = readers[product.output[0]]
        biases = [name for name in sum_.input if shapes.get(name) == shapes[product.input[1]][1:]]
        if others or sum_.op_type not in ("Add", "BiasGelu") or not biases or len(product.input) != 6:
            continue  # read elsewhere too, or without a place for a bias behind its scales and zero points
        product.input.append(biases[0])
        if sum_.op_type == "BiasGelu":
            sum_.op_type = "Gelu"
            sum_.input[:] = product.output
        else:
            product.output[:] = sum_.output
            model.graph.node.remove(sum_)
    onnx.save(model, graph)
