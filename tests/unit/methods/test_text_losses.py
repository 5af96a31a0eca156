"""Losses of models over texts: values worked out by hand, gradients against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.data.histories import MASKED
from compress.methods import losses

LABELS = torch.tensor([2, 0, 2])


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bce_is_the_mean_over_every_item_worked_out_by_hand() -> None:
    # the logit of a share p is log(p / (1 - p)): shares 3/4 and 1/3 of the first example, 1/2 and 4/5 of the second
    table = torch.tensor([[3.0, 1 / 2], [1.0, 4.0]], dtype=torch.float64).log()
    expected = -(math.log(3 / 4) + math.log(2 / 3) + math.log(1 / 2) + math.log(4 / 5)) / 4
    assert losses.bce(table, torch.eye(2)).item() == pytest.approx(expected)


def test_mse_is_the_mean_square_of_differences() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, 5.0]]), torch.tensor([[2.0, 2.0], [3.0, 4.0]])
    assert losses.mse(student, teacher).item() == pytest.approx((1 + 0 + 9 + 1) / 4)


def test_margin_mse_compares_the_labels_lead_over_each_other_item() -> None:
    student = torch.tensor([[3.0, 1.0, 0.0], [1.0, 5.0, 2.0]])
    teacher = torch.tensor([[1.0, 0.0, 4.0], [7.0, 7.0, 3.0]])
    # leads of the student 2 and 3, of the teacher 1 and -3; then 4 and 3 against 0 and 4
    errors, theirs = (2 - 1) ** 2 + (3 + 3) ** 2 + (4 - 0) ** 2 + (3 - 4) ** 2, 1**2 + 3**2 + 0**2 + 4**2
    for scaled, expected in ((False, errors / 4), (True, errors / theirs)):
        found = losses.margin_mse(student, teacher, torch.tensor([0, 1]), scaled=scaled)
        assert found.item() == pytest.approx(expected)


def test_levels_may_differ_and_distances_may_not() -> None:
    student, shift = scores(3, 5), scores(3, 1, seed=1)
    assert losses.margin_mse(student, student + shift, LABELS).item() == pytest.approx(0, abs=1e-12)
    assert losses.mse(student, student + shift).item() == pytest.approx(shift.square().mean().item())
    assert losses.margin_mse(student, 2 * student, LABELS) > 0.1


def test_an_example_with_its_label_alone_has_no_margin() -> None:
    found = losses.margin_mse(scores(3, 1), scores(3, 1, seed=1), torch.zeros(3, dtype=torch.long))
    assert found.item() == 0


DIFFERENTIABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "bce": lambda table: losses.bce(table, torch.eye(5)[LABELS]),
    "mse": lambda table: losses.mse(table, scores(3, 5, seed=1)),
    "margin_mse": lambda table: losses.margin_mse(table, scores(3, 5, seed=1), LABELS),
    "scaled margin_mse": lambda table: losses.margin_mse(table, scores(3, 5, seed=1), LABELS, scaled=True),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(DIFFERENTIABLE[name], (scores(3, 5).requires_grad_(),))


def test_the_gradient_of_bce_is_the_difference_to_what_is_wanted() -> None:
    table = scores(3, 5).requires_grad_()
    wanted = torch.eye(5, dtype=torch.float64)[LABELS]
    losses.bce(table, wanted).backward()
    assert table.grad is not None
    torch.testing.assert_close(table.grad, (table.detach().sigmoid() - wanted) / 15)


def masked(label: float, other: float) -> Tensor:
    """An example whose last item is no pair: the label once more, as two towers see it in a batch."""
    return torch.tensor([[label, other, MASKED]])


@pytest.mark.parametrize(("ours", "theirs"), [(3.0, 2.0), (40.0, 20.0), (100.0, -100.0)])
def test_a_masked_item_is_no_margin(ours: float, theirs: float) -> None:
    student, teacher = masked(ours, 1.0), masked(theirs, theirs - (ours - 1.0))  # the same lead over the other item
    assert losses.margin_mse(student, teacher, torch.tensor([0])).item() == pytest.approx(0, abs=1e-6)


def test_a_masked_item_changes_nothing_about_the_others() -> None:
    ours, theirs, label = masked(3.0, 1.0), masked(2.0, -1.0), torch.tensor([0])
    student, teacher = ours[:, :2], theirs[:, :2]
    pairs = [
        (losses.mse(ours, theirs), losses.mse(student, teacher)),
        (losses.margin_mse(ours, theirs, label), losses.margin_mse(student, teacher, label)),
        (losses.kl(ours, theirs, 2.0), losses.kl(student, teacher, 2.0)),
        (losses.softmax(ours, label), losses.softmax(student, label)),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)


def test_smoothing_spreads_nothing_over_a_masked_item() -> None:
    assert losses.softmax(masked(3.0, 1.0), torch.tensor([0]), label_smoothing=0.1) < 10
