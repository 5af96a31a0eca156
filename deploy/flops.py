"""Floating-point operations of a request, counted while PyTorch runs it."""

from __future__ import annotations

import numpy as np
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deploy.bundle import Bundle
from deploy.runtimes import Runtime


def flops_by_length(runtime: Runtime, description: Bundle) -> list[float]:
    """Matrix products of one request by history length L: [a, b, c] of a + b L + c L^2, two operations a multiply-add.

    Exact, not a fit: a transformer's products are a polynomial of that degree, and three lengths determine it.

    Args:
        runtime: executes PyTorch operators.

    """
    lengths = np.unique(np.linspace(1, description.max_length, 3).astype(int))
    counts = []
    for length in lengths:
        ids = np.zeros((1, length), dtype=np.int64)
        # Fused attention on a CPU is unknown to the counter; spelled out it is two matrix products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            runtime(ids, ids)
        counts.append(counter.get_total_flops())
    coefficients = np.polyfit(lengths, counts, deg=len(lengths) - 1)[::-1]
    return [float(value) for value in np.pad(coefficients, (0, 3 - len(coefficients))).round(3)]
