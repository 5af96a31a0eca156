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
        source = graph
        if rounding.linear == "dynamic":
            source = Path(scratch) / "int8.onnx"
            _quantize_products(graph, source, linear_weights, vnni=vnni)
        elif rounding.linear == "static":
            source = Path(scratch) / "int8.onnx"
            model = onnx.load(graph)
            quantize_dequantize.insert(model, rounding.with_weight_bits(weight_bits(vnni=vnni)).maps)
            onnx.save(model, source)
        _fuse(source, lowered)


def weight_bits(*, vnni: bool) -> int:
    """Of static products; see `lower`."""
    return 8 if vnni else 7


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


def _fuse(graph: Path, fused: Path) -> None:
    """Saves what ONNX Runtime makes of the graph, so that a session finds it done.

    Constants stay unfolded: folding would write an int8 item table out as the float32 it stands for.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(fused)
    options.log_severity_level = 3
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"])
