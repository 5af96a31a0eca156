"""What a student may learn of its teacher's ranking instead of its scores: losses over a few items of each position.

N: labelled positions, K: items, best first for the teacher where it says so, L: other items, drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def best_and_drawn(teacher_NI: Tensor, count: int, others: int) -> Tensor:
    """The teacher's `count` best items of each position, best first, then `others` drawn from the rest: (N, K + L).

    Drawn without replacement by torch's global generator; fewer if there are no more items. DE-RRD draws the
    interesting items, too, the more often the higher the teacher ranks them; here they are its best, in every step.

    Positions draw from one order of the rest, each from a place of its own: every set of items is as likely as any
    other, and what they share saves a random number for each of their scores, half of what this takes.
    """
    size = teacher_NI.shape[1]
    count = min(count, size)
    best_NK = teacher_NI.topk(count, dim=1).indices
    rest = size - count
    others = min(others, rest)
    if not others:
        return best_NK
    device = teacher_NI.device
    order_R = torch.randperm(rest, device=device)
    places_NL = torch.randint(rest, (len(best_NK), 1), device=device) + torch.arange(others, device=device)
    ranks_NL = order_R[places_NL % rest]  # among the rest, by item
    passed_NK = best_NK.sort(dim=1).values - torch.arange(count, device=device)
    return torch.cat([best_NK, ranks_NL + torch.searchsorted(passed_NK, ranks_NL, right=True)], dim=1)


def relaxed_ranking(interesting_NK: Tensor, others_NL: Tensor) -> Tensor:
    """Plackett-Luce likelihood of the teacher's order of interesting items, above all others, whose order is nothing.

    Args:
        interesting_NK: the student's scores of them, in the teacher's order.
        others_NL: the student's scores of uninteresting items; they stand in the denominators alone. L may be 0.
    Returns: mean negative log likelihood of a place.
    Source: Kang et al. 2020, equation 7 (DE-RRD, arXiv 2012.04357). What IR-RRD (Kang et al. 2021, Information Sciences
        580) adds, the order of users for an item, is not in it.

    """
    later_NK = interesting_NK.flip(1).logcumsumexp(dim=1).flip(1)
    if others_NL.shape[1]:
        later_NK = torch.logaddexp(later_NK, others_NL.logsumexp(dim=1, keepdim=True))
    return (later_NK - interesting_NK).mean()


def ranknet(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Logistic loss of each pair that the teacher orders: the mean over pairs; ties are no pairs.

    Source: Burges et al. 2005, section 3 (Learning to rank using gradient descent).
    """
    ordered_NKK = teacher_NK[:, :, None] > teacher_NK[:, None, :]
    losses_NKK = functional.softplus(student_NK[:, None, :] - student_NK[:, :, None])
    return (losses_NKK * ordered_NKK).sum() / ordered_NKK.sum().clamp(min=1)


def lambda_loss(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """RankNet's pairs, each weighing what swapping the two would change in NDCG: the mean over positions.

    Gains are the teacher's probabilities among the K items, discounts those of the student's present order.

    Source: Burges 2010, section 4 (From RankNet to LambdaRank to LambdaMART), as a loss by Wang et al. 2018, section 3.
    """
    gains_NK = teacher_NK.softmax(dim=1)
    places_NK = student_NK.argsort(dim=1, descending=True).argsort(dim=1)
    discounts_NK = 1 / torch.log2(places_NK + 2.0).to(gains_NK.dtype)
    steps_K = torch.arange(gains_NK.shape[1], device=gains_NK.device) + 2.0
    ideal_N1 = (gains_NK.sort(dim=1, descending=True).values / torch.log2(steps_K)).sum(dim=1, keepdim=True)
    gain_NKK = (gains_NK[:, :, None] - gains_NK[:, None, :]) / ideal_N1[:, :, None]
    change_NKK = gain_NKK * (discounts_NK[:, :, None] - discounts_NK[:, None, :]).abs()
    losses_NKK = functional.softplus(student_NK[:, None, :] - student_NK[:, :, None])
    return (losses_NKK * change_NKK.clamp(min=0)).sum(dim=(1, 2)).mean()
