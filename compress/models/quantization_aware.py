"""Quantization-aware training: a model runs with the integers of its served graph, and learns to live with them.

Jacob et al. 2018 (arXiv 1712.05877). Where fake quantization attaches, the served graph says: its maps name the layers
that they are made of, and these round in training what the map rounds. The last layer's maps are products of two of a
model's; it runs in that absorbed form at every position, so what is learned is what is served, and no `if family`.

Inputs keep their calibrated scales; weights' follow the weights from step to step, by the rule of calibration (largest
magnitude). Scales that are learned (LSQ, arXiv 1902.08153) would be one more thing to tune.

NVIDIA ModelOpt's quantizers sit on torch's linear layers: the absorbed maps are none, and its Q/DQ leaves through the
legacy exporter alone, which writes no served graph.

B: batch, L: positions, Q: those that are computed, H: width, A: heads, d: width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer

from compress.data.histories import MASKED
from compress.methods.fake_quantization import FakeQuantized, fake_quantized_weight
from compress.methods.linear_rounding import LinearRounding, Maps
from compress.methods.rounding import Rounding
from compress.models.encoder import SingleQueryLayer, absorbed
from compress.models.family import Family, ServedGraph
from compress.models.last_layer import picked, put_back, seen_from


class QuantizationAware:
    """How a model's products are rounded while it learns.

    Args:
        rounding: of its served graph's maps, as calibrated. Their bias corrections are dropped: biases learn.

    """

    def __init__(self, family: Family, model: PreTrainedModel, rounding: Rounding) -> None:
        self.family = family
        self.model = model
        self.item_table = rounding.item_table
        graph = family.serve(model, 1, Rounding())
        self._maps = {name: _Map(how and replace(how, means=None)) for name, how in rounding.maps.items()}
        self._forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        for name, linear in graph.linear_maps.items():
            starts = torch.tensor([0, *(each.out_features for each in linear.made_of)]).cumsum(0).tolist()
            for layer, start, end in zip(linear.made_of, starts, starts[1:], strict=False):
                part = partial(_part, linear.made_of, self._maps[name], slice(start, end))
                self._forwards.append((layer, part))
        self._norms: list[tuple[nn.LayerNorm, _AbsorbedLayer]] = []
        for prefix, layer, single in _single_queries(graph, model):
            query, output = (self._maps[f"{prefix}.{own}.weight.values"] for own in ("query", "output"))
            running = _AbsorbedLayer(layer, single.input_norm, query, output)
            self._forwards.append((layer, running))
            self._norms.append((single.input_norm, running))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the model's products are rounded, with gradients as if they were not, and nothing is dropped out.

        Rounding is noise enough: with dropout 0.2 a student ended no closer to its floating point than it had begun.
        """
        dropouts = [(module, module.p) for module in self.model.modules() if isinstance(module, nn.Dropout)]
        for dropout, _ in dropouts:
            dropout.p = 0.0
        handles = [norm.register_forward_pre_hook(layer.look) for norm, layer in self._norms]
        for module, forward in self._forwards:
            module.forward = forward
        try:
            yield
        finally:
            for dropout, share in dropouts:
                dropout.p = share
            for module, _ in self._forwards:
                del module.forward
            for handle in handles:
                handle.remove()

    def rounding(self) -> Rounding:
        """What the model as it is now is served with."""
        with torch.no_grad():
            graph = self.family.serve(self.model, 1, Rounding())
            weights = {name: linear.weight().cpu().numpy() for name, linear in graph.linear_maps.items()}
        maps: Maps = {name: own.how and own.how.refitted(weights[name]) for name, own in self._maps.items()}
        return Rounding("static", self.item_table, maps)


@contextmanager
def in_floating_point(model: nn.Module) -> Iterator[None]:
    """Inside, a part of a model that runs rounded does not: what of it is served as constants."""
    lifted = [(module, vars(module).pop("forward")) for module in model.modules() if "forward" in vars(module)]
    try:
        yield
    finally:
        for module, forward in lifted:
            module.forward = forward


class _Map:
    """x W + b of integers. Args: how: None: in floating point."""

    def __init__(self, how: LinearRounding | None) -> None:
        self.how = how
        self.input = nn.Identity() if how is None else FakeQuantized(how)

    def weight(self, weight_IO: Tensor) -> Tensor:
        if self.how is None:
            return weight_IO
        return fake_quantized_weight(weight_IO, self.how.refitted(weight_IO.detach().cpu().numpy()))

    def __call__(self, x: Tensor, weight_IO: Tensor, bias_O: Tensor) -> Tensor:
        product: Tensor = self.input(x) @ self.weight(weight_IO) + bias_O
        return product


