"""Multiplies parts of a model by a mask while it runs: 0 is as if they were cut, a gradient says what 1 is worth.

A: heads, F: neurons of an FFN, N: layers of all encoders together, H: width, d: width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.methods import shapes


@dataclass(frozen=True)
class Masks:
    """Of a model."""

    heads: Sequence[Tensor]
    """(A) of each layer."""
    neurons: Sequence[Tensor]
    """(F) of each layer."""
    layers_N: Tensor
    """0: a layer's input is its output."""
    hidden_H: Tensor
    """0: a LayerNorm sees the other dimensions alone."""

    @classmethod
    def ones(cls, model: PreTrainedModel, *, requires_grad: bool = False) -> Masks:
        """Nothing is masked."""

        def one(count: int) -> Tensor:
            return torch.ones(count, device=model.device, requires_grad=requires_grad)

        found = [shapes.shape(layer) for layer in shapes.layers(model)]
        return cls(
            [one(each.heads) for each in found],
            [one(each.neurons) for each in found],
            one(len(found)),
            one(model.config.hidden_size),
        )

    def all(self) -> list[Tensor]:
        """In one list."""
        return [*self.heads, *self.neurons, self.layers_N, self.hidden_H]


@contextmanager
def masked(model: PreTrainedModel, masks: Masks) -> Iterator[None]:
    """Runs the model so inside."""
    handles = []
    for place, layer in enumerate(shapes.layers(model)):
        size = layer.attention.self.attention_head_size
        mask_Ad = masks.heads[place].repeat_interleave(size)
        handles.append(layer.attention.output.dense.register_forward_pre_hook(_multiply(mask_Ad)))
        handles.append(layer.output.dense.register_forward_pre_hook(_multiply(masks.neurons[place])))
        handles.append(layer.register_forward_hook(_blend(masks.layers_N[place])))
    width = (model.config.hidden_size,)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    if masks.hidden_H.requires_grad or not bool((masks.hidden_H == 1).all()):
        handles += [
            norm.register_forward_hook(_normalize(masks.hidden_H)) for norm in norms if norm.normalized_shape == width
        ]
        poolers = [encoder.pooler for encoder in shapes.encoders(model) if encoder.pooler is not None]
        handles += [pooler.dense.register_forward_hook(_scale(masks.hidden_H)) for pooler in poolers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _multiply(mask: Tensor) -> Any:
    return lambda module, inputs: (inputs[0] * mask,)


def _scale(mask: Tensor) -> Any:
    return lambda module, inputs, output: output * mask


def _blend(mask: Tensor) -> Any:
    return lambda module, inputs, output: inputs[0] + mask * (output - inputs[0])


def _normalize(mask_H: Tensor) -> Any:
    """A LayerNorm over what the mask leaves."""

    def hook(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        share_H = mask_H / mask_H.sum()
        centred = inputs[0] - (inputs[0] * share_H).sum(dim=-1, keepdim=True)
        variance = (centred.square() * share_H).sum(dim=-1, keepdim=True)
        return (centred * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias) * mask_H

    return hook
