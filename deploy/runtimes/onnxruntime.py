"""ONNX Runtime, on the CPU or on a GPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from compress.errors import ArtifactError, RecPressError
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
        self._session = _session(graph, options, ["CPUExecutionProvider"])

    def __call__(self, inputs: Arrays) -> Outputs:
        return tuple(self._session.run(None, inputs))


class OnnxRuntimeCuda:
    """A session on a GPU; inputs and outputs are bound to its memory, and a call copies them there and back."""

    name = "onnxruntime-cuda"
    threads = 1
    provider = "CUDAExecutionProvider"
    memory = "cuda"

    def __init__(self, graph: Path) -> None:
        """Raises: RecPressError if this ONNX Runtime has no CUDA, or does not get it to work."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self.provider not in ort.get_available_providers():
            raise RecPressError(
                "this onnxruntime has no CUDA provider: pip uninstall onnxruntime, then pip install onnxruntime-gpu"
            )
        self._session = _session(graph, options, [self.provider, "CPUExecutionProvider"])
        if self._session.get_providers()[0] != self.provider:  # it falls back in silence
            raise RecPressError(
                "onnxruntime's CUDA provider does not load here: its CUDA or cuDNN libraries are absent"
            )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Arrays) -> Outputs:
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self.memory, 0))
        for name in self._outputs:
            binding.bind_output(name, self.memory, 0)
        self._session.run_with_iobinding(binding)
        return tuple(binding.copy_outputs_to_cpu())


def _session(graph: Path, options: ort.SessionOptions, providers: list[str]) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a class per status code, with no common base but Exception
        raise ArtifactError(f"{graph}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None
