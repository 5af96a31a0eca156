"""Who reads a few positions of an encoder need not wait for the others of its last layer.

B: rows, L: positions, Q: those that are read, H: width, A: heads, d: width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from transformers import BertModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertLayer


@contextmanager
def only_at(bert: BertModel, at_BQ: Tensor) -> Iterator[None]:
    """Inside, the last layer computes these positions and leaves the others as they come.

    The same numbers there, and the same gradients for them: of a layer's products only keys and values are left for the
    rest, a sixth, in training as when serving. The layer is called as ever and its output has the shape that it always
    has, so that what watches or masks it goes on doing so. One that `quantization_aware` runs does the same itself.
    """
    last = bert.encoder.layer[-1]
    running = vars(last).get("forward")
    last.forward = partial(running or partial(_forward, last), at_BQ=at_BQ)
    try:
        yield
    finally:
        del last.forward
        if running:
            last.forward = running


def picked(x_BLH: Tensor, at_BQ: Tensor) -> Tensor:
    """Some positions of each row: (B, Q, H)."""
    return x_BLH.gather(1, at_BQ[:, :, None].expand(-1, -1, x_BLH.shape[2]))


def put_back(x_BLH: Tensor, at_BQ: Tensor, state_BQH: Tensor) -> Tensor:
    """All positions, these replaced."""
    return x_BLH.scatter(1, at_BQ[:, :, None].expand_as(state_BQH), state_BQH.to(x_BLH.dtype))


def seen_from(mask_B1LL: Tensor, at_BQ: Tensor) -> Tensor:
    """The rows of a mask that are of some positions; one row alone is everybody's."""
    if mask_B1LL.shape[2] == 1:
        return mask_B1LL
    rows = at_BQ[:, None, :, None].expand(-1, mask_B1LL.shape[1], -1, mask_B1LL.shape[3])
    return mask_B1LL.expand(len(at_BQ), -1, -1, -1).gather(2, rows)


def _forward(layer: BertLayer, x_BLH: Tensor, mask: Tensor | None = None, *_: Any, at_BQ: Tensor, **__: Any) -> Tensor:
    attention, x_BQH = layer.attention.self, picked(x_BLH, at_BQ)
    if attention.num_attention_heads:
        query_BAQd, key_BALd, value_BALd = (
            projection(x).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for projection, x in ((attention.query, x_BQH), (attention.key, x_BLH), (attention.value, x_BLH))
        )
        if mask is not None:
            mask = seen_from(mask, at_BQ)
            if mask.is_floating_point():
                mask = mask.to(query_BAQd.dtype)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, sdpa_attention_forward)
        context_BQAd, _ = attend(
            attention,
            query_BAQd,
            key_BALd,
            value_BALd,
            mask,
            dropout=attention.dropout.p if attention.training else 0.0,
            scaling=attention.scaling,
            is_causal=False,
        )
        context_BQE = context_BQAd.flatten(2)
    else:  # all were pruned
        context_BQE = x_BQH[..., :0]
    attended_BQH = layer.attention.output(context_BQE, x_BQH)
    state_BQH = layer.output(layer.intermediate(attended_BQH), attended_BQH)
    return put_back(x_BLH, at_BQ, state_BQH)
