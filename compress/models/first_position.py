"""What reads [CLS] alone need not wait for the other positions of the last layer.

B: texts, L: positions, H: width, A: heads, d: width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer


@contextmanager
def first_position(bert: BertModel) -> Iterator[None]:
    """Inside, the last layer has one query, the first position's: the same numbers there, and a gradient for them.

    Of a layer's products only keys and values are left, a sixth, in training as when serving. The layer is called as
    ever, so that what watches or masks it goes on doing so. One that `quantization_aware` runs can do the same itself.
    """
    last = bert.encoder.layer[-1]
    running = vars(last).get("forward")
    last.forward = partial(running, at=slice(1)) if running else partial(_at_first, last)
    try:
        yield
    finally:
        del last.forward
        if running:
            last.forward = running


def _at_first(layer: BertLayer, x_BLH: Tensor, mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """The layer's output at its first position: (B, 1, H)."""
    attention, x_B1H = layer.attention.self, x_BLH[:, :1]
    if attention.num_attention_heads:
        query_BA1d, key_BALd, value_BALd = (
            projection(x).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for projection, x in ((attention.query, x_B1H), (attention.key, x_BLH), (attention.value, x_BLH))
        )
        if mask is not None:
            mask = mask[:, :, :1] if not mask.is_floating_point() else mask[:, :, :1].to(query_BA1d.dtype)
        context_BA1d = functional.scaled_dot_product_attention(
            query_BA1d,
            key_BALd,
            value_BALd,
            attn_mask=mask,
            dropout_p=attention.dropout.p if attention.training else 0.0,
            scale=attention.scaling,
        )
        context_B1E = context_BA1d.transpose(1, 2).flatten(2)
    else:  # all were pruned
        context_B1E = x_B1H[..., :0]
    attended_B1H = layer.attention.output(context_B1E, x_B1H)
    state_B1H: Tensor = layer.output(layer.intermediate(attended_B1H), attended_B1H)
    return state_B1H
