"""Losses of rankings: values worked out by hand, gradients against finite differences, and what they do not look at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.methods import rankings


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_teachers_best_come_first_and_the_rest_is_drawn_without_them() -> None:
    teacher = scores(6, 20)
    torch.manual_seed(1)
    items = rankings.best_and_drawn(teacher, 4, 5)
    assert torch.equal(items[:, :4], teacher.topk(4, dim=1).indices)
    assert all(len(set(row)) == 9 for row in items.tolist())
    torch.manual_seed(2)
    assert not torch.equal(items[:, 4:], rankings.best_and_drawn(teacher, 4, 5)[:, 4:])


def test_each_other_item_is_drawn_as_often() -> None:
    teacher = torch.arange(6.0).repeat(30_000, 1)
    torch.manual_seed(0)
    counts = rankings.best_and_drawn(teacher, 2, 1)[:, 2].bincount(minlength=6)
    assert counts[:4].tolist() == pytest.approx([7_500] * 4, rel=0.05)
    assert counts[4:].tolist() == [0, 0]


def test_each_set_of_other_items_is_drawn_as_often() -> None:
    """Wherever the best stand among them."""
    teacher = torch.tensor([[0.0, 5, 1, 2, 7], [9, 8, 0, 1, 2]])
    torch.manual_seed(0)
    drawn = torch.stack([rankings.best_and_drawn(teacher, 2, 2)[:, 2:].sort(dim=1).values for _ in range(3000)])
    for row, others in enumerate(([0, 2, 3], [2, 3, 4])):
        sets, counts = drawn[:, row].unique(dim=0, return_counts=True)
        assert sets.tolist() == [list(pair) for pair in itertools.combinations(others, 2)]
        assert counts.tolist() == pytest.approx([1000] * 3, rel=0.1)


@pytest.mark.parametrize(("count", "others", "found"), [(3, 9, 5), (9, 0, 5), (9, 9, 5), (2, 0, 2)])
def test_a_small_catalogue_has_no_more_items(count: int, others: int, found: int) -> None:
    assert rankings.best_and_drawn(scores(3, 5), count, others).shape == (3, found)


def test_relaxed_ranking_is_the_likelihood_worked_out_by_hand() -> None:
    interesting, others = logs([4, 2]), logs([1, 3])
    likelihood = (4 / (4 + 2 + 1 + 3)) * (2 / (2 + 1 + 3))
    assert rankings.relaxed_ranking(interesting, others).item() == pytest.approx(-math.log(likelihood) / 2)


def test_without_others_it_is_the_likelihood_of_the_permutation() -> None:
    interesting = scores(1, 4)
    total = sum(
        math.exp(-4 * rankings.relaxed_ranking(interesting[:, list(order)], interesting[:, :0]).item())
        for order in itertools.permutations(range(4))
    )
    assert total == pytest.approx(1), "the likelihoods of all orders"


def test_the_order_of_others_is_nothing() -> None:
    interesting, others = scores(2, 3), scores(2, 4, seed=1)
    value = rankings.relaxed_ranking(interesting, others)
    torch.testing.assert_close(value, rankings.relaxed_ranking(interesting, others.flip(1)))
    assert rankings.relaxed_ranking(interesting, others + 1) > value


def test_ranknet_is_the_mean_over_ordered_pairs() -> None:
    student, teacher = logs([2, 1, 1]), torch.tensor([[3.0, 1.0, 1.0]])
    assert rankings.ranknet(student, teacher).item() == pytest.approx(math.log(1 + 1 / 2))
    assert rankings.ranknet(student, torch.zeros(1, 3)).item() == 0


def test_lambda_loss_is_the_sum_worked_out_by_hand() -> None:
    # The student has the two items the wrong way round: places 1 and 0.
    student, teacher = logs([1, 3]), logs([3, 1])
    change = (3 / 4 - 1 / 4) * (1 - 1 / math.log2(3)) / (3 / 4 + (1 / 4) / math.log2(3))
    assert rankings.lambda_loss(student, teacher).item() == pytest.approx(change * math.log(1 + 3))


def test_lambda_loss_cares_for_the_top() -> None:
    """Of two swaps of neighbours the one at the top is worse."""
    teacher = torch.arange(6, 0, -1).double()[None]
    top, bottom = teacher.clone(), teacher.clone()
    top[0, :2], bottom[0, 4:] = teacher[0, :2].flip(0), teacher[0, 4:].flip(0)
    right, first, last = (rankings.lambda_loss(each, teacher) for each in (teacher, top, bottom))
    assert first - right > 10 * (last - right) > 0


OF_ITEMS: dict[str, Callable[[Tensor], Tensor]] = {
    "relaxed_ranking": lambda table: rankings.relaxed_ranking(table[:, :3], table[:, 3:]),
    "ranknet": lambda table: rankings.ranknet(table, scores(4, 6, seed=1)),
    "lambda_loss": lambda table: rankings.lambda_loss(table, scores(4, 6, seed=1)),
}


@pytest.mark.parametrize("name", OF_ITEMS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(OF_ITEMS[name], scores(4, 6).requires_grad_())


@pytest.mark.parametrize("name", OF_ITEMS)
def test_a_constant_added_to_all_scores_changes_nothing(name: str) -> None:
    table = scores(4, 6)
    torch.testing.assert_close(OF_ITEMS[name](table), OF_ITEMS[name](table + 7))


@pytest.mark.parametrize("name", OF_ITEMS)
def test_it_falls_when_the_student_ranks_as_the_teacher(name: str) -> None:
    teacher = scores(4, 6, seed=1)
    order = teacher.argsort(dim=1, descending=True)
    ranked = torch.empty_like(teacher).scatter_(1, order, torch.arange(6, 0, -1).double().repeat(4, 1))
    if name == "relaxed_ranking":
        ranked = ranked.sort(dim=1, descending=True).values  # its items are in the teacher's order already
    assert OF_ITEMS[name](3 * ranked) < OF_ITEMS[name](ranked) < OF_ITEMS[name](torch.zeros(4, 6).double())
    assert OF_ITEMS[name](-ranked) > OF_ITEMS[name](torch.zeros(4, 6).double())
