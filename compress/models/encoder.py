"""A BERT encoder rewritten for serving: only what one scored position needs, with the same numbers.

B: batch, L: positions, H: width, A: heads, d: width of a head, F: width of the FFN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from compress.models.family import Weight


def transposed(linear: nn.Linear) -> Weight:
    """A torch linear layer as a `Weight`."""
    return Weight(linear.weight.T, linear.bias, [linear])


class FeedForward(nn.Module):
    """FFN with its residual; the LayerNorm that follows is the next layer's business.

    Pruned to no neuron at all it adds its bias.
    """

    def __init__(self, layer: BertLayer) -> None:
        super().__init__()
        self.there = layer.intermediate.dense.out_features > 0
        if self.there:
            self.up = transposed(layer.intermediate.dense)
            self.activation = layer.intermediate.intermediate_act_fn
            self.down = transposed(layer.output.dense)
        else:
            self.bias_H = nn.Parameter(layer.output.dense.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.there:
            return x + self.bias_H
        widened: Tensor = self.activation(self.up(x))
        return self.down.forward(widened) + x


class FullLayer(nn.Module):
    """A layer at every position, its query, key and value projections in one product.

    Layers hand each other y, the sum before the LayerNorm that ends them: the last one never normalises all positions.
    """

    def __init__(self, layer: BertLayer, input_norm: nn.LayerNorm) -> None:
        super().__init__()
        attention = layer.attention.self
        self.input_norm = input_norm
        self.norm = layer.attention.output.LayerNorm
        self.feed_forward = FeedForward(layer)
        self.heads = attention.num_attention_heads
        if not self.heads:  # all were pruned
            self.bias_H = nn.Parameter(layer.attention.output.dense.bias.detach().clone(), requires_grad=False)
            return
        self.size, self.scaling = attention.attention_head_size, attention.scaling
        projections = (attention.query, attention.key, attention.value)
        self.qkv = Weight(
            torch.cat([projection.weight for projection in projections]).T,
            torch.cat([projection.bias for projection in projections]),
            projections,
        )
        self.output = transposed(layer.attention.output.dense)

    def forward(self, y_BLH: Tensor, mask: Tensor) -> Tensor:
        return self.attend(*self.project(y_BLH), mask)

    def project(self, y_BLH: Tensor) -> tuple[Tensor, Tensor]:
        """What each position is by itself: normalised, and its query, key and value (B, L, 3Ad)."""
        x_BLH = self.input_norm(y_BLH)
        return x_BLH, self.qkv(x_BLH) if self.heads else x_BLH[..., :0]

    def attend(
        self, x_BLH: Tensor, projected_BLE: Tensor, mask: Tensor | None, shared_1SE: Tensor | None = None
    ) -> Tensor:
        """The rest of the layer: positions look at each other, and at others that all rows share.

        Args: mask: added to the scores of `projected_BLE`; the shared ones are seen by everybody.
        """
        if not self.heads:
            return self.feed_forward.forward(self.norm(x_BLH + self.bias_H))
        query_BALd, key_BALd, value_BALd = self._by_head(projected_BLE)
        query_BALd = query_BALd * self.scaling
        scores_BALL = query_BALd @ key_BALd.transpose(2, 3)
        if mask is not None:
            scores_BALL = scores_BALL + mask
        if shared_1SE is None:
            context_BALd = torch.softmax(scores_BALL, dim=-1) @ value_BALd
        else:  # a product with each: what is shared is not copied for every row
            _, key_1ASd, value_1ASd = self._by_head(shared_1SE)
            scores_BALS = query_BALd @ key_1ASd.transpose(2, 3)
            weights = torch.softmax(torch.cat([scores_BALS, scores_BALL], dim=-1), dim=-1)
            count = shared_1SE.shape[1]
            context_BALd = weights[..., :count] @ value_1ASd + weights[..., count:] @ value_BALd
        context_BLH = context_BALd.transpose(1, 2).flatten(2)
        return self.feed_forward.forward(self.norm(self.output(context_BLH) + x_BLH))

    def _by_head(self, projected_BLE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, A, L, d) each."""
        batch, length, _ = projected_BLE.shape
        by_head = projected_BLE.view(batch, length, 3, self.heads, self.size)  # no -1: there may be no position
        query, key, value = by_head.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


class Absorbed(NamedTuple):
    """The linear maps of a layer at one query, (in, out) each, and what else its attention multiplies with.

    With one query q, a head's scores are q Wk x^T: Wk goes to q's side, and what a key bias adds is the same for all
    positions and drops out of the softmax. The weights sum to 1, so Wv moves behind the sum over positions, the value
    bias into the output bias. x itself is LayerNorm(y) = (y - mean) / std * gain + shift: centring and gain are linear
    and go the same ways, the shift adds the same to all scores and drops out, and 1 / std, a number per position,
    scales scores and weights. With many heads the merged (H, A*H) products outgrow their factors, which are then kept.
    """

    query_HE: Tensor
    query_bias_E: Tensor
    output_EH: Tensor
    output_bias_H: Tensor
    key_AdH: Tensor | None
    """None: in the query's map."""
    value_AHd: Tensor | None
    """None: in the output's."""


