"""A graph computed node by node, as it is written: to compare what two graphs say, not what a runtime makes of them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from deploy.runtimes import Arrays, Outputs


class AsWritten:
    """ONNX Runtime without fusions, whose last digits let an integer fall on the other side of a half.

    In a MiniLM of six layers that moved scores by a quarter of their spread; as written, not a bit differed.
    """

    name = "onnxruntime-cpu"
    threads = 1

    def __init__(self, graph: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Arrays) -> Outputs:
        return tuple(self._session.run(None, inputs))
