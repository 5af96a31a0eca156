"""What training minimises, each a plain function of scores.

N: labelled positions, I: items, K: sampled items.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from compress.data.histories import MASKED


def softmax(scores_NI: Tensor, labels_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each label against the whole catalogue: a scalar, in nats.

    Args:
        label_smoothing: share of the target that all items divide evenly, 0 to 1.
    Source of smoothing: Szegedy et al. 2016, section 7 (arXiv 1512.00567).

    """
    if label_smoothing == 0:
        return functional.cross_entropy(scores_NI, labels_N)
    logs_NI = scores_NI.log_softmax(dim=1)
    there = scores_NI > MASKED / 2  # nothing is spread over what is masked
    spread_N = -logs_NI.masked_fill(~there, 0).sum(dim=1) / there.sum(dim=1)
    labels = functional.nll_loss(logs_NI, labels_N)
    return (1 - label_smoothing) * labels + label_smoothing * spread_N.mean()


def sampled_softmax(positives_N: Tensor, negatives_NK: Tensor) -> Tensor:
    """Cross-entropy of each label against sampled negatives.

    Args:
        positives_N: the label's score.
        negatives_NK: the negatives' scores; -inf where a negative happens to be the label.
    Source: Klenitskiy & Vasilev 2023 (arXiv 2309.07602), with negatives shared by the batch.

    """
    return (torch.logsumexp(torch.cat([positives_N[:, None], negatives_NK], dim=1), dim=1) - positives_N).mean()


def gbce(positives_N: Tensor, negatives_NK: Tensor, catalogue_size: int, calibration: float) -> Tensor:
    """Generalised binary cross-entropy: a sampled BCE whose positives are damped against overconfidence.

    Args:
        positives_N, negatives_NK: as in `sampled_softmax`.
        catalogue_size: items that negatives were drawn from.
        calibration: t, 0 (plain BCE) to 1 (calibrated as if nothing had been sampled).
    Source: Petrov & Macdonald 2023, equations 9 and 14 (arXiv 2308.07192).

    """
    rate = min(1.0, negatives_NK.shape[1] / max(1, catalogue_size - 1))
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    negatives = functional.softplus(negatives_NK).sum(dim=1)  # softplus(-inf) = 0: a collision adds nothing
    return (beta * functional.softplus(-positives_N) + negatives).mean()


def bce(scores_NI: Tensor, wanted_NI: Tensor) -> Tensor:
    """Binary cross-entropy of scores as log odds: the mean over all of them.

    Args:
        wanted_NI: 1 for what is wanted, 0 for what is not.
    Source: He et al. 2017, equation 7 (Neural collaborative filtering, arXiv 1708.05031).

    """
    return functional.binary_cross_entropy_with_logits(scores_NI, wanted_NI.to(scores_NI.dtype))


def mse(student_NI: Tensor, teacher_NI: Tensor) -> Tensor:
    """Mean squared error of scores; what is masked for one of the two is left out.

    Source: Ba & Caruana 2014, section 2.1 (arXiv 1312.6184).
    """
    compared = _compared(student_NI, teacher_NI)
    return functional.mse_loss(student_NI[compared], teacher_NI[compared])


def margin_mse(student_NI: Tensor, teacher_NI: Tensor, labels_N: Tensor, *, scaled: bool = False) -> Tensor:
    """Mean squared error of the label's margin over every other item: levels may differ, distances may not.

    What is masked for one of the two is left out.

    Args:
        scaled: divided by the mean square of the teacher's margins, so that 0 is the teacher's and 1 is as far from it
            as saying nothing, whatever the scale of its scores; ours, not the paper's.

    Source: Hofstaetter et al. 2020, equation 6 (arXiv 2010.02666).
    """
    ours, theirs = (scores.gather(1, labels_N[:, None]) - scores for scores in (student_NI, teacher_NI))
    others = _compared(student_NI, teacher_NI)
    others = others.scatter(1, labels_N[:, None], False)  # the label's margin over itself is no pair
    error = (ours - theirs)[others].square().sum()
    if scaled:
        return error / theirs.detach()[others].square().sum().clamp(min=1e-12)
    return error / others.sum().clamp(min=1)


def _compared(student_NI: Tensor, teacher_NI: Tensor) -> Tensor:
    """Which scores are scores and not what stands for none."""
    return (student_NI > MASKED / 2) & (teacher_NI > MASKED / 2)


def kl(student_NI: Tensor, teacher_NI: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the student's distribution over the catalogue from the teacher's.

    Args:
        student_NI: scores; receives gradient.
        teacher_NI: scores of the same items; no gradient.
        temperature: > 0; the loss is scaled by its square so that gradients keep their size.
    Raises: ValueError if the item axes differ.
    Source: Hinton et al. 2015, section 2 (arXiv 1503.02531).

    """
    if student_NI.shape != teacher_NI.shape:
        raise ValueError(f"student scores {tuple(student_NI.shape)}, teacher scores {tuple(teacher_NI.shape)}")
    student = functional.log_softmax(student_NI / temperature, dim=1)
    teacher = functional.log_softmax(teacher_NI.detach() / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def kl_to_best(student_NI: Tensor, items_NK: Tensor, scores_NK: Tensor, rest_N: Tensor, temperature: float) -> Tensor:
    """`kl` to a teacher of whom the best items are known, and that each other one has the same score.

    It is the same number with K instead of I exponentials of the teacher's.

    Args:
        items_NK, scores_NK: the best items and their scores; rest_N: the score of each of the I - K others.

    """
    others = student_NI.shape[1] - items_NK.shape[1]
    logs_NI = functional.log_softmax(student_NI / temperature, dim=1)
    ours_NK, best_NK, rest_N = logs_NI.gather(1, items_NK), scores_NK / temperature, rest_N / temperature
    total_N = best_NK.logsumexp(dim=1)
    if others:
        total_N = torch.logaddexp(total_N, rest_N + math.log(others))
    theirs_NK, theirs_N = best_NK - total_N[:, None], rest_N - total_N
    divergence_N = (theirs_NK.exp() * (theirs_NK - ours_NK)).sum(dim=1)
    if others:
        divergence_N = divergence_N + theirs_N.exp() * (others * theirs_N - (logs_NI.sum(dim=1) - ours_NK.sum(dim=1)))
    return divergence_N.mean() * temperature**2


def collisions_masked(negatives_NK: Tensor, sampled_K: Tensor, labels_N: Tensor) -> Tensor:
    """Scores of sampled negatives with -inf where the sample is the position's own label."""
    return negatives_NK.masked_fill(sampled_K[None, :] == labels_N[:, None], -math.inf)
