"""Frozen models in fewer bytes: the layers' matrices in 8 or 4 bits, by bitsandbytes; they are multiplied as such."""

from __future__ import annotations

import importlib.util

from torch import nn
from transformers import PreTrainedModel

from compress.errors import RecipeError

LAYERS = ".layer."
"""In the name of every matrix of an encoder; embeddings, poolers and heads stay as they are."""


def store(model: PreTrainedModel, how: str) -> int:
    """Replaces the layers' matrices in place; returns the bytes of all weights then.

    Args:
        how: "int8" (LLM.int8(), Dettmers et al. 2022, arXiv 2208.07339) or "nf4" (QLoRA, Dettmers et al. 2023, arXiv
            2305.14314); "fp32" leaves them.
    Raises: RecipeError if bitsandbytes is not installed.

    """
    if how != "fp32":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise RecipeError(f"{how}: bitsandbytes is not installed; pip install 'recpress[bitsandbytes]'")
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and LAYERS in f".{name}" and module.weight.numel():
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, _stored(module, how).to(module.weight.device))
    return sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))


def _stored(linear: nn.Linear, how: str) -> nn.Module:
    import bitsandbytes as bnb

    weight, sizes = linear.weight.data.cpu(), (linear.in_features, linear.out_features)  # it rounds on leaving a CPU
    made: nn.Module
    if how == "int8":
        made = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(*sizes, quant_type="nf4", compute_dtype=weight.dtype)
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    made.bias = None if linear.bias is None else nn.Parameter(linear.bias.data, requires_grad=False)
    return made
