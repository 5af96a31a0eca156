"""ONNX Runtime, on the CPU or on a GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime as ort

from compress.errors import ArtifactError, RecPressError
from deploy.runtimes import Arrays, Outputs
from deploy.runtimes.shapes import Recent

SHAPES = 512
"""Shapes of calls whose memory stays bound, those used last."""


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
    """A session on a GPU; each shape of call has its inputs and outputs bound to the GPU's memory once."""

    name = "onnxruntime-cuda"
    threads = 1
    provider = "CUDAExecutionProvider"
    options: Mapping[str, str] = {"use_tf32": "0"}
    """Its own default rounds float32 products to TF32, which the others' fp32 does not."""
    memory = "cuda"

    def __init__(self, graph: Path) -> None:
        """Raises: RecPressError, one line, if this ONNX Runtime has no CUDA, or does not get it to work."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self.provider not in ort.get_available_providers():
            raise RecPressError(
                f"this onnxruntime has no {self.provider}: pip uninstall onnxruntime, then pip install onnxruntime-gpu"
            )
        if hasattr(ort, "preload_dlls"):  # CUDA and cuDNN of the nvidia packages that torch brings
            ort.preload_dlls()
        self._session = _session(graph, options, [(self.provider, dict(self.options)), "CPUExecutionProvider"])
        if self._session.get_providers()[0] != self.provider:  # it falls back in silence
            raise RecPressError(
                f"onnxruntime's {self.provider} does not load here: its CUDA or cuDNN libraries are absent; "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        self.weights_bytes = graph.stat().st_size
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._bound: Recent[_Bound] = Recent(SHAPES)

    def __call__(self, inputs: Arrays) -> Outputs:
        bound = self._bind(inputs)
        for name, array in inputs.items():
            bound.inputs[name].update_inplace(array)
        self._session.run_with_iobinding(bound.binding)
        return tuple(bound.binding.copy_outputs_to_cpu())

    def device_ms(self, inputs: Arrays, repeats: int = 20) -> float:
        """By the clock, for it has a stream of its own, and waits for it after each run. See `DeviceRuntime`."""
        binding = self._bind(inputs).binding
        self._session.run_with_iobinding(binding)
        started = time.perf_counter()
        for _ in range(repeats):
            self._session.run_with_iobinding(binding)
        return (time.perf_counter() - started) / repeats * 1e3

    def _bind(self, inputs: Arrays) -> _Bound:
        return self._bound.of(inputs, lambda: self._newly_bound(inputs))

    def _newly_bound(self, inputs: Arrays) -> _Bound:
        binding = self._session.io_binding()
        values = {name: ort.OrtValue.ortvalue_from_numpy(array, self.memory, 0) for name, array in inputs.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, self.memory, 0)
        return _Bound(binding, values)


class _Bound(NamedTuple):
    """What one shape of call reads and writes."""

    binding: ort.IOBinding
    inputs: Mapping[str, ort.OrtValue]


def _session(graph: Path, options: ort.SessionOptions, providers: Sequence[Any]) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a class per status code, with no common base but Exception
        raise ArtifactError(f"{graph}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None
