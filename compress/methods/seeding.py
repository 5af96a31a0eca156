"""How a student starts from its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import BertModel


def chosen_layers(which: Sequence[int] | str, student_depth: int, teacher_depth: int) -> list[int]:
    """A teacher layer for each student layer.

    Args:
        which: the layers themselves, or "first", "last", or "spread": evenly and always with the first, so that 2 of 6
            are 0 and 3. A shallow student's attention reads raw embeddings, as the teacher's first layer does.

    """
    if not isinstance(which, str):
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
) -> None:
    """Copies what fits from teacher to student, in place.

    Equal widths: embeddings and the chosen layers (all of a layer whose shapes agree). Narrower: the teacher's item and
    position embeddings, projected on the principal directions of its items.

    Args:
        layers: as in `chosen_layers`.
        from_end: whether positions count from the end, so that the last ones of both are the same.
        width: "principal-directions", or "random" to leave a narrower student's embeddings as they are.

    """
    ours, theirs = student.embeddings, teacher.embeddings
    if student.config.hidden_size == teacher.config.hidden_size:
        _copy_positions(ours.position_embeddings.weight, theirs.position_embeddings.weight, from_end)
        ours.word_embeddings.weight.copy_(theirs.word_embeddings.weight)
        ours.token_type_embeddings.load_state_dict(theirs.token_type_embeddings.state_dict())
        ours.LayerNorm.load_state_dict(theirs.LayerNorm.state_dict())
        depth = student.config.num_hidden_layers
        for target, source in enumerate(chosen_layers(layers, depth, teacher.config.num_hidden_layers)):
            mine = student.encoder.layer[target].state_dict()
            found = teacher.encoder.layer[source].state_dict()
            mine.update({name: value for name, value in found.items() if value.shape == mine[name].shape})
            student.encoder.layer[target].load_state_dict(mine)
    elif width == "principal-directions" and student.config.hidden_size < teacher.config.hidden_size:
        directions = principal_directions(theirs.word_embeddings.weight, student.config.hidden_size)
        ours.word_embeddings.weight.copy_(theirs.word_embeddings.weight @ directions)
        _copy_positions(ours.position_embeddings.weight, theirs.position_embeddings.weight @ directions, from_end)


def _copy_positions(ours: Tensor, theirs: Tensor, from_end: bool) -> None:
    """As many as both have."""
    count = min(len(ours), len(theirs))
    shared = slice(-count, None) if from_end else slice(count)
    ours[shared].copy_(theirs[shared])
