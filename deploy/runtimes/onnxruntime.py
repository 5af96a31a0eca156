"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from compress.errors import ArtifactError
from deploy.runtimes import Arrays, Outputs


class OnnxRuntimeCpu:
    """A session with a fixed number of threads."""

    name = "onnxruntime-cpu"

    def __init__(self, graph: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Between requests the waiting threads leave the processor to whoever shares it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.threads = threads
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a class per status code, with no common base but Exception
            raise ArtifactError(f"{graph}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None

    def __call__(self, inputs: Arrays) -> Outputs:
        return tuple(self._session.run(None, inputs))
