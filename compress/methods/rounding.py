"""Rounding to int8."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from compress.artifact import Artifact
from compress.methods import linear_rounding
from compress.methods.linear_rounding import Maps


@dataclass(frozen=True)
class Rounding:
    """Which parts of a served graph are stored as int8, as `quantize` said."""

    linear: str = "none"
    item_table: str = "none"
    maps: Maps = field(default_factory=dict, hash=False)
    """How each product is rounded, by `ServedGraph.linear_weights`; `linear: static` alone has them."""
    rounded_from: str | None = field(default=None, compare=False)
    """The stage whose model in floating point this is the rounding of, where that is known."""

    @classmethod
    def of(cls, source: Artifact) -> Rounding:
        """What a stage says of the model that it left."""
        rounding = cls(**source.metrics.get("rounding", {}), rounded_from=source.metrics.get("rounded_from"))
        if rounding.linear != "static":
            return rounding
        return replace(rounding, maps=linear_rounding.read(source.path(linear_rounding.QUANTIZATION)))

    def with_weight_bits(self, bits: int) -> Rounding:
        """The same, weights of static products in so many bits at most."""
        fewer = {name: each and each.with_weight_bits(min(bits, each.weight_bits)) for name, each in self.maps.items()}
        return replace(self, maps=fewer)

    def parts(self) -> list[str]:
        """What is int8, in words."""
        words = {"dynamic": ["products"], "static": ["static products"], "weights": ["weights"]}
        return words.get(self.linear, []) + (["item table"] if self.item_table != "none" else [])


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


@torch.no_grad()
def round_rows(table: Tensor) -> float:
    """Puts a table on its int8 grid in place, still floats. Returns the relative error that this leaves."""
    integers, scales = quantize_rows(table)
    error = float((integers * scales - table).norm() / table.norm())
    table.copy_(integers * scales)
    return error


class Stored(nn.Module):
    """A matrix that is stored as it is, or as int8 with a scale per row or column.

    The int8 form is spelled Cast * scale on constants: every runtime folds it once at load, so the file is a quarter
    and a request costs what it did.
    """

    def __init__(self, values: Tensor, storage: str = "none") -> None:
        super().__init__()
        self.is_rounded = storage != "none"
        values = values.detach()
        if storage == "int8-per-row":
            integers, scales = quantize_rows(values)
        elif storage == "int8-per-column":
            integers, scales = (part.T.contiguous() for part in quantize_rows(values.T))
        if self.is_rounded:
            self.integers = nn.Parameter(integers, requires_grad=False)
            self.scales = nn.Parameter(scales, requires_grad=False)
        else:
            self.values = nn.Parameter(values.clone().contiguous(), requires_grad=False)

    def forward(self) -> Tensor:
        return self.integers.to(self.scales.dtype) * self.scales if self.is_rounded else self.values
