"""Attention by plain matrix products: what short sequences in bfloat16 on a CPU train with.

There PyTorch's fused kernel spends most of its backward pass outside of products. Forward and backward it takes 5.3
times as long as `_attend` at 32 positions (256 rows, 12 heads of 32), 3.2 times at 64, 1.3 times at 200 (64 rows, 4
heads of 64) and as long at 400 (24 rows, 12 heads of 64): two threads, AVX-512 with bfloat16. In float32 and on GPUs
nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PRODUCTS = "products"

LONGEST = 400
"""Positions up to which products are no slower."""


@contextmanager
def suited(models: Sequence[PreTrainedModel], precision: str) -> Iterator[None]:
    """Inside, these models attend in the way that is fastest for what they train with; their weights and names stay.

    Args: precision: of products, `fp32` or `bf16`.
    """
    changed = [] if precision == "fp32" or torch.cuda.is_available() else models
    before = [model.config._attn_implementation for model in changed]
    for model in changed:
        model.set_attn_implementation(PRODUCTS)
    try:
        yield
    finally:
        for model, implementation in zip(changed, before, strict=True):
            model.set_attn_implementation(implementation)


def _attend(
    module: nn.Module,
    query_BALd: Tensor,
    key_BALd: Tensor,
    value_BALd: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As the fused attention with the same arguments: (B, L, A, d)."""
    if key_BALd.shape[2] > LONGEST:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_BALd, key_BALd, value_BALd, attention_mask, dropout, scaling, is_causal=False
        )
        return attended
    query_BALd = query_BALd * (query_BALd.shape[-1] ** -0.5 if scaling is None else scaling)
    scores_BALL = query_BALd @ key_BALd.transpose(-1, -2)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores_BALL = scores_BALL.masked_fill(~attention_mask, torch.finfo(scores_BALL.dtype).min)
    elif attention_mask is not None:
        scores_BALL = scores_BALL + attention_mask.to(scores_BALL.dtype)
    shares_BALL = functional.dropout(scores_BALL.softmax(dim=-1), dropout, dropout > 0)
    return (shares_BALL @ value_BALd).transpose(1, 2).contiguous(), None


def _mask(*sizes: Any, allow_is_causal_skip: bool = False, **how: Any) -> Tensor | None:
    """True where a position sees another; here nobody is told of causality in any other way."""
    mask: Tensor | None = sdpa_mask(*sizes, allow_is_causal_skip=False, **how)
    return mask


AttentionInterface.register(PRODUCTS, _attend)
AttentionMaskInterface.register(PRODUCTS, _mask)
