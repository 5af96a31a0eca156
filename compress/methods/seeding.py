"""How a student starts from its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

from compress.errors import RecipeError
from compress.methods.slicing import copy_layer, copy_norm, hidden_sizes, important_units, largest


def chosen_layers(which: Sequence[int] | str, student_depth: int, teacher_depth: int) -> list[int]:
    """A teacher layer for each student layer.

    Args:
        which: the layers themselves, or "first", "last", or "spread": evenly and always with the first, so that 2 of 6
            are 0 and 3. A shallow student's attention reads raw embeddings, as the teacher's first layer does.

    """
    if not isinstance(which, str):
        if max(which) >= teacher_depth:
            raise RecipeError(f"initialize.layers: {list(which)}; the teacher has 0 to {teacher_depth - 1}")
        return list(which)
    if which == "spread":
        return [layer * teacher_depth // student_depth for layer in range(student_depth)]
    start = 0 if which == "first" else max(0, teacher_depth - student_depth)
    return [min(start + layer, teacher_depth - 1) for layer in range(student_depth)]


def principal_directions(table: Tensor, count: int) -> Tensor:
    """The directions that keep most of the rows' length, (width, count), orthonormal; no mean is taken off.

    Raises: ValueError if the table is narrower than `count`.
    """
    if count > table.shape[1]:
        raise ValueError(f"a table {table.shape[1]} wide has no {count} principal directions")
    wide = table.double()
    directions: Tensor = torch.linalg.eigh(wide.T @ wide)[1].flip(
        1
    )  # complete even if the table has fewer rows than columns
    return directions[:, :count].to(table.dtype)


@torch.no_grad()
def seed_encoder(
    student: BertModel, teacher: BertModel, layers: Sequence[int] | str, width: str, *, from_end: bool = False
) -> Tensor | None:
    """Copies what fits from teacher to student, in place.

    Equal widths: embeddings and the chosen layers (all of a layer whose shapes agree). Narrower: what `width` says.

    Args:
        layers: as in `chosen_layers`.
        from_end: whether positions count from the end, so that the last ones of both are the same.
        width: of what is narrower. "principal-directions": item and position embeddings, projected on the principal
            directions of the items; "important-units": embeddings and layers of the units with the largest weights,
            FFN neurons too; "random" leaves it as it is.
    Returns: which of the teacher's hidden dimensions the student's are, (H); None if they are something else.

    """
    ours, theirs = student.embeddings, teacher.embeddings
    size, source_size = student.config.hidden_size, teacher.config.hidden_size
    if size == source_size or (width == "important-units" and size < source_size):
        hidden_H = largest(hidden_sizes(teacher), size)
        _copy_positions(ours.position_embeddings.weight, theirs.position_embeddings.weight[:, hidden_H], from_end)
        ours.word_embeddings.weight.copy_(theirs.word_embeddings.weight[:, hidden_H])
        ours.token_type_embeddings.weight.copy_(theirs.token_type_embeddings.weight[:, hidden_H])
        copy_norm(ours.LayerNorm, theirs.LayerNorm, hidden_H)
        chosen = chosen_layers(layers, len(student.encoder.layer), len(teacher.encoder.layer))
        for target, place in zip(student.encoder.layer, chosen, strict=True):
            _seed_layer(target, teacher.encoder.layer[place], hidden_H, sliced=width == "important-units")
        return hidden_H
    if width == "principal-directions" and size < source_size:
        directions = principal_directions(theirs.word_embeddings.weight, size)
        ours.word_embeddings.weight.copy_(theirs.word_embeddings.weight @ directions)
        _copy_positions(ours.position_embeddings.weight, theirs.position_embeddings.weight @ directions, from_end)
    return None


def _seed_layer(ours: BertLayer, theirs: BertLayer, hidden_H: Tensor, *, sliced: bool) -> None:
    """All of it, its most important units, or what has the same shape."""
    attention, source = ours.attention.self, theirs.attention.self
    sizes = (attention.num_attention_heads, attention.attention_head_size, ours.intermediate.dense.out_features)
    limits = (source.num_attention_heads, source.attention_head_size, theirs.intermediate.dense.out_features)
    if sliced and all(size <= limit for size, limit in zip(sizes, limits, strict=True)):
        copy_layer(ours, theirs, important_units(theirs, hidden_H, *sizes))
        return
    mine, found = ours.state_dict(), theirs.state_dict()
    ours.load_state_dict(mine | {name: value for name, value in found.items() if value.shape == mine[name].shape})


def _copy_positions(ours: Tensor, theirs: Tensor, from_end: bool) -> None:
    """As many as both have."""
    count = min(len(ours), len(theirs))
    shared = slice(-count, None) if from_end else slice(count)
    ours[shared].copy_(theirs[shared])
