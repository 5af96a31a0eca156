"""Least squares after a cut: what remains of each layer is fitted to what the whole layer said.

Kwon et al. 2022, section 4.3 (arXiv 2204.09656), scale each unit that is left; here the maps behind them are fitted,
which holds their scales and more.

T: real positions of all texts, X: what goes into a map (head or neuron outputs), H: width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer

from compress.methods import shapes
from compress.methods.cutting import Kept


@dataclass
class _Text:
    """A batch of texts on its way through the layers of both models."""

    whole_BLH: Tensor
    cut_BLH: Tensor
    mask: Tensor | None
    """Which positions see which, as every layer is told."""
    real_BL: Tensor


@torch.no_grad()
def refit(
    whole: PreTrainedModel,
    cut: PreTrainedModel,
    kept: Kept,
    batches: Iterable[Any],
    run: Callable[[PreTrainedModel, Any], Any],
    ridge: float,
) -> None:
    """Fits the maps behind heads and neurons of a model that was `cut` from a `whole` one, in place.

    From the first layer to the last, each to what the whole model has there, so that an error made before is made good.

    Args:
        run: calls a model on a batch.
        ridge: of the mean squared input: keeps a map near what it was.

    """
    hidden = list(kept.hidden) if kept.hidden is not None else list(range(whole.config.hidden_size))
    texts = [_paired(whole, cut, batch, run) for batch in batches]
    remaining = iter(kept.layers)
    for place, (theirs, ours) in enumerate(zip(shapes.encoders(whole), shapes.encoders(cut), strict=True)):
        here = [text for batch in texts for text in batch[place]]
        left = iter(ours.encoder.layer)
        for layer in theirs.encoder.layer:
            _advance(layer, None if next(remaining) is None else next(left), here, hidden, ridge)


def _advance(whole: BertLayer, cut: BertLayer | None, texts: list[_Text], hidden: list[int], ridge: float) -> None:
    """One layer of the whole model and what is left of it, on all texts."""
    if cut is not None:
        _fit_attention(whole, cut, texts, hidden, ridge)
        attended = [_attended(cut, text) for text in texts]
        targets = []
        for text in texts:
            state = _attended(whole, text, whole=True)
            targets.append(whole.output.dense(whole.intermediate(state)) + state)
        inputs = [cut.intermediate(state) for state in attended]
        wanted = [target[..., hidden] - state for target, state in zip(targets, attended, strict=True)]
        _solve(cut.output.dense, inputs, wanted, texts, ridge)
        for text, state in zip(texts, attended, strict=True):
            text.cut_BLH = cut.output(cut.intermediate(state), state)
    for text in texts:
        text.whole_BLH = whole(text.whole_BLH, text.mask)


def _fit_attention(whole: BertLayer, cut: BertLayer, texts: list[_Text], hidden: list[int], ridge: float) -> None:
    inputs, wanted = [], []
    for text in texts:
        context, _ = whole.attention.self(text.whole_BLH, text.mask)
        target = whole.attention.output.dense(context) + text.whole_BLH
        inputs.append(cut.attention.self(text.cut_BLH, text.mask)[0])
        wanted.append(target[..., hidden] - text.cut_BLH)
    _solve(cut.attention.output.dense, inputs, wanted, texts, ridge)


def _attended(layer: BertLayer, text: _Text, *, whole: bool = False) -> Tensor:
    """The state between attention and FFN."""
    attended: Tensor = layer.attention(text.whole_BLH if whole else text.cut_BLH, text.mask)[0]
    return attended


def _solve(linear: nn.Linear, inputs: list[Tensor], wanted: list[Tensor], texts: list[_Text], ridge: float) -> None:
    """The map, bias included, that brings inputs nearest to what is wanted, and near to what it was."""
    size = linear.in_features + 1
    gram_XX = torch.zeros(size, size, dtype=torch.float64, device=linear.weight.device)
    toward_XH = torch.zeros(size, linear.out_features, dtype=torch.float64, device=linear.weight.device)
    count = 0
    for input_, target, text in zip(inputs, wanted, texts, strict=True):
        rows_TX = nn.functional.pad(input_[text.real_BL], (0, 1), value=1.0)
        missing_TH = target[text.real_BL] - linear(input_[text.real_BL])
        gram_XX += (rows_TX.T @ rows_TX).double()
        toward_XH += (rows_TX.T @ missing_TH).double()
        count += len(rows_TX)
    weight = ridge * gram_XX.diagonal()[:-1].mean() if linear.in_features else torch.zeros((), dtype=torch.float64)
    penalty_X = torch.full((size,), float(weight), dtype=torch.float64, device=gram_XX.device)
    penalty_X[-1] = 1e-6 * max(count, 1)
    change_XH = torch.linalg.solve(gram_XX + penalty_X.diag(), toward_XH).float()
    linear.weight.add_(change_XH[:-1].T)
    linear.bias.add_(change_XH[-1])


def _paired(
    whole: PreTrainedModel, cut: PreTrainedModel, batch: Any, run: Callable[[PreTrainedModel, Any], Any]
) -> list[list[_Text]]:
    """What comes to the layers of each encoder when the models see one batch: they call their encoders alike."""
    found = []
    for model in (whole, cut):
        with _entered(model) as calls:
            run(model, batch)
        found.append(calls)
    paired: list[list[_Text]] = []
    for theirs, ours in zip(*found, strict=True):
        paired.append(
            [
                _Text(state, own_state, mask, real)
                for (state, mask, real), (own_state, _, _) in zip(theirs, ours, strict=True)
            ]
        )
    return paired


@contextmanager
def _entered(model: PreTrainedModel) -> Iterator[list[list[Any]]]:
    """Of every encoder, each call inside: what its first layer is given, and which positions are real."""
    calls: list[list[Any]] = [[] for _ in shapes.encoders(model)]
    handles = []

    def watch(encoder: BertModel, own: list[Any]) -> None:
        tokens: list[Tensor] = []

        def embed(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            tokens.append(named["input_ids"] if "input_ids" in named else inputs[0])

        def enter(layer: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            real_BL = tokens.pop() != encoder.config.pad_token_id
            mask = inputs[1] if len(inputs) > 1 else named.get("attention_mask")
            own.append((inputs[0].detach(), mask, real_BL))

        handles.append(encoder.embeddings.register_forward_pre_hook(embed, with_kwargs=True))
        handles.append(encoder.encoder.layer[0].register_forward_pre_hook(enter, with_kwargs=True))

    for encoder, own in zip(shapes.encoders(model), calls, strict=True):
        watch(encoder, own)
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
