"""Rounding to int8."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def quantize_rows(table: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Symmetric integers with a scale per row.

    Args:
        table: (rows, width), float32.
        bits: 2 to 8; the integers lie in +-(2**(bits-1) - 1).
    Returns: int8 (rows, width) and float32 scales (rows, 1); `integers * scales` is within half a scale of the table.

    """
    limit = 2 ** (bits - 1) - 1
    scales = table.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / limit
    return torch.round(table / scales).clamp(-limit, limit).to(torch.int8), scales


class DequantizedTable(nn.Module):
    """An embedding table that is stored as it is, or as int8 rows and their scales.

    The int8 form is spelled Cast * scale on constants: every runtime folds it once at load, so the file is a quarter
    and a request costs what it did.
    """

    def __init__(self, table: Tensor, storage: str) -> None:
        super().__init__()
        self.is_rounded = storage == "int8-per-row"
        if self.is_rounded:
            integers, scales = quantize_rows(table.detach())
            self.integers = nn.Parameter(integers, requires_grad=False)
            self.scales = nn.Parameter(scales, requires_grad=False)
        else:
            self.values = nn.Parameter(table.detach().clone(), requires_grad=False)

    def forward(self) -> Tensor:
        return self.integers.to(self.scales.dtype) * self.scales if self.is_rounded else self.values
