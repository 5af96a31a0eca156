"""Looks at what a BertModel's layers compute on the way, without changing how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import BertModel

Projected = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values of a layer, (B, L, H) each."""


@contextmanager
def projections(bert: BertModel, *, look: bool = True) -> Iterator[list[Projected]]:
    """Queries, keys and values of every layer that has heads, there once the forward pass inside is over.

    Args:
        look: False to find nothing.

    """
    looked_at = [layer for layer in bert.encoder.layer if layer.attention.self.num_attention_heads] if look else []
    seen: list[list[Tensor]] = [[] for _ in looked_at]
    found: list[Projected] = []

    def keep(place: int) -> Any:
        return lambda module, inputs, output: seen[place].append(output)

    handles = [
        getattr(layer.attention.self, name).register_forward_hook(keep(place))
        for place, layer in enumerate(looked_at)
        for name in ("query", "key", "value")
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    found.extend((query, key, value) for query, key, value in seen)
