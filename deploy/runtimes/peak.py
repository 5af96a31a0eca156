"""How fast this machine multiplies matrices at most: what a latency's share of peak is measured against."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper


def peak_gflops(threads: int, seconds: float = 0.4) -> float:
    """The best float32 matrix product of all runtimes, in GFLOP/s.

    All, because they differ: one library's kernels for a processor may reach twice another's.
    """
    torch.set_num_threads(threads)
    best = 0.0
    for size in (512, 1024):
        left, right = torch.rand(size, size), torch.rand(size, size)
        for product in (partial(torch.mm, left, right), _onnxruntime_product(left.numpy(), right.numpy(), threads)):
            best = max(best, 2 * size**3 / _shortest(product, seconds / 4) / 1e9)
    return best


def _onnxruntime_product(left: Any, right: Any, threads: int) -> Callable[[], Any]:
    square = list(np.shape(left))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, square) for name in "ab"]
    outputs = [helper.make_tensor_value_info("c", TensorProto.FLOAT, square)]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": left, "b": right})


def _shortest(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of the fastest of as many calls as fit."""
    best = float("inf")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best
