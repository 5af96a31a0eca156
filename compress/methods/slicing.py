"""A narrower BERT that keeps some of a wider one's units: hidden dimensions, heads and their dimensions, FFN neurons.

H: width, A: heads, D: dimensions of a head, F: neurons of an FFN; small letters are what is kept of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer


@dataclass(frozen=True)
class Units:
    """Which units of a layer are kept, each in rising order."""

    hidden_h: Tensor
    queries_ad: Tensor
    """Rows of query and key, head by head."""
    values_ad: Tensor
    """Rows of value, head by head."""
    neurons_f: Tensor


def largest(sizes: Tensor, count: int) -> Tensor:
    """Places of the `count` largest along the last axis, in rising order. Raises ValueError if there are fewer."""
    if count > sizes.shape[-1]:
        raise ValueError(f"{count} of {sizes.shape[-1]} units")
    return sizes.topk(count, dim=-1).indices.sort(dim=-1).values


def hidden_sizes(bert: BertModel) -> Tensor:
    """How much embeddings vary along each hidden dimension: (H)."""
    table_VH: Tensor = bert.embeddings.word_embeddings.weight
    sizes_H: Tensor = table_VH.var(dim=0, correction=0) * bert.embeddings.LayerNorm.weight.square()
    return sizes_H


def neuron_sizes(layer: BertLayer) -> Tensor:
    """Of what goes in and out of each FFN neuron, the product of two weights' norms: (F)."""
    sizes_F: Tensor = layer.intermediate.dense.weight.norm(dim=1) * layer.output.dense.weight.norm(dim=0)
    return sizes_F


def value_sizes(layer: BertLayer) -> Tensor:
    """The same of each head's value dimensions: (A, D)."""
    attention = layer.attention.self
    sizes_AD: Tensor = attention.value.weight.norm(dim=1) * layer.attention.output.dense.weight.norm(dim=0)
    return sizes_AD.view(attention.num_attention_heads, attention.attention_head_size)


def head_sizes(layer: BertLayer) -> Tensor:
    """The same of each head: (A)."""
    return value_sizes(layer).sum(dim=1) if layer.attention.self.num_attention_heads else torch.zeros(0)


def important_units(layer: BertLayer, hidden_h: Tensor, heads: int, head_size: int, neurons: int) -> Units:
    """Of a layer by the sizes of what goes in and out of each unit: the product of two weights' norms.

    Args:
        heads, head_size, neurons: how many are kept.
    Raises: ValueError if the layer has fewer.

    """
    attention = layer.attention.self
    shape = (attention.num_attention_heads, attention.attention_head_size)
    queries_AD = (attention.query.weight.norm(dim=1) * attention.key.weight.norm(dim=1)).view(shape)
    values_AD = value_sizes(layer)
    kept_a = largest(values_AD.sum(dim=1), heads)
    offsets_a1 = kept_a[:, None] * shape[1]
    return Units(
        hidden_h,
        offsets_a1 + largest(queries_AD[kept_a], head_size),
        offsets_a1 + largest(values_AD[kept_a], head_size),
        largest(neuron_sizes(layer), neurons),
    )


@torch.no_grad()
def copy_layer(ours: BertLayer, theirs: BertLayer, units: Units) -> None:
    """The units' weights into a layer that has as many. What they do together they do as before."""
    mine, found = ours.attention.self, theirs.attention.self
    hidden_h, queries, values = units.hidden_h, units.queries_ad.flatten(), units.values_ad.flatten()
    for name, rows in (("query", queries), ("key", queries), ("value", values)):
        copy_linear(getattr(mine, name), getattr(found, name), rows, hidden_h)
    # Products are divided by the root of a head's size.
    scale = (mine.attention_head_size / found.attention_head_size) ** 0.5
    mine.query.weight.mul_(scale)
    mine.query.bias.mul_(scale)
    copy_linear(ours.attention.output.dense, theirs.attention.output.dense, hidden_h, values)
    copy_linear(ours.intermediate.dense, theirs.intermediate.dense, units.neurons_f, hidden_h)
    copy_linear(ours.output.dense, theirs.output.dense, hidden_h, units.neurons_f)
    for own, other in (
        (ours.attention.output.LayerNorm, theirs.attention.output.LayerNorm),
        (ours.output.LayerNorm, theirs.output.LayerNorm),
    ):
        copy_norm(own, other, hidden_h)


@torch.no_grad()
def copy_linear(ours: nn.Linear, theirs: nn.Linear, rows: Tensor, columns: Tensor) -> None:
    """These outputs and inputs of a linear map."""
    ours.weight.copy_(theirs.weight[rows][:, columns])
    ours.bias.copy_(theirs.bias[rows])


@torch.no_grad()
def copy_norm(ours: nn.LayerNorm, theirs: nn.LayerNorm, hidden_h: Tensor) -> None:
    """These dimensions of a LayerNorm."""
    ours.weight.copy_(theirs.weight[hidden_h])
    ours.bias.copy_(theirs.bias[hidden_h])
