"""Cuts structure out of a model: heads, FFN neurons, hidden dimensions, layers. What is left is smaller and dense.

torch-pruning (Fang et al. 2023, arXiv 2301.12900) finds which weights hang together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import nn
from transformers import BertModel, PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer

from compress.methods import shapes
from compress.methods.shapes import LayerShape, NoHeads

Places = tuple[int, ...]


@dataclass(frozen=True)
class KeptLayer:
    """What stays of a layer, in rising order."""

    heads: Places
    neurons: Places

    @property
    def shape(self) -> LayerShape:
        return LayerShape(len(self.heads), len(self.neurons))


@dataclass(frozen=True)
class Kept:
    """What stays of a model."""

    layers: tuple[KeptLayer | None, ...]
    """Of all its encoders', one after another; None for a layer that goes as a whole."""
    hidden: Places | None = None
    """Hidden dimensions, the same ones in all encoders; None for all."""


def everything(model: PreTrainedModel) -> Kept:
    """Nothing is cut."""
    found = [shapes.shape(layer) for layer in shapes.layers(model)]
    return Kept(tuple(KeptLayer(tuple(range(each.heads)), tuple(range(each.neurons))) for each in found))


def cut(model: PreTrainedModel, kept: Kept) -> None:
    """Cuts everything else, in place, and records the shapes in the model's config.

    Raises: ValueError if an encoder would be left without layers.
    """
    remaining = iter(kept.layers)
    for encoder in shapes.encoders(model):
        stays = [next(remaining) for _ in encoder.encoder.layer]
        if not any(stays):
            raise ValueError("an encoder keeps one layer at least")
        traced = model if not isinstance(model, BertModel) else encoder
        wanted = [parameter.requires_grad for parameter in traced.parameters()]
        traced.requires_grad_(requires_grad=True)  # the graph is read off what autograd would do
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        graph = tp.DependencyGraph().build_dependency(traced, example_inputs={"input_ids": ids})
        if kept.hidden is not None:
            _cut_hidden(graph, traced, encoder, kept.hidden)
        for layer, left in zip(encoder.encoder.layer, stays, strict=True):
            if left is not None:
                _cut_layer(graph, layer, left)
        layers = [layer for layer, left in zip(encoder.encoder.layer, stays, strict=True) if left is not None]
        encoder.encoder.layer = nn.ModuleList(layers)
        for place, layer in enumerate(layers):
            layer.attention.self.layer_idx = place
        for parameter, wants in zip(traced.parameters(), wanted, strict=False):
            parameter.requires_grad_(wants)
    model.tie_weights()
    shapes.record(model)


def _cut_hidden(graph: Any, traced: PreTrainedModel, encoder: BertModel, hidden: Places) -> None:
    embeddings = encoder.embeddings.word_embeddings
    gone = _others(hidden, embeddings.embedding_dim)
    _remove(graph, embeddings, tp.prune_embedding_out_channels, gone)
    if encoder.pooler is not None:  # the same dimensions of what it says, so that a width is one number
        _remove(graph, encoder.pooler.dense, tp.prune_linear_out_channels, gone)
    decoder = traced.get_output_embeddings()
    if decoder is not None:  # tied to the embeddings, which the graph does not know
        _remove(graph, decoder, tp.prune_linear_in_channels, gone)


def _cut_layer(graph: Any, layer: BertLayer, left: KeptLayer) -> None:
    attention, found = layer.attention.self, shapes.shape(layer)
    size = attention.attention_head_size
    if left.heads and len(left.heads) < found.heads:
        gone = [head * size + place for head in _others(left.heads, found.heads) for place in range(size)]
        _remove(graph, attention.query, tp.prune_linear_out_channels, gone)
        attention.num_attention_heads, attention.all_head_size = len(left.heads), len(left.heads) * size
    elif not left.heads and found.heads:
        layer.attention.self = NoHeads(size)
        layer.attention.output.dense = _bias_alone(layer.attention.output.dense)
    if left.neurons:
        _remove(graph, layer.intermediate.dense, tp.prune_linear_out_channels, _others(left.neurons, found.neurons))
    elif found.neurons:
        layer.intermediate.dense = shapes.narrow(layer.intermediate.dense.in_features, 0)
        layer.output.dense = _bias_alone(layer.output.dense)


def _remove(graph: Any, module: nn.Module, by: Callable[..., Any], gone: Sequence[int]) -> None:
    """These channels, and all that hangs together with them."""
    if gone:
        graph.get_pruning_group(module, by, idxs=list(gone)).prune()


def _bias_alone(linear: nn.Linear) -> nn.Linear:
    """A map whose inputs are gone."""
    left = shapes.narrow(0, linear.out_features)
    left.bias = linear.bias
    return left


def _others(kept: Sequence[int], count: int) -> list[int]:
    return sorted(set(range(count)) - set(kept))
