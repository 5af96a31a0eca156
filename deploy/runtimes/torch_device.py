"""PyTorch on a GPU: eager, compiled, or each shape of call recorded as a CUDA graph."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.errors import RecPressError
from compress.methods.rounding import Stored
from compress.models import low_memory
from compress.models.family import Family, ServedGraph, Weight
from deploy.runtimes import Arrays, Outputs
from deploy.runtimes.shapes import STEP, Recent

Forward = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = ("fp32", "tf32", *HALVES)
"""tf32: float32 whose products have 10 bits of mantissa, on tensor cores."""

BITS = ("int8", "nf4")
"""Of the layers' matrices in bitsandbytes; the rest of the model is fp16."""

SHAPES = 512
"""Shapes of calls whose buffers and graphs are kept, those used last."""

NARROWED = {torch.int64: torch.int32}
"""How types travel to what is recorded."""

WARM_UPS = 3
"""Runs before a graph is recorded: what they allocate or choose may not be allocated or chosen while recording."""


@dataclass(frozen=True)
class How:
    """What PyTorch is told to do with a model."""

    precision: str = "fp32"
    compiled: bool = False
    recorded: bool = False
    """Each shape of call is recorded as a CUDA graph once, and replayed."""

    @property
    def runtime(self) -> str:
        """As reports name it."""
        return "torch-cudagraph" if self.recorded else "torch-compile" if self.compiled else "torch-eager"

    def __str__(self) -> str:
        return " + ".join(["compiled"] * self.compiled + ["CUDA graphs"] * self.recorded) or "eager"


class TorchDevice:
    """A model on one device. Like every runtime it takes arrays and returns arrays: a call has both transfers in it."""

    threads = 1

    def __init__(self, forward: Forward, model: nn.Module, how: How, device: str = "cuda") -> None:
        """Args: forward: from tensors on the device, by name, to its outputs; model: what it runs, for its size."""
        self.name = how.runtime
        self.device = torch.device(device)
        self.how = how
        self.weights_bytes = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
        # One compilation serves all shapes; recording is ours, so that a graph begins and ends with the call.
        self._forward = torch.compile(forward, dynamic=True) if how.compiled else forward
        self._recorded: Recent[_Recorded] = Recent(SHAPES)
        if how.recorded:
            self.step = STEP
        # Graphs run one at a time, so what one needs in between is the next one's as well.
        self._pool = torch.cuda.graph_pool_handle() if device == "cuda" else None

    @classmethod
    def plain(cls, family: Family, model: PreTrainedModel, top_k: int, how: How, device: str = "cuda") -> TorchDevice:
        """The Hugging Face model as people run it, all of it in half precision if that is asked.

        Raises: RecPressError, one line, if this machine lacks a GPU or bitsandbytes, or the precision is unknown.
        """
        _check(how, (*PRECISIONS, *BITS), device)
        half = "fp16" if how.precision in BITS else how.precision
        moved = copy.deepcopy(model).to(device, HALVES.get(half, torch.float32)).eval()
        if how.precision in BITS:
            low_memory.store(moved, how.precision)
        return cls(partial(family.plain, moved, top_k), moved, how, device)

    @classmethod
    def served(cls, graph: ServedGraph, how: How, device: str = "cuda") -> TorchDevice:
        """A served graph before it is exported; half precision is that of products with weights.

        Masks and scores stay float32: -1e9 is beyond what fp16 holds, and its last digits decide between items.
        Raises: RecPressError, one line, if this machine lacks a GPU or the precision is unknown.
        """
        _check(how, PRECISIONS, device)
        moved = copy.deepcopy(graph).eval()
        if how.precision in HALVES:
            _narrow(moved, HALVES[how.precision])
        moved.to(device)

        def forward(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            outputs: tuple[Tensor, ...] = moved(*(inputs[name] for name in moved.axes))
            return outputs

        return cls(forward, moved, how, device)

    @torch.inference_mode()
    def __call__(self, inputs: Arrays) -> Outputs:
        with self._as_told():
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            if self.how.recorded:
                return self._record(tensors)(tensors)
            moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}
            return tuple(each.cpu().numpy() for each in _widened(self._forward(moved)))

    @torch.inference_mode()
    def device_ms(self, inputs: Arrays, repeats: int = 20) -> float:
        """See `DeviceRuntime`."""
        with self._as_told():
            moved = {name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()}
            run: Callable[[], Any] = partial(self._forward, moved)
            if self.how.recorded and self._pool is not None:
                run = _graph(run, self._pool).replay
            run()
            return milliseconds(run, self.device, repeats)

    def _record(self, inputs: Mapping[str, Tensor]) -> _Recorded:
        return self._recorded.of(inputs, lambda: _Recorded(self._forward, inputs, self.device, self._pool))

    @contextlib.contextmanager
    def _as_told(self) -> Iterator[None]:
        """TF32 is a switch of the process."""
        before = torch.backends.cuda.matmul.allow_tf32
        # What a served graph does not round to half is at least not slower than it need be, and as exact as fp16.
        torch.backends.cuda.matmul.allow_tf32 = self.how.precision != "fp32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