def _part(made_of: Sequence[nn.Linear], rounded: _Map, outputs: slice, x: Tensor) -> Tensor:
    """What one of the layers that a map is made of says: these outputs of it."""
    weight_IO = torch.cat([each.weight for each in made_of]).T
    bias_O = torch.cat([each.bias for each in made_of])
    return functional.linear(rounded.input(x), rounded.weight(weight_IO)[:, outputs].T, bias_O[outputs])


def _single_queries(graph: ServedGraph, model: PreTrainedModel) -> Iterator[tuple[str, BertLayer, SingleQueryLayer]]:
    """Layers of the model that are served at one query, if they have heads, and their names in the graph."""
    layers = {id(module.output.LayerNorm): module for module in model.modules() if isinstance(module, BertLayer)}
    for name, module in graph.named_modules():
        if isinstance(module, SingleQueryLayer) and module.heads:
            yield name, layers[id(module.output_norm)], module


class _AbsorbedLayer:
    """A layer's forward as `SingleQueryLayer` computes it, at as many positions as asked for."""

    def __init__(self, layer: BertLayer, input_norm: nn.LayerNorm, query: _Map, output: _Map) -> None:
        self.layer = layer
        self.input_norm = input_norm
        self.query = query
        self.output = output
        self.y_BLH = torch.empty(0)

    def look(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keeps what the LayerNorm in front is about to read: keys and values are made of that."""
        (self.y_BLH,) = inputs

    def __call__(
        self, x_BLH: Tensor, mask: Tensor | None = None, *_: Any, at_BQ: Tensor | None = None, **__: Any
    ) -> Tensor:
        """The layer's output, (B, L, H). Args: at_BQ: who alone is computed; see `only_at`."""
        seen = self._mask(mask, x_BLH)
        if at_BQ is None:
            return self._states(x_BLH, seen)
        return put_back(x_BLH, at_BQ, self._states(picked(x_BLH, at_BQ), seen_from(seen, at_BQ)))

    def _states(self, x_BQH: Tensor, mask: Tensor) -> Tensor:
        attention, output = self.layer.attention.self, self.layer.attention.output
        maps, y_BLH = absorbed(self.layer, self.input_norm), self.y_BLH
        query = self.query(x_BQH, maps.query_HE, maps.query_bias_E)
        query = query.view(*x_BQH.shape[:2], attention.num_attention_heads, -1)
        if maps.key_AdH is not None:
            query = torch.einsum("bqad,adh->bqah", query, maps.key_AdH)
        scale_B11L = torch.rsqrt(y_BLH.var(dim=2, correction=0) + self.input_norm.eps)[:, None, None]
        scores_BAQL = torch.einsum("bqah,blh->baql", query, y_BLH) * scale_B11L
        weights_BAQL = torch.softmax(scores_BAQL + mask, dim=-1)
        weights_BAQL = functional.dropout(weights_BAQL, attention.dropout.p, attention.training)
        context = torch.einsum("baql,blh->bqah", weights_BAQL * scale_B11L, y_BLH)
        if maps.value_AHd is not None:
            context = torch.einsum("bqah,ahd->bqad", context, maps.value_AHd)
        seen_BQH = self.output(context.flatten(2), maps.output_EH, maps.output_bias_H)
        attended_BQH = output.LayerNorm(output.dropout(seen_BQH) + x_BQH)
        state_BQH: Tensor = self.layer.output(self.layer.intermediate(attended_BQH), attended_BQH)
        return state_BQH

    def _mask(self, mask: Tensor | None, x_BLH: Tensor) -> Tensor:
        """What is added to scores, (B or 1, 1, L or 1, L), of any mask that transformers hands to its attention."""
        length = x_BLH.shape[1]
        if mask is None:  # nothing is padded; who is causal knows it by himself
            open_LL = torch.ones(length, length, dtype=torch.bool, device=x_BLH.device)
            mask = (open_LL.tril() if self.layer.attention.self.is_causal else open_LL)[None, None]
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=x_BLH.dtype).masked_fill(~mask, MASKED)
        return mask.expand(-1, -1, length, -1)
