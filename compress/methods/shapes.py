"""Shapes that a BertConfig cannot say: other heads and FFN widths in every layer, none at all, a width no head divides.

The record is `pruned` in config.json, beside what transformers reads there; `load` reads models that have one and
models that have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer

from compress.errors import DataError

VERSION = 1
WEIGHTS = "model.safetensors"

T = TypeVar("T")


@dataclass(frozen=True)
class LayerShape:
    """Of one layer."""

    heads: int
    neurons: int


class NoHeads(nn.Module):
    """Stands where a layer's attention has no head left: what follows adds a bias alone."""

    num_attention_heads = 0

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.attention_head_size = head_size

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return hidden_states.new_zeros(*hidden_states.shape[:-1], 0), None


def encoders(model: PreTrainedModel) -> list[BertModel]:
    """The BertModels of a recommender: one, or two where users and items have one each."""
    return [module for module in model.modules() if isinstance(module, BertModel)]


def layers(model: PreTrainedModel) -> list[BertLayer]:
    """Of all encoders, one after another."""
    return [layer for encoder in encoders(model) for layer in encoder.encoder.layer]


def by_encoder(model: PreTrainedModel, each: Sequence[T]) -> list[list[T]]:
    """Something of every layer, apart by encoder."""
    remaining = iter(each)
    return [[next(remaining) for _ in encoder.encoder.layer] for encoder in encoders(model)]


def shape(layer: BertLayer) -> LayerShape:
    """What a layer has."""
    return LayerShape(layer.attention.self.num_attention_heads, layer.intermediate.dense.out_features)


def resize(layer: BertLayer, wanted: LayerShape) -> None:
    """Gives a layer so many heads and neurons, of fresh weights."""
    attention, hidden = layer.attention.self, layer.attention.output.dense.out_features
    size = attention.attention_head_size
    if wanted.heads:
        for name in ("query", "key", "value"):
            setattr(attention, name, nn.Linear(hidden, wanted.heads * size))
        attention.num_attention_heads, attention.all_head_size = wanted.heads, wanted.heads * size
    else:
        layer.attention.self = NoHeads(size)
    layer.attention.output.dense = narrow(wanted.heads * size, hidden)
    layer.intermediate.dense = narrow(hidden, wanted.neurons)
    layer.output.dense = narrow(wanted.neurons, hidden)


def narrow(inputs: int, outputs: int) -> nn.Linear:
    """A linear map that may have no inputs or no outputs; torch warns of drawing nothing at random."""
    linear = nn.Linear(max(1, inputs), max(1, outputs))
    if not inputs or not outputs:
        linear.weight = nn.Parameter(torch.zeros(outputs, inputs))
        linear.bias = nn.Parameter(torch.zeros(outputs))
        linear.in_features, linear.out_features = inputs, outputs
    return linear


def record(model: PreTrainedModel) -> None:
    """Writes the shapes that a model has now into its config."""
    first = layers(model)[0]
    model.config.num_hidden_layers = len(encoders(model)[0].encoder.layer)
    model.config.hidden_size = first.attention.output.dense.out_features
    model.config.pruned = {
        "version": VERSION,
        "head_size": first.attention.self.attention_head_size,
        "encoders": [[asdict(shape(layer)) for layer in encoder.encoder.layer] for encoder in encoders(model)],
    }


def empty(build: Any, config: BertConfig) -> PreTrainedModel:
    """A model of the config's shapes, weights fresh.

    Args:
        build: from a config to a model of uniform layers.
    Raises: DataError if the record is of a version that this one does not know.

    """
    found = getattr(config, "pruned", None)
    if found is None:
        model: PreTrainedModel = build(config)
        return model
    if found.get("version") != VERSION:
        raise DataError(f"config.json: pruned.version: {found.get('version')}; this RecPress reads {VERSION}")
    heads, depth = config.num_attention_heads, config.num_hidden_layers
    config.num_attention_heads = 1  # BertSelfAttention wants a divisor of the width, and the layers are resized below
    config.num_hidden_layers = max(map(len, found["encoders"]))
    model = build(config)
    config.num_attention_heads, config.num_hidden_layers = heads, depth
    for encoder, described in zip(encoders(model), found["encoders"], strict=True):
        del encoder.encoder.layer[len(described) :]
        for layer, sizes in zip(encoder.encoder.layer, described, strict=True):
            attention = layer.attention.self
            attention.attention_head_size, attention.scaling = found["head_size"], found["head_size"] ** -0.5
            resize(layer, LayerShape(**sizes))
    return model


def load(build: Any, folder: Path) -> PreTrainedModel:
    """The model saved in a Hugging Face folder, pruned or not, in eval mode, in float32. Args: build: as in `empty`."""
    with torch.random.fork_rng(
        devices=[]
    ):  # what is drawn is overwritten: whoever has set a seed goes on as if nothing had been
        model = empty(build, BertConfig.from_pretrained(folder, local_files_only=True))
    safetensors.torch.load_model(model, str(folder / WEIGHTS))
    return model.eval()


def keep_rows(embedding: nn.Embedding, rows: slice | Tensor) -> None:
    """These rows of a table, in place."""
    embedding.weight = nn.Parameter(embedding.weight.detach()[rows].clone())
    embedding.num_embeddings = len(embedding.weight)


def keep_positions(encoder: BertModel, rows: slice) -> int:
    """These position embeddings of an encoder, in place; returns how many they are."""
    embeddings = encoder.embeddings
    keep_rows(embeddings.position_embeddings, rows)
    count = embeddings.position_embeddings.num_embeddings
    for name in ("position_ids", "token_type_ids"):
        setattr(embeddings, name, getattr(embeddings, name)[:, :count])
    encoder.config.max_position_embeddings = count
    return int(count)


def head_size(model: PreTrainedModel) -> int:
    """Width of a head, the same in all layers."""
    return int(layers(model)[0].attention.self.attention_head_size)
