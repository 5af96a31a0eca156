"""Losses: values worked out by hand, gradients against finite differences, and what equals what."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compress.methods import losses, states

LABELS = torch.tensor([2, 0, 2])


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_softmax_is_the_mean_log_of_the_labels_share() -> None:
    table = logs([1, 2, 5], [4, 2, 2])
    assert losses.softmax(table, torch.tensor([2, 0])).item() == pytest.approx((math.log(8 / 5) + math.log(2)) / 2)


def test_smoothing_spreads_part_of_the_target_evenly() -> None:
    table = scores(3, 5)
    plain, even = losses.softmax(table, LABELS), -table.log_softmax(dim=1).mean()
    torch.testing.assert_close(losses.softmax(table, LABELS, 0.1), 0.9 * plain + 0.1 * even)


def test_sampled_softmax_knows_only_the_label_and_the_samples() -> None:
    positives, negatives = logs([3, 1])[0], logs([1, 2, 0], [3, 2, 2])  # log 0: the sample is the label
    value = losses.sampled_softmax(positives, negatives).item()
    assert value == pytest.approx((math.log(6 / 3) + math.log(8 / 1)) / 2)


def test_gbce_is_the_formula_worked_out_by_hand() -> None:
    # 2 of the 4 other items are sampled: a = 1/2; with t = 1/2, b = a (t (1 - 1/a) + 1/a) = 3/4.
    positives, negatives = logs([3, 1])[0], logs([1, 3], [0, 7])
    expected = [0.75 * math.log(4 / 3) + math.log(2) + math.log(4), 0.75 * math.log(2) + math.log(8)]
    value = losses.gbce(positives, negatives, catalogue_size=5, calibration=0.5).item()
    assert value == pytest.approx(sum(expected) / 2)


def test_kl_is_the_sum_worked_out_by_hand() -> None:
    student, teacher = logs([1, 1, 2], [1, 1, 1]), logs([2, 1, 1], [1, 1, 1])
    expected = (0.5 * math.log(2) + 0.25 * math.log(1) + 0.25 * math.log(0.5)) / 2
    assert losses.kl(student, teacher, temperature=1).item() == pytest.approx(expected)


def test_hidden_is_the_mean_square_of_what_counts() -> None:
    student = torch.tensor([[[1.0, 2.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])
    assert states.hidden(student, teacher, torch.tensor([[True, False]])).item() == pytest.approx((1 + 4) / 2)


REAL = torch.tensor([[True, True, False], [False, True, True]])
DIFFERENTIABLE: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "softmax": (lambda table: losses.softmax(table, LABELS), (scores(3, 5),)),
    "sampled_softmax": (losses.sampled_softmax, (scores(3), scores(3, 4, seed=1))),
    "gbce": (lambda own, others: losses.gbce(own, others, 9, 0.75), (scores(3), scores(3, 4, seed=1))),
    "kl": (lambda table: losses.kl(table, scores(3, 5, seed=1), 2.5), (scores(3, 5),)),
    "hidden": (lambda found: states.hidden(found, scores(2, 3, 4, seed=1), REAL), (scores(2, 3, 4),)),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    loss, inputs = DIFFERENTIABLE[name]
    assert torch.autograd.gradcheck(loss, tuple(tensor.clone().requires_grad_() for tensor in inputs))


def test_sampling_every_item_is_softmax() -> None:
    table = scores(3, 6)
    everything = torch.arange(6)
    negatives = losses.collisions_masked(table, everything, LABELS)
    positives = table[torch.arange(3), LABELS]
    torch.testing.assert_close(losses.sampled_softmax(positives, negatives), losses.softmax(table, LABELS))


def test_uncalibrated_gbce_is_plain_bce() -> None:
    positives, negatives = scores(3), scores(3, 4, seed=1)
    bce = functional.binary_cross_entropy_with_logits
    plain = bce(positives, torch.ones(3).double(), reduction="sum")
    plain = plain + bce(negatives, torch.zeros(3, 4).double(), reduction="sum")
    torch.testing.assert_close(losses.gbce(positives, negatives, 100, calibration=0), plain / 3)


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("catalogue_size", [5, 9, 101])
def test_gbce_is_the_papers_likelihood(calibration: float, catalogue_size: int) -> None:
    positives, negatives = scores(3), scores(3, 4, seed=1)
    a = 4 / (catalogue_size - 1)
    b = a * (calibration * (1 - 1 / a) + 1 / a)
    likelihood = positives.sigmoid() ** b * (1 - negatives.sigmoid()).prod(dim=1)
    torch.testing.assert_close(losses.gbce(positives, negatives, catalogue_size, calibration), -likelihood.log().mean())


@pytest.mark.parametrize("negatives", [4, 40])
def test_gbce_on_all_other_items_needs_no_calibration(negatives: int) -> None:
    own, others = scores(3), scores(3, negatives, seed=1)
    for calibration in (0.5, 1.0):
        calibrated = losses.gbce(own, others, 5, calibration)
        torch.testing.assert_close(calibrated, losses.gbce(own, others, 5, calibration=0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equal_scores_have_no_divergence_and_no_gradient(temperature: float) -> None:
    student = scores(3, 5).requires_grad_()
    divergence = losses.kl(student, student.detach() + 7, temperature)  # a shift changes no distribution
    divergence.backward()
    assert divergence.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student.grad))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_of_kl_is_the_difference_of_shares_times_temperature(temperature: float) -> None:
    student, teacher = scores(3, 5).requires_grad_(), scores(3, 5, seed=1)
    losses.kl(student, teacher, temperature).backward()
    shares = (student.detach() / temperature).softmax(1) - (teacher / temperature).softmax(1)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, temperature * shares / 3)


def test_gradients_keep_their_size_at_high_temperature() -> None:
    student, teacher = scores(3, 5).requires_grad_(), scores(3, 5, seed=1)
    losses.kl(student, teacher, temperature=1e5).backward()
    gap = student.detach() - teacher
    limit = (gap - gap.mean(dim=1, keepdim=True)) / 5 / 3  # Hinton et al. 2015, equation 4
    assert student.grad is not None
    torch.testing.assert_close(student.grad, limit, atol=1e-5, rtol=1e-4)


def test_teachers_get_no_gradient() -> None:
    teacher, theirs = scores(3, 5, seed=1).requires_grad_(), scores(2, 3, 4, seed=1).requires_grad_()
    losses.kl(scores(3, 5).requires_grad_(), teacher, 2).backward()
    states.hidden(scores(2, 3, 4).requires_grad_(), theirs, REAL).backward()
    assert teacher.grad is None
    assert theirs.grad is None


def test_hidden_ignores_padding() -> None:
    student, teacher = scores(2, 3, 4), scores(2, 3, 4, seed=1)
    garbage = student.clone()
    garbage[~REAL] = 1e6
    torch.testing.assert_close(states.hidden(garbage, teacher, REAL), states.hidden(student, teacher, REAL))


def test_only_collisions_are_masked() -> None:
    masked = losses.collisions_masked(torch.zeros(3, 4), torch.tensor([2, 1, 0, 2]), LABELS)
    hit = -math.inf
    assert masked.tolist() == [[hit, 0, 0, hit], [0, 0, hit, 0], [hit, 0, 0, hit]]


def test_a_collision_adds_nothing_to_loss_or_gradient() -> None:
    own, others = scores(1), scores(1, 3, seed=1).requires_grad_()
    masked = others.masked_fill(torch.tensor([[False, True, False]]), -math.inf)
    without = others[:, [0, 2]]
    torch.testing.assert_close(losses.sampled_softmax(own, masked), losses.sampled_softmax(own, without))
    torch.testing.assert_close(losses.gbce(own, masked, 9, 0), losses.gbce(own, without, 9, 0))
    (losses.sampled_softmax(own, masked) + losses.gbce(own, masked, 9, 0.5)).backward()
    assert others.grad is not None
    assert others.grad.isfinite().all()
    assert others.grad[0, 1] == 0


def test_scores_of_different_catalogues_are_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"student scores \(3, 5\), teacher scores \(3, 6\)"):
        losses.kl(scores(3, 5), scores(3, 6), 1)


@pytest.mark.parametrize("width", [1, 8])
def test_hidden_states_of_different_widths_are_an_error_and_are_not_broadcast(width: int) -> None:
    with pytest.raises(ValueError, match=rf"student states \(2, 3, 4\), teacher states \(2, 3, {width}\)"):
        states.hidden(scores(2, 3, 4), scores(2, 3, width), REAL)
