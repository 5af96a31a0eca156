"""Reads somebody else's Hugging Face folder: the architecture that is wanted, whole, from safetensors, or one line."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor
from transformers import BertModel, PreTrainedModel

from compress.errors import DataError


def first_layers(model: BertModel, count: int) -> dict[str, Tensor]:
    """Its weights without those of later layers."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("encoder.layer.") or int(name.split(".")[2]) < count
    }


def read_checkpoint(folder: Path, architecture: type[PreTrainedModel]) -> PreTrainedModel:
    """The model, in eval mode.

    Raises: DataError if the folder is none, of another architecture, without safetensors, damaged, or lacks weights
        (which would silently be drawn at random).
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = config["model_type"], *(config.get("architectures") or ())
    except OSError as error:
        raise DataError(f"{folder}: no Hugging Face folder: config.json: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{folder}: no Hugging Face folder: config.json is not a model's") from None
    if found[0] != "bert" or architecture.__name__ not in found[1:]:
        raise DataError(f"{folder}: a {' '.join(map(str, found))} is not supported; {architecture.__name__} is")
    if not list(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: no safetensors; save it with model.save_pretrained(folder), transformers 5")
    try:
        model, loading = architecture.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # safetensors', transformers' and torch's errors have nothing else in common
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: cannot be loaded: {first[:200]}") from None
    lacking = sorted({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
    if lacking:
        raise DataError(f"{folder}: {len(lacking)} weights are missing or of another shape, {lacking[0]} among them")
    return model.eval()
