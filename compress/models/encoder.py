"""A BERT encoder rewritten for serving: only what one scored position needs, with the same numbers.

B: batch, L: positions, H: width, A: heads, d: width of a head, F: width of the FFN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from compress.models.family import Weight


def transposed(linear: nn.Linear) -> Weight:
    """A torch linear layer as a `Weight`."""
    return Weight(linear.weight.T, linear.bias)


class FeedForward(nn.Module):
    """FFN with its residual and LayerNorm."""

    def __init__(self, layer: BertLayer) -> None:
        super().__init__()
        self.up = transposed(layer.intermediate.dense)
        self.activation = layer.intermediate.intermediate_act_fn
        self.down = transposed(layer.output.dense)
        self.norm = layer.output.LayerNorm

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.down(self.activation(self.up(x))) + x)
        return normed


class FullLayer(nn.Module):
    """A layer at every position, its query, key and value projections in one product."""

    def __init__(self, layer: BertLayer) -> None:
        super().__init__()
        attention = layer.attention.self
        self.heads = attention.num_attention_heads
        self.scaling = attention.scaling
        projections = (attention.query, attention.key, attention.value)
        self.qkv = Weight(
            torch.cat([projection.weight for projection in projections]).T,
            torch.cat([projection.bias for projection in projections]),
        )
        self.output = transposed(layer.attention.output.dense)
        self.norm = layer.attention.output.LayerNorm
        self.feed_forward = FeedForward(layer)

    def forward(self, x_BLH: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x_BLH.shape
        qkv = self.qkv(x_BLH).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query_BALd, key_BALd, value_BALd = qkv.unbind(0)
        weights_BALL = torch.softmax((query_BALd * self.scaling) @ key_BALd.transpose(2, 3) + mask, dim=-1)
        context_BLH = (weights_BALL @ value_BALd).transpose(1, 2).reshape(batch, length, -1)
        x_BLH = self.norm(self.output(context_BLH) + x_BLH)
        return self.feed_forward.forward(x_BLH)


class SingleQueryLayer(nn.Module):
    """The last layer at one position, keys and values absorbed: no projection over positions remains.

    With one query q, a head's scores are q Wk x^T: Wk goes to q's side, and what a key bias adds is the same for all
    positions and drops out of the softmax. The weights sum to 1, so Wv moves behind the sum over positions, the value
    bias into the output bias. With many heads the merged (H, A*H) products outgrow their factors, which are then kept.
    """

    def __init__(self, layer: BertLayer) -> None:
        super().__init__()
        attention = layer.attention.self
        self.heads = heads = attention.num_attention_heads
        size = attention.attention_head_size
        width = attention.query.in_features
        key_AdH = attention.key.weight.view(heads, size, width)
        value_AdH = attention.value.weight.view(heads, size, width)
        output_AdO = layer.attention.output.dense.weight.T.reshape(heads, size, -1)
        scaling = attention.scaling
        self.merged = heads * width <= 4 * size * heads
        if self.merged:
            query_HAd = attention.query.weight.T.reshape(width, heads, size)
            bias_Ad = attention.query.bias.view(heads, size)
            self.query = Weight(
                torch.einsum("iad,adj->iaj", query_HAd, key_AdH).reshape(width, -1) * scaling,
                torch.einsum("ad,adj->aj", bias_Ad, key_AdH).reshape(-1) * scaling,
            )
            value_output = torch.einsum("adj,ado->ajo", value_AdH, output_AdO).reshape(heads * width, -1)
        else:
            self.query = Weight(attention.query.weight.T * scaling, attention.query.bias * scaling)
            self.key_AdH = nn.Parameter(key_AdH.detach().clone(), requires_grad=False)
            self.value_AHd = nn.Parameter(value_AdH.transpose(1, 2).detach().contiguous(), requires_grad=False)
            value_output = layer.attention.output.dense.weight.T
        output = layer.attention.output.dense
        self.output = Weight(value_output, output.bias + output.weight @ attention.value.bias)
        self.norm = layer.attention.output.LayerNorm
        self.feed_forward = FeedForward(layer)

    def forward(self, x_BLH: Tensor, at_BH: Tensor, mask_B1L: Tensor) -> Tensor:
        """The layer's output for the query `at_BH`, one row of `x_BLH`: (B, H)."""
        query = self.query(at_BH).view(at_BH.shape[0], self.heads, -1)
        if not self.merged:
            query = (query.transpose(0, 1) @ self.key_AdH).transpose(0, 1)
        weights_BAL = torch.softmax(query @ x_BLH.transpose(1, 2) + mask_B1L, dim=-1)
        context = weights_BAL @ x_BLH
        if not self.merged:
            context = (context.transpose(0, 1) @ self.value_AHd).transpose(0, 1)
        attended_BH = self.output(context.flatten(1)) + at_BH
        return self.feed_forward.forward(self.norm(attended_BH))


class Positions(nn.Module):
    """Position and token-type embeddings in one table, right-aligned: the last position is always the last row."""

    def __init__(self, embeddings: BertEmbeddings) -> None:
        super().__init__()
        table = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        self.table_LH = nn.Parameter(table.detach().clone(), requires_grad=False)
        self.norm = embeddings.LayerNorm

    def forward(self, items_BLH: Tensor) -> Tensor:
        length = items_BLH.shape[1]
        normed: Tensor = self.norm(items_BLH + self.table_LH[self.table_LH.shape[0] - length :])
        return normed


def serving_layers(model: PreTrainedModel) -> tuple[nn.ModuleList, SingleQueryLayer]:
    """The layers of a BertModel: full ones, and the last at one query."""
    *full, last = model.encoder.layer
    return nn.ModuleList(FullLayer(layer) for layer in full), SingleQueryLayer(last)