def absorbed(layer: BertLayer, input_norm: nn.LayerNorm) -> Absorbed:
    """A layer that has heads, behind this LayerNorm. Its weights are read, not copied: a gradient reaches them."""
    attention, output = layer.attention.self, layer.attention.output.dense
    heads, size, width = attention.num_attention_heads, attention.attention_head_size, attention.query.in_features
    centred_HH = torch.eye(width, device=output.weight.device) - 1 / width
    normed_HH = input_norm.weight[:, None] * centred_HH  # x = y normed_HH^T / std + shift
    key_AdH = attention.key.weight.view(heads, size, width) @ normed_HH
    value_AdH = attention.value.weight.view(heads, size, width) @ normed_HH
    query_HE, query_bias_E = attention.query.weight.T * attention.scaling, attention.query.bias * attention.scaling
    value_bias = attention.value.weight @ input_norm.bias + attention.value.bias
    output_bias_H = output.bias + output.weight @ value_bias
    if width > 4 * size:
        return Absorbed(
            query_HE, query_bias_E, output.weight.T, output_bias_H, key_AdH, value_AdH.transpose(1, 2).contiguous()
        )
    by_head_HAd, bias_Ad = query_HE.reshape(width, heads, size), query_bias_E.view(heads, size)
    output_AdO = output.weight.T.reshape(heads, size, -1)
    return Absorbed(
        torch.einsum("iad,adj->iaj", by_head_HAd, key_AdH).reshape(width, -1),
        torch.einsum("ad,adj->aj", bias_Ad, key_AdH).reshape(-1),
        torch.einsum("adj,ado->ajo", value_AdH, output_AdO).reshape(heads * width, -1),
        output_bias_H,
        None,
        None,
    )


class SingleQueryLayer(nn.Module):
    """The last layer at one position: keys, values and the LayerNorm before them `Absorbed`, no position projected."""

    def __init__(self, layer: BertLayer, input_norm: nn.LayerNorm) -> None:
        super().__init__()
        self.input_norm = input_norm
        self.norm = layer.attention.output.LayerNorm
        self.feed_forward = FeedForward(layer)
        self.output_norm = layer.output.LayerNorm
        self.heads = layer.attention.self.num_attention_heads
        if not self.heads:  # all were pruned
            self.bias_H = nn.Parameter(layer.attention.output.dense.bias.detach().clone(), requires_grad=False)
            return
        maps = absorbed(layer, input_norm)
        self.merged = maps.key_AdH is None
        if maps.key_AdH is not None and maps.value_AHd is not None:
            self.key_AdH = nn.Parameter(maps.key_AdH.detach(), requires_grad=False)
            self.value_AHd = nn.Parameter(maps.value_AHd.detach(), requires_grad=False)
        self.query = Weight(maps.query_HE, maps.query_bias_E)
        self.output = Weight(maps.output_EH, maps.output_bias_H)

    def forward(self, y_BLH: Tensor, at_BH: Tensor, mask_B1L: Tensor) -> Tensor:
        """The layer's output for one row `at_BH` of `y_BLH`: (B, H)."""
        x_BH = self.input_norm(at_BH)
        attended_BH = self.norm((self.attend(y_BLH, x_BH, mask_B1L) if self.heads else self.bias_H) + x_BH)
        state_BH: Tensor = self.output_norm(self.feed_forward(attended_BH))
        return state_BH

    def attend(self, y_BLH: Tensor, x_BH: Tensor, mask_B1L: Tensor) -> Tensor:
        """What that row, normalised, sees in all positions: (B, H)."""
        mean_BL = y_BLH.mean(dim=2)
        variance_BL = ((y_BLH * y_BLH).mean(dim=2) - mean_BL * mean_BL).clamp(min=0)  # rounding may bring it below
        scale_B1L = torch.rsqrt(variance_BL + self.input_norm.eps).unsqueeze(1)
        query = self.query(x_BH).view(x_BH.shape[0], self.heads, -1)
        if not self.merged:
            query = (query.transpose(0, 1) @ self.key_AdH).transpose(0, 1)
        weights_BAL = torch.softmax(query @ y_BLH.transpose(1, 2) * scale_B1L + mask_B1L, dim=-1)
        context = (weights_BAL * scale_B1L) @ y_BLH
        if not self.merged:
            context = (context.transpose(0, 1) @ self.value_AHd).transpose(0, 1)
        seen_BH: Tensor = self.output(context.flatten(1))
        return seen_BH


class Positions(nn.Module):
    """Adds position and token type.

    Right-aligned, the last position is always the last row of the table; left-aligned, the first that is no padding is
    the first row.
    """

    def __init__(self, embeddings: BertEmbeddings, alignment: str) -> None:
        super().__init__()
        self.alignment = alignment
        table = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        self.table_LH = nn.Parameter(table.detach().clone(), requires_grad=False)

    def forward(self, items_BLH: Tensor, padding_BL: Tensor) -> Tensor:
        length = items_BLH.shape[1]
        if self.alignment == "right":
            return items_BLH + self.table_LH[self.table_LH.shape[0] - length :]
        columns_L = torch.arange(length, device=items_BLH.device)
        positions_BL = (columns_L - padding_BL.long().sum(dim=1, keepdim=True)).clamp(min=0)
        return items_BLH + nn.functional.embedding(positions_BL, self.table_LH)


def serving_layers(model: PreTrainedModel) -> tuple[nn.ModuleList, SingleQueryLayer]:
    """The layers of a BertModel: full ones, and the last at one query, each with the LayerNorm before it."""
    *full, last = model.encoder.layer
    norms = [model.embeddings.LayerNorm, *(layer.output.LayerNorm for layer in full)]
    return (
        nn.ModuleList(FullLayer(layer, norm) for layer, norm in zip(full, norms, strict=False)),
        SingleQueryLayer(last, norms[-1]),
    )
