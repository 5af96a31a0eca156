"""Reads somebody else's Hugging Face folder: the architecture that is wanted, whole, from safetensors, or one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertModel, PreTrainedModel

from compress.errors import DataError

ENCODERS = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
"""Architectures that have a BertModel inside; whether its pooler was trained makes no difference to who trains on."""


def read_encoder(folder: Path) -> BertModel:
    """The BertModel in a folder. Raises: DataError as `read_checkpoint`."""
    return read_checkpoint(folder, BertModel, ENCODERS, spare="pooler.")


def read_checkpoint(
    folder: Path, architecture: type[PreTrainedModel], accepted: Sequence[str] = (), spare: str = "\0"
) -> PreTrainedModel:
    """The model, in eval mode, in float32.

    Args:
        accepted: names of architectures that have it inside; its own if empty.
        spare: weights whose names start so may be missing.

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
    if "pruned" in config:
        raise DataError(f"{folder}: was pruned here; name the stage that left it instead of adopting its folder")
    accepted = accepted or (architecture.__name__,)
    if found[0] != "bert" or not set(accepted) & set(found[1:]):
        raise DataError(f"{folder}: a {' '.join(map(str, found))} is not supported; {', '.join(accepted)} is")
    if not list(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: no safetensors; save it with model.save_pretrained(folder), transformers 5")
    try:
        model, loading = architecture.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # safetensors', transformers' and torch's errors have nothing else in common
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{folder}: cannot be loaded: {first[:200]}") from None
    missing = {key for key in loading["missing_keys"] if not key.startswith(spare)}
    lacking = sorted({*missing, *(key for key, *_ in loading["mismatched_keys"])})
    if lacking:
        raise DataError(f"{folder}: {len(lacking)} weights are missing or of another shape, {lacking[0]} among them")
    return model.eval()
