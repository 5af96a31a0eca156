"""Floating-point operations of a request's matrix products, two operations a multiply-add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compress.models.family import ServedGraph
from deploy.runtimes import Arrays


def counted(call: Callable[[], Any]) -> int:
    """Of a call that PyTorch executes."""
    # Fused attention on a CPU is unknown to the counter; spelled out it is two matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@torch.no_grad()
def polynomial(served: ServedGraph) -> dict[str, Any]:
    """Of a served graph, by the sizes of its inputs' axes.

    Exact, not a fit: a transformer's products are of degree two at most in any size, so three points of each determine
    them.

    Returns: axes, their names in order; coefficients, nested by the power of each axis' size.

    """
    names = sorted(served.axis_names)
    points = range(1, min(3, served.max_length) + 1)
    counts = np.empty((len(points),) * len(names))
    for place in product(range(len(points)), repeat=len(names)):
        sizes = {name: points[index] for name, index in zip(names, place, strict=True)}
        counts[place] = counted(partial(served, *served.example(sizes)))
    powers = np.vander(np.array(points, dtype=float), increasing=True)
    for axis in range(len(names)):
        counts = np.moveaxis(np.tensordot(np.linalg.inv(powers), counts, axes=(1, axis)), 0, axis)
    return {"axes": names, "coefficients": counts.round(3).tolist()}


def evaluated(
    described: Mapping[str, Any], axes: Mapping[str, tuple[str | int, ...]], calls: Iterable[Arrays]
) -> float:
    """What `polynomial` described, of some calls together."""
    total = 0.0
    for arrays in calls:
        sizes = {name: size for key, names in axes.items() for name, size in zip(names, arrays[key].shape, strict=True)}
        value = np.array(described["coefficients"])
        for name in described["axes"]:
            value = np.tensordot(sizes[name] ** np.arange(len(value)), value, axes=(0, 0))
        total += float(value)
    return total