def _check(how: How, precisions: Sequence[str], device: str) -> None:
    if how.precision not in precisions:
        raise RecPressError(f"precision {how.precision}: PyTorch runs this in {', '.join(precisions)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise RecPressError("PyTorch sees no GPU here; a CUDA build of torch and a driver are needed")


class _Narrow(nn.Module):
    """Casts what a product reads."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def _narrow(graph: ServedGraph, dtype: torch.dtype) -> None:
    """Every weight and what it multiplies in half precision, in place; adding the float32 bias makes it wide again."""
    for module in graph.modules():
        if isinstance(module, Weight):
            module.weight = Stored(module.weight().to(dtype))
            module.input = _Narrow(dtype)


class _Recorded:
    """A shape of call as it was recorded, both transfers included; on a device that records nothing it runs anew."""

    def __init__(self, forward: Forward, inputs: Mapping[str, Tensor], device: torch.device, pool: Any) -> None:
        self.forward, self.device = forward, device
        self.types = {name: tensor.dtype for name, tensor in inputs.items()}
        # Memory that a GPU reads by itself, and ids at half their width: they count rows of a table.
        pinned = device.type == "cuda"
        self.sent = {
            name: torch.empty_like(tensor, dtype=NARROWED.get(tensor.dtype, tensor.dtype), pin_memory=pinned)
            for name, tensor in inputs.items()
        }
        self._fill(inputs)
        self.received = tuple(torch.empty_like(each, device="cpu", pin_memory=pinned) for each in self._there())
        self.graph = _graph(self._run, pool) if pinned else None

    def __call__(self, inputs: Mapping[str, Tensor]) -> Outputs:
        self._fill(inputs)
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
            torch.cuda.current_stream().synchronize()
        return tuple(each.numpy().copy() for each in self.received)  # the next call writes where this one did

    def _run(self) -> None:
        for here, there in zip(self.received, self._there(), strict=True):
            here.copy_(there, non_blocking=True)

    def _fill(self, inputs: Mapping[str, Tensor]) -> None:
        for name, tensor in inputs.items():
            self.sent[name].copy_(tensor)

    def _there(self) -> tuple[Tensor, ...]:
        moved = {name: tensor.to(self.device, non_blocking=True) for name, tensor in self.sent.items()}
        return _widened(self.forward({name: tensor.to(self.types[name]) for name, tensor in moved.items()}))


def _graph(run: Callable[[], Any], pool: Any) -> torch.cuda.CUDAGraph:
    """Raises: RecPressError, one line, where what runs waits for the device on its way."""
    stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    before = torch.cuda.current_stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    before.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # a recording that broke off does not leave its own
        raise RecPressError(f"cannot be recorded as a CUDA graph: {str(error).partition(chr(10))[0]}") from None
    return graph


def _widened(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() if each.is_floating_point() else each for each in outputs)


def milliseconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Of one run, the mean of `repeats` in a row: by CUDA events on a GPU, else by the clock."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - started) / repeats * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / repeats
