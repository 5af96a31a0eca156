"""What a student may learn of its teacher's layers: hidden states, attention, and relations between positions.

B: sequences, L: positions, H: width, A: heads.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from compress.data.histories import MASKED


def hidden(student_BLH: Tensor, teacher_BLH: Tensor, real_BL: Tensor) -> Tensor:
    """Mean squared error of hidden states over the positions that are no padding.

    Args:
        student_BLH: already projected to the teacher's width.
        real_BL: True where a position counts.
    Raises: ValueError if the widths differ.
    Source: Jiao et al. 2020, equation 8 (TinyBERT, arXiv 1909.10351).

    """
    if student_BLH.shape != teacher_BLH.shape:
        raise ValueError(f"student states {tuple(student_BLH.shape)}, teacher states {tuple(teacher_BLH.shape)}")
    return functional.mse_loss(student_BLH[real_BL], teacher_BLH.detach()[real_BL])


def visible(real_BL: Tensor, *, causal: bool) -> Tensor:
    """Which position (row) looks at which (column): real ones at real ones, and no later one if causal; (B, L, L)."""
    visible_BLL = real_BL[:, :, None] & real_BL[:, None, :]
    return visible_BLL.tril() if causal else visible_BLL


def affinities(rows_BLH: Tensor, columns_BLH: Tensor, heads: int) -> Tensor:
    """Scaled products of positions, head by head: (B, A, L, L).

    Raises: ValueError if the heads do not divide the width.
    """
    if rows_BLH.shape[-1] % heads:
        raise ValueError(f"{heads} heads do not divide a width of {rows_BLH.shape[-1]}")
    rows, columns = (each.view(*each.shape[:2], heads, -1).transpose(1, 2) for each in (rows_BLH, columns_BLH))
    products_BALL: Tensor = rows @ columns.transpose(-1, -2) / rows.shape[-1] ** 0.5
    return products_BALL


def attention(student_BALL: Tensor, teacher_BALL: Tensor, visible_BLL: Tensor) -> Tensor:
    """Mean squared error of attention before its softmax, over what each position sees: the mean over positions.

    Raises: ValueError if the numbers of heads differ.
    Source: Jiao et al. 2020, equation 7 (TinyBERT, arXiv 1909.10351).
    """
    if student_BALL.shape != teacher_BALL.shape:
        raise ValueError(f"the student has {student_BALL.shape[1]} heads, the teacher {teacher_BALL.shape[1]}")
    error_BLL = (student_BALL - teacher_BALL.detach()).square().mean(dim=1)
    seen_BL = visible_BLL.sum(dim=-1)
    return ((error_BLL * visible_BLL).sum(dim=-1) / seen_BL.clamp(min=1))[seen_BL > 0].mean()


def relations(student_BALL: Tensor, teacher_BALL: Tensor, visible_BLL: Tensor) -> Tensor:
    """Kullback-Leibler divergence of how each position divides its attention, or relates, over those it sees.

    The mean over heads and positions. Whatever the two widths are, the numbers of heads are the same: those of
    relations are chosen, and need not be the models' own.

    Source: Wang et al. 2021, equation 5 (MiniLMv2, arXiv 2012.15828); of attention and values, Wang et al. 2020,
        equations 2 and 4 (MiniLM, arXiv 2002.10957).
    """
    hidden_B1LL = ~visible_BLL[:, None]
    products = (student_BALL, teacher_BALL.detach())
    ours, theirs = (each.masked_fill(hidden_B1LL, MASKED).log_softmax(dim=-1) for each in products)
    divergence_BAL = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
    looking_BL = visible_BLL.any(dim=-1)
    return divergence_BAL.transpose(1, 2)[looking_BL].mean()
