"""Static scales: how every linear map of a served graph is to be rounded, found on training histories.

I: inputs of a map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from compress.data.histories import MASKED, Asked
from compress.methods.fake_quantization import FakeQuantized
from compress.methods.linear_rounding import LinearRounding, Maps
from compress.methods.ranges import Extremes, Histogram, Means, least_error_range, percentile_range, smoothing_scales
from compress.methods.rounding import Rounding
from compress.models.family import Family, ServedGraph
from compress.recipe.serving import CalibrationSection

SENSITIVITY_REQUESTS = 64

SENSITIVITY_SCORES = 2**24
"""Of all those requests at most: 128 MiB in float64. Catalogues of over 262,144 items are asked about less."""

EVERY_ITEM = 2**31
"""As many as a graph has."""


@torch.no_grad()
def calibrate(
    family: Family,
    model: PreTrainedModel,
    requests: Sequence[Asked],
    how: CalibrationSection,
    smooth: float | None,
    *,
    weight_bits: int = 8,
    per_channel: bool = True,
    bias_correction: bool = False,
) -> dict[str, LinearRounding]:
    """How each linear map is rounded, by its matrix's name.

    Args:
        requests: one user each: padding is no part of what is seen, but for candidates' texts.
        how: which range of a map's inputs is told apart.
        smooth: the share of their range that moves to the weight; None: nothing moves.
        per_channel: whether each output of a weight has a scale of its own.
        bias_correction: whether biases take back what rounding changes on average.

    """
    graph = family.serve(model, 10, Rounding()).eval()
    extremes = {name: Extremes() for name in graph.linear_maps}
    with _looking(graph, extremes):
        _ask(family, model, graph, requests, "calibration")
    smoothing = {name: _smoothing(graph, name, seen, smooth) for name, seen in extremes.items()}
    ranges = {name: seen.range(smoothing[name]) for name, seen in extremes.items()}
    if how.method != "minmax":
        counted = {name: Histogram(*ends, smoothing[name]) for name, ends in ranges.items()}
        with _looking(graph, counted):
            _ask(family, model, graph, requests, "histograms")
        by_percentile = how.method == "percentile"
        for name, counts in counted.items():
            ranges[name] = percentile_range(counts, how.percentile) if by_percentile else least_error_range(counts)
    found = {}
    for name, linear in graph.linear_maps.items():
        scales_I = smoothing[name]
        found[name] = LinearRounding.of(
            linear.weight().numpy(),
            *ranges[name],
            None if scales_I is None else scales_I.numpy(),
            weight_bits=weight_bits,
            per_channel=per_channel,
        )
    if not bias_correction:
        return found
    seen_means = {name: Means(FakeQuantized(how)) for name, how in found.items()}
    with _looking(graph, seen_means):
        _ask(family, model, graph, requests, "means")
    return {name: replace(how, means=seen_means[name].means()) for name, how in found.items()}


@torch.no_grad()
def sensitivity(
    family: Family, model: PreTrainedModel, requests: Sequence[Asked], maps: Maps
) -> tuple[dict[str, float], dict[str, float]]:
    """What rounding each map alone does to rankings, and what it saves.

    Returns: the mean KL divergence of scores from those in floating point; and a map's multiply-adds in a request, to
        which the time that integers save is close to proportional (all maps run the same kernels).
    """
    graph = family.serve(model, EVERY_ITEM, Rounding()).eval()
    count = max(1, min(len(requests), SENSITIVITY_REQUESTS, SENSITIVITY_SCORES // graph.catalogue_size))
    inputs = [tuple(family.inputs(model, requests[place]).values()) for place in range(count)]
    seen = {name: Extremes() for name in maps}
    with _looking(graph, seen):
        expected = [_log_shares(graph, each) for each in inputs]
    work = {name: seen[name].rows / count * graph.linear_maps[name].weight().numel() for name in maps}
    found = {}
    for name, how in tqdm(maps.items(), desc="sensitivity", leave=False, disable=None):
        linear = graph.linear_maps[name]
        kept = linear.weight, linear.bias, linear.input
        graph.fake_quantize({name: how})
        losses = [
            nn.functional.kl_div(_log_shares(graph, each), right, reduction="sum", log_target=True)
            for each, right in zip(inputs, expected, strict=True)
        ]
        linear.weight, linear.bias, linear.input = kept
        found[name] = float(torch.stack(losses).mean())
    return found, work


def _log_shares(graph: ServedGraph, inputs: tuple[Tensor, ...]) -> Tensor:
    """Log-softmax of one user's scores, each item or candidate in its place."""
    answer = dict(zip(graph.outputs, graph(*inputs), strict=True))
    scores = answer["scores"].flatten()
    if "items" in answer:
        items = answer["items"].flatten()
        known = items < graph.catalogue_size  # what pads lists ties with what is excluded
        scores = torch.full([graph.catalogue_size], MASKED).scatter_(0, items[known], scores[known])
    return torch.log_softmax(scores.double(), dim=0)


def _ask(family: Family, model: PreTrainedModel, graph: ServedGraph, requests: Sequence[Asked], label: str) -> None:
    for asked in tqdm(requests, desc=label, leave=False, disable=None):
        graph(*family.inputs(model, asked).values())


@contextmanager
def _looking(graph: ServedGraph, observers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Lets observers see what linear maps read."""
    for name, linear in graph.linear_maps.items():
        linear.input = observers[name]
    try:
        yield
    finally:
        for linear in graph.linear_maps.values():
            linear.input = nn.Identity()


def _smoothing(graph: ServedGraph, name: str, seen: Extremes, strength: float | None) -> Tensor | None:
    if strength is None:
        return None
    input_I = torch.maximum(seen.low_I.abs(), seen.high_I.abs())
    return smoothing_scales(input_I, graph.linear_maps[name].weight().abs().amax(dim=1), strength)
