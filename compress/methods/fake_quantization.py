"""Integers in floating point: what an int8 graph answers, found in PyTorch before there is one, and learned from.

Rounding passes its gradient on as if it were not there (the straight-through estimator of Bengio et al. 2013, arXiv
1308.3432); what is clipped has none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.methods.linear_rounding import LEVELS, LinearRounding


class FakeQuantized(nn.Module):
    """What a linear map reads, put on its grid and back.

    In the order in which ONNX's QuantizeLinear does it, dividing by the scale and rounding halves to even: a product
    with the inverse, as torch's own function has it, falls on the other side of a half now and then.
    """

    def __init__(self, how: LinearRounding) -> None:
        super().__init__()
        self.scale = how.input_scale
        self.zero_point = how.input_zero_point
        # Out in front of the map: a LayerNorm there could take no factor, its output is the residual's as well.
        self.inverse_I = None if how.smoothing is None else torch.from_numpy(1 / how.smoothing)

    def forward(self, x: Tensor) -> Tensor:
        if self.inverse_I is not None:
            x = x * self.inverse_I.to(x.device)
        integers = torch.clamp(_rounded(x / self.scale) + self.zero_point, 0, LEVELS)
        return (integers - self.zero_point) * self.scale


class FakeQuantizedByCall(nn.Module):
    """What a linear map reads, on the grid that this call's smallest and largest value span, and back.

    As ONNX's DynamicQuantizeLinear does it: one unsigned byte's grid for a whole tensor, padding and batch mates in it.
    """

    def forward(self, x: Tensor) -> Tensor:
        low, high = nn.functional.pad(x.flatten(), (0, 1)).aminmax()  # 0 lies in every range, of no value at all too
        scale = ((high - low) / LEVELS).clamp(min=torch.finfo(x.dtype).tiny)
        zero_point = torch.round(-low / scale).clamp(0, LEVELS)
        return (torch.clamp(_rounded(x / scale) + zero_point, 0, LEVELS) - zero_point) * scale


def fake_quantized_weight(weight_IO: Tensor, how: LinearRounding) -> Tensor:
    """A map's weight, smoothed, on its grid and back: (I, O), the same integers as `weight_integers`."""
    if how.smoothing is not None:
        weight_IO = weight_IO * torch.from_numpy(how.smoothing).to(weight_IO.device)[:, None]
    scales_O = torch.from_numpy(how.weight_scales).to(weight_IO.device)
    return _rounded(weight_IO / scales_O).clamp(-how.limit, how.limit) * scales_O


def _rounded(x: Tensor) -> Tensor:
    """To the nearest integer, halves to even; both sums are exact in floating point."""
    return x + (torch.round(x) - x).detach()
