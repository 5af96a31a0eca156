"""A GPU and what it can do at most: what a row's share of peak is a share of."""

from __future__ import annotations

import contextlib
import gc
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from compress.provenance import hardware, version
from deploy.runtimes.torch_device import milliseconds

FACTS = {
    "driver_version": "driver",
    "memory.total": "memory MiB",
    "clocks.max.sm": "largest SM clock MHz",
    "clocks.max.mem": "largest memory clock MHz",
    "power.limit": "power limit W",
    "persistence_mode": "persistence",
    "mig.mode.current": "MIG",
}
STATE = {
    "clocks.sm": "SM clock MHz",
    "clocks.mem": "memory clock MHz",
    "power.draw": "power W",
    "temperature.gpu": "temperature C",
}
"""nvidia-smi's words, and ours."""

PACKAGES = (
    *("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "bitsandbytes"),
    *("triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)

SIZES = {"cuda": (8192, 2**30), "cpu": (512, 2**24)}
"""Of square matrices, and bytes of a copy: large enough that nothing else counts, small enough for a try-out."""


def describe(device: str) -> dict[str, Any]:
    """Device, driver, limits and versions; of a GPU without nvidia-smi what torch knows."""
    facts: dict[str, Any] = {"device": device, **{key: value for key, value in hardware().items() if key != "gpu"}}
    if device == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "compute capability": "{}.{}".format(*torch.cuda.get_device_capability()),
            "CUDA": torch.version.cuda,
            **_asked(FACTS),
        }
    return facts | {"versions": {name: found for name in PACKAGES if (found := version(name)) != "absent"}}


def state(device: str) -> dict[str, str]:
    """Clocks, power and temperature as they are now; nothing where nvidia-smi is not there."""
    return _asked(STATE) if device == "cuda" else {}


def _asked(words: dict[str, str]) -> dict[str, str]:
    """What nvidia-smi says of the GPU that torch uses, which need not be its first."""
    query = ["nvidia-smi", f"--query-gpu={','.join(words)}", "--format=csv,noheader,nounits"]
    for which in (f"GPU-{getattr(torch.cuda.get_device_properties(0), 'uuid', '')}", "0"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            line = [*query, f"--id={which}"]
            said = subprocess.run(line, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            return dict(zip(words.values(), said.split(", "), strict=False))
    return {}


def peaks(device: str) -> dict[str, Any]:
    """Measured: `tflops` of products of square matrices by precision (int8: TOP/s), `copy_gb_per_s`, both ways counted.

    What PyTorch does not multiply on this device is absent.
    """
    size, length = SIZES[device]
    where = torch.device(device)
    found: dict[str, float] = {}
    for precision, product in _products(where, size):
        with contextlib.suppress(RuntimeError, NotImplementedError):  # a type that this device does not multiply
            found[precision] = 2 * size**3 / _best(product, where) / 1e9
    source, target = torch.zeros(2, length, dtype=torch.uint8, device=where)
    return {"tflops": found, "copy_gb_per_s": 2 * length / _best(partial(target.copy_, source), where) / 1e6}


def _best(run: Callable[[], Any], device: torch.device) -> float:
    """Milliseconds, after a warm-up: clocks rise with work, and a peak is the best that was seen."""
    milliseconds(run, device, 10)
    return min(milliseconds(run, device, 10) for _ in range(3))


def _products(device: torch.device, size: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    left, right = torch.rand(2, size, size, device=device)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for precision in ("fp32", "tf32") if device.type == "cuda" else ("fp32",):
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            yield precision, partial(torch.mm, left, right)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    for precision, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        yield precision, partial(torch.mm, left.to(dtype), right.to(dtype))
    eighths = [(each * 127).to(torch.int8) for each in (left, right)]
    yield "int8", partial(torch._int_mm, eighths[0], eighths[1].t())
    eighths, one = [each.to(torch.float8_e4m3fn) for each in (left, right)], torch.ones((), device=device)
    scaled = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
    yield "fp8", partial(scaled, eighths[0], eighths[1].t())


def taking(device: str, act: Callable[[], Any]) -> tuple[Any, int | None, int | None]:
    """What `act` returns; bytes of the device that stay taken after it, and that it had at most. None on a CPU.

    The most is known of PyTorch's own memory; what other libraries take and give back within the act is not seen.
    """
    if device != "cuda":
        return act(), None, None
    before, allocated = _free(), torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = act()
    peak = torch.cuda.max_memory_allocated() - allocated
    stays = max(0, before - _free())
    return result, stays, max(stays, peak)


def _free() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])
