"""Single layers as graphs of their own, for a profile to time.

B: rows, L: positions, H: width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer

from compress.data.histories import MASKED
from compress.methods import shapes
from compress.methods.cutting import Kept, KeptLayer, cut
from compress.methods.rounding import Rounding
from compress.methods.shapes import LayerShape
from compress.models.encoder import FullLayer, SingleQueryLayer
from compress.models.family import Family, ServedGraph

TOP_K = 10


class LayerGraph(ServedGraph):
    """Layers of one shape in a row, each with weights of its own, as a model's: they do not all fit into a cache.

    The weights are fresh: how long products take does not depend on them.
    """

    floats = frozenset({"y"})
    outputs = ("state",)

    def __init__(self, hidden_size: int, head_size: int, shape: LayerShape, count: int, *, single: bool) -> None:
        """Args: single: at one position, as the last layer is served; then there is one."""
        super().__init__(catalogue_size=2, pad_id=1, max_length=8, top_k=1)
        self.axes = {"y": ("batch", "length", hidden_size), "padding": ("batch", "length")}  # type: ignore[misc]
        self.single = single
        self.layers = nn.ModuleList()
        for _ in range(count):
            layer = BertLayer(BertConfig(hidden_size=hidden_size, num_attention_heads=1, intermediate_size=1))
            layer.attention.self.attention_head_size, layer.attention.self.scaling = head_size, head_size**-0.5
            shapes.resize(layer, shape)
            self.layers.append((SingleQueryLayer if single else FullLayer)(layer, nn.LayerNorm(hidden_size)))

    def forward(self, y_BLH: Tensor, padding_BL: Tensor) -> tuple[Tensor]:
        mask_B1L = (padding_BL.to(y_BLH.dtype) * MASKED).unsqueeze(1)
        if self.single:
            return (self.layers[0](y_BLH, y_BLH[:, 0], mask_B1L),)
        for layer in self.layers:
            y_BLH = layer(y_BLH, mask_B1L.unsqueeze(1))
        return (y_BLH[:, 0],)


class EmptyGraph(ServedGraph):
    """What a call costs by itself."""

    floats = frozenset({"y"})
    outputs = ("state",)

    def __init__(self, hidden_size: int) -> None:
        super().__init__(catalogue_size=2, pad_id=1, max_length=8, top_k=1)
        self.axes = {"y": ("batch", "length", hidden_size)}  # type: ignore[misc]

    def forward(self, y_BLH: Tensor) -> tuple[Tensor]:
        return (y_BLH[:, 0] + 1,)


def shell(family: Family, model: PreTrainedModel) -> ServedGraph:
    """The graph of a model that has an empty last layer alone: what is served around the layers."""
    left = copy.deepcopy(model)
    depths = [len(encoder.encoder.layer) for encoder in shapes.encoders(left)]
    cut(left, Kept(tuple(layer for depth in depths for layer in ((None,) * (depth - 1) + (KeptLayer((), ()),)))))
    return family.serve(left, TOP_K, Rounding()).eval()


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
