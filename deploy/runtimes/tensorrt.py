"""An engine of TensorRT or TensorRT-RTX on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.errors import ArtifactError, RecPressError
from deploy import engine as engines
from deploy.runtimes import Arrays, Outputs
from deploy.runtimes.shapes import STEP, Recent
from deploy.runtimes.tensorrt_api import TensorRt
from deploy.runtimes.torch_device import milliseconds

SHAPES = 32
"""Shapes of calls whose buffers and CUDA graphs are kept, those used last."""


class TensorRtEngine:
    """Of a model, the engine for this machine's GPU; each shape of call has its own buffers, recorded once, replayed.

    A call copies to the GPU, runs and copies back: what it takes is what a request waits. One call at a time: threads
    have an engine each.
    """

    name = "tensorrt"
    threads = 1
    step = STEP

    def __init__(self, folder: Path, precision: str = "fp16") -> None:
        """An engine that a build stage left.

        Args:
            folder: of the model's engines; it holds `engine.json`.
        Raises: ArtifactError if there is none for this GPU, or its file is not the one that was built; RecPressError
            if the package that built it is not here or does not load it.

        """
        made = engines.read(folder)
        built = [each for each in made.engines if each.precision == precision]
        if not built:
            raise ArtifactError(f"{folder}: no engine in {precision}; name it in the build stage's precisions")
        contents = {each.compute_capability: engines.content(folder, each) for each in built}
        if not torch.cuda.is_available():
            raise RecPressError(f"{folder}: engines run on a GPU, and there is none here")
        described = engines.for_gpu(built, torch.cuda.get_device_capability())
        if described is None:
            here = "{}.{}".format(*torch.cuda.get_device_capability())
            raise ArtifactError(f"{folder}: built for {', '.join(contents)}; this GPU is {here}; build for it")
        self.standard_sha256 = made.standard_sha256
        self.package = TensorRt(described.builder)
        plan = contents[described.compute_capability]
        self._engine = self.package.load(plan, described.file, version_compatible=described.version_compatible)
        self._memory = _workspace(self._engine)
        self.weights_bytes = described.size_bytes
        self._stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._calls: Recent[_Call] = Recent(SHAPES)
        self._profiles = described.profiles
        self._trouble = f"{folder / described.file}: outside its profile {described.profiles[-1]}"
        self.replayed: bool | None = None
        """Whether the last call was a CUDA graph's replay; None: the package records by itself, and does not tell."""

    def __call__(self, inputs: Arrays) -> Outputs:
        with torch.cuda.stream(self._stream):
            call = self._call(inputs)
            self.replayed = call.replays
            return call(inputs)

    def device_ms(self, inputs: Arrays, repeats: int = 20) -> float:
        """See `DeviceRuntime`."""
        with torch.cuda.stream(self._stream):
            return milliseconds(self._call(inputs).run, torch.device("cuda"), repeats)

    def _call(self, inputs: Arrays) -> _Call:
        return self._calls.of(inputs, lambda: self._prepared(inputs))

    def _prepared(self, inputs: Arrays) -> _Call:
        profile = engines.profile_for(self._profiles, {name: array.shape for name, array in inputs.items()})
        return _Call(self.package, self._engine, self._stream, inputs, self._trouble, profile, self._memory)


class _Call:
    """Buffers and a context for one shape: what a CUDA graph has recorded must stay where it was."""

    def __init__(
        self,
        package: TensorRt,
        engine: Any,
        stream: torch.cuda.Stream,
        inputs: Arrays,
        trouble: str,
        profile: int,
        memory: Tensor | None,
    ) -> None:
        api = package.api
        self.context, captures_itself = _context(api, engine, memory)
        self.stream = stream
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if not self.context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise RecPressError(f"profile {profile}: the engine has none of that number")
        self.outputs = [name for name in names if engine.get_tensor_mode(name) == api.TensorIOMode.OUTPUT]
        self.buffers: dict[str, Tensor] = {}
        for name, array in inputs.items():
            if not self.context.set_input_shape(name, array.shape):
                raise RecPressError(f"{name}: {array.shape} lies {trouble}; build with other batch_sizes or lengths")
            self._bind(name, array.shape, torch.from_numpy(array).dtype)
        missing = self.context.infer_shapes()
        if missing:
            raise RecPressError(f"{', '.join(missing)}: no shape follows from the inputs' shapes")
        for name in self.outputs:
            dtype = torch.int64 if engine.get_tensor_dtype(name) == api.DataType.INT64 else torch.float32
            self._bind(name, tuple(self.context.get_tensor_shape(name)), dtype)
        self.graph: torch.cuda.CUDAGraph | None = None
        self._captures_itself = captures_itself
        self._fill(inputs)
        self._enqueue()  # what is allocated or compiled on a first run may not be while a graph is recorded
        self.stream.synchronize()
        if not captures_itself:
            self._record()

    def __call__(self, inputs: Arrays) -> Outputs:
        self._fill(inputs)
        self.run()
        return tuple(self.buffers[name].cpu().numpy() for name in self.outputs)

    @property
    def replays(self) -> bool | None:
        """See `TensorRtEngine.replayed`."""
        return None if self._captures_itself else self.graph is not None

    def run(self) -> None:
        """On what the buffers hold."""
        if self.graph is None:
            self._enqueue()
        else:
            self.graph.replay()

    def _bind(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        count = torch.Size(shape).numel()
        memory = torch.empty(max(1, count), dtype=dtype, device="cuda")  # an empty tensor needs an address as well
        self.buffers[name] = memory[:count].view(shape)
        if not self.context.set_tensor_address(name, memory.data_ptr()):
            raise RecPressError(f"{name}: the engine takes no such buffer")

    def _fill(self, inputs: Arrays) -> None:
        for name, array in inputs.items():
            self.buffers[name].copy_(torch.from_numpy(array), non_blocking=True)

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise RecPressError("the engine failed; its GPU may have no memory left")

    def _record(self) -> None:
        """Records a run, unless the engine has something in it that no CUDA graph may hold."""
        able = getattr(self.context, "is_stream_capturable", None)
        if able is not None and not able(self.stream.cuda_stream):
            return
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._enqueue()
        except (RuntimeError, RecPressError):  # runs without one
            torch.cuda.synchronize()
            return
        self.graph = graph


def _workspace(engine: Any) -> Tensor | None:
    """Memory for what an engine computes in between, one for all shapes: its calls run one at a time on one stream.

    Else each shape's context has its own, as large as the largest shape needs. None of a package that cannot share.
    """
    size = getattr(engine, "device_memory_size_v2", None)
    return None if size is None else torch.empty(max(1, size), dtype=torch.uint8, device="cuda")


def _context(api: Any, engine: Any, memory: Tensor | None) -> tuple[Any, bool]:
    """A context, and whether it records its runs itself, as TensorRT-RTX does once it has compiled for the shape."""
    strategies = api.ExecutionContextAllocationStrategy
    strategy = strategies.STATIC if memory is None else strategies.USER_MANAGED
    captures_itself = hasattr(api, "CudaGraphStrategy")
    if captures_itself:
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.set_execution_context_allocation_strategy(strategy)
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context(strategy)
    if memory is not None:
        context.set_device_memory(memory.data_ptr(), memory.numel())
    return context, captures_itself
