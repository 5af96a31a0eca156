"""Single layers as graphs of their own, for a profile to time.

B: rows, L: positions, H: width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from compress.data.histories import MASKED
from compress.methods import shapes
from compress.methods.shapes import LayerShape
from compress.models.encoder import FullLayer, SingleQueryLayer
from compress.models.family import ServedGraph


class LayerGraph(ServedGraph):
    """A layer of fresh weights: how long products take does not depend on them."""

    floats = frozenset({"y"})
    outputs = ("state",)

    def __init__(self, hidden_size: int, head_size: int, shape: LayerShape, *, single: bool) -> None:
        """Args: single: at one position, as the last layer is served."""
        super().__init__(catalogue_size=2, pad_id=1, max_length=8, top_k=1)
        self.axes = {"y": ("batch", "length", hidden_size), "padding": ("batch", "length")}  # type: ignore[misc]
        layer = BertLayer(BertConfig(hidden_size=hidden_size, num_attention_heads=1, intermediate_size=1))
        layer.attention.self.attention_head_size, layer.attention.self.scaling = head_size, head_size**-0.5
        shapes.resize(layer, shape)
        self.single = single
        self.layer = (SingleQueryLayer if single else FullLayer)(layer, nn.LayerNorm(hidden_size))

    def forward(self, y_BLH: Tensor, padding_BL: Tensor) -> tuple[Tensor]:
        mask_B1L = (padding_BL.to(y_BLH.dtype) * MASKED).unsqueeze(1)
        arguments = (y_BLH[:, 0], mask_B1L) if self.single else (mask_B1L.unsqueeze(1),)
        return (self.layer(y_BLH, *arguments),)


class EmptyGraph(ServedGraph):
    """What a call costs by itself."""

    floats = frozenset({"y"})
    outputs = ("state",)

    def __init__(self, hidden_size: int) -> None:
        super().__init__(catalogue_size=2, pad_id=1, max_length=8, top_k=1)
        self.axes = {"y": ("batch", "length", hidden_size)}  # type: ignore[misc]

    def forward(self, y_BLH: Tensor) -> tuple[Tensor]:
        return (y_BLH[:, 0] + 1,)


@torch.no_grad()
def positions(served: ServedGraph, arrays: Mapping[str, NDArray[Any]]) -> int:
    """How many the layers of a graph see on these inputs."""
    seen: list[int] = []
    last = served.get_submodule("last")
    handle = last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    served(*map(torch.from_numpy, arrays.values()))
    handle.remove()
    return seen[0]


def ends_at_one_position(served: ServedGraph) -> bool:
    """Whether the last layer computes one position alone."""
    return isinstance(served.get_submodule("last"), SingleQueryLayer)
