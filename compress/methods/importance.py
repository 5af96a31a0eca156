"""How much a model would miss each of its units: heads, FFN neurons, layers, hidden dimensions.

A: heads, F: neurons of an FFN, N: layers of all encoders together, H: width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from compress.methods import shapes, slicing
from compress.methods.cutting import Kept, KeptLayer
from compress.methods.masks import Masks, masked
from compress.methods.slicing import largest

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """What cutting each unit costs, >= 0; within one kind of unit what several cost is their sum."""

    heads: list[Values]
    """(A) of each layer."""
    neurons: list[Values]
    """(F) of each layer."""
    layers_N: Values
    hidden_H: Values

    @property
    def total(self) -> float:
        """Of all heads and neurons."""
        return float(sum(map(np.sum, (*self.heads, *self.neurons))))

    def narrowing_loss(self, hidden: int) -> float:
        """What cutting the width to so many dimensions costs."""
        return float(np.sort(self.hidden_H)[: len(self.hidden_H) - hidden].sum())

    def keep(self, wanted: list[tuple[int, int] | None], hidden: int | None = None) -> Kept:
        """The most important ones. Args: wanted: heads and neurons of each layer; None: it goes."""
        layers = [
            None if sizes is None else KeptLayer(_best(heads, sizes[0]), _best(neurons, sizes[1]))
            for sizes, heads, neurons in zip(wanted, self.heads, self.neurons, strict=True)
        ]
        return Kept(tuple(layers), None if hidden is None else _best(self.hidden_H, hidden))


def _best(values: Values, count: int) -> tuple[int, ...]:
    return tuple(largest(torch.from_numpy(values), count).tolist())


def magnitude(model: PreTrainedModel) -> Importance:
    """The product of the norms of what goes in and out; each layer's heads, and neurons, sum to 1."""
    heads, neurons = [], []
    for layer in shapes.layers(model):
        heads.append(_shares(slicing.head_sizes(layer)))
        neurons.append(_shares(slicing.neuron_sizes(layer)))
    table = sum(slicing.hidden_sizes(encoder) for encoder in shapes.encoders(model))
    return Importance(heads, neurons, np.full(len(heads), 2.0), _shares(table))


def chance(model: PreTrainedModel, seed: int) -> Importance:
    """Drawn at random; each layer's heads, and neurons, sum to 1."""
    random = np.random.default_rng(seed)

    def drawn(count: int) -> Values:
        values: Values = random.random(count)
        shares: Values = values / max(values.sum(), 1e-12)
        return shares

    found = [shapes.shape(layer) for layer in shapes.layers(model)]
    return Importance(
        [drawn(each.heads) for each in found],
        [drawn(each.neurons) for each in found],
        np.full(len(found), 2.0),
        drawn(model.config.hidden_size),
    )


def taylor(model: PreTrainedModel, examples: Iterable[Any], loss: Callable[[Any], Tensor]) -> Importance:
    """First order: the size of a mask's mean gradient, over examples (Molchanov et al. 2017, arXiv 1611.06440)."""
    return _of_gradients(model, examples, loss, lambda gradient: gradient.double(), torch.abs)


def fisher(model: PreTrainedModel, examples: Iterable[Any], loss: Callable[[Any], Tensor]) -> Importance:
    """Second order: half the mean square of a mask's gradient, the diagonal of the empirical Fisher information.

    Args:
        examples: batches of one; of several where an example's negatives are the other ones' items.
        loss: of one of them, a scalar.
    Source: Kwon et al. 2022, section 4.1 (arXiv 2204.09656).

    """
    return _of_gradients(model, examples, loss, lambda gradient: gradient.double().square() / 2, lambda mean: mean)


def _of_gradients(
    model: PreTrainedModel,
    examples: Iterable[Any],
    loss: Callable[[Any], Tensor],
    of_one: Callable[[Tensor], Tensor],
    of_mean: Callable[[Tensor], Tensor],
) -> Importance:
    masks = Masks.ones(model, requires_grad=True)
    sums = [torch.zeros_like(mask, dtype=torch.float64) for mask in masks.all()]
    count = 0
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(requires_grad=False)  # the masks' gradients alone: half of a backward pass
    try:
        with masked(model, masks):
            for example in examples:
                gradients = torch.autograd.grad(loss(example), masks.all(), allow_unused=True)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:  # a layer without heads has no mask that matters
                        total += of_one(gradient)
                count += 1
    finally:
        for parameter, wants in zip(model.parameters(), wanted, strict=True):
            parameter.requires_grad_(wants)
    values = [of_mean(total / max(count, 1)).cpu().numpy() for total in sums]
    depth = len(masks.heads)
    return Importance(values[:depth], values[depth : 2 * depth], values[-2], values[-1])


def _shares(sizes: Any) -> Values:
    values: Values = sizes.detach().double().cpu().numpy()
    shares: Values = values / max(values.sum(), 1e-12)
    return shares
