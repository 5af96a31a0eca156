"""Small stand-ins that several tests build on: people, models whose every weight matters, a place to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertForMaskedLM

from compress.data.interactions import Interactions, leave_one_out
from compress.models.bert4rec import Bert4Rec
from compress.recipe.model import Bert4RecModel

History = NDArray[np.int64]

torch.set_num_threads(1)  # for models this small, threads that wait for each other cost more than they do


def interactions_of(lists: Sequence[Sequence[int]], items: int) -> Interactions:
    """Users whose items are given, the last two of each held out."""
    offsets = np.cumsum([0, *map(len, lists)])
    together = np.concatenate([np.asarray(part, dtype=np.int32) for part in lists])
    return Interactions(together, np.arange(len(together)), offsets, items, leave_one_out(offsets))


def interactions(users: int = 12, items: int = 20, seed: int = 0, shortest: int = 4, longest: int = 14) -> Interactions:
    """Users with histories of many lengths; nobody meets an item twice."""
    random = np.random.default_rng(seed)
    lengths = random.integers(shortest, longest + 1, size=users)
    return interactions_of([random.permutation(items)[:length].tolist() for length in lengths], items)


def histories(*lengths: int, items: int = 20, seed: int = 0) -> list[History]:
    """One history per length."""
    random = np.random.default_rng(seed)
    return [random.permutation(items)[:length] for length in lengths]


def nothing(of: Sequence[History]) -> list[History]:
    """What is excluded of each history if nothing is."""
    return [np.array([], dtype=np.int64) for _ in of]


def tiny_section(**options: Any) -> Bert4RecModel:
    """A model section; `options` are its fields."""
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_length": 8, "dropout": 0.0}
    return Bert4RecModel.model_validate({"family": "bert4rec", **fields, **options})


def tiny_model(items: int = 20, seed: int = 0, **options: Any) -> BertForMaskedLM:
    """A model in eval mode; no weight has its fresh value, so that a bias or a norm left out shows."""
    torch.manual_seed(seed)
    model = Bert4Rec().build(tiny_section(**options), items)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.normal_(1, 0.3)
            elif parameter.dim() == 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 1 if "embeddings" in name else 1.5 / parameter.shape[1] ** 0.5)
    return model.eval()
