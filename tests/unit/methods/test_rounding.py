"""Rounding to int8: how far off, what stays as it is, and one matrix in several spellings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress.methods.rounding import Rounding, Stored, quantize_rows

STORAGES = ("none", "int8-per-row", "int8-per-column")


@pytest.fixture
def table() -> Tensor:
    """Rows of very different sizes, and one of zeros."""
    rows = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    return rows * torch.tensor([1e-6, 1e-2, 1.0, 3.0, 1e4, 0.0])[:, None]


def test_a_table_worked_out_by_hand() -> None:
    integers, scales = quantize_rows(torch.tensor([[1.27, -0.5, 0.004], [-254.0, 3.0, 0.9]]))
    torch.testing.assert_close(scales, torch.tensor([[0.01], [2.0]]))
    assert integers.tolist() == [[127, -50, 0], [-127, 2, 0]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_value_is_within_half_a_scale(table: Tensor, bits: int) -> None:
    integers, scales = quantize_rows(table, bits)
    assert integers.dtype == torch.int8
    assert scales.shape == (6, 1)
    assert ((integers * scales - table).abs() <= scales * 0.5001).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_fill_their_range_and_no_more(table: Tensor, bits: int) -> None:
    limit = 2 ** (bits - 1) - 1
    largest = quantize_rows(table, bits)[0].int().abs().amax(dim=1)
    assert largest.tolist() == [limit] * 5 + [0]


def test_rounding_twice_is_rounding_once(table: Tensor) -> None:
    integers, scales = quantize_rows(table)
    again, again_scales = quantize_rows(integers * scales)
    assert again.equal(integers)
    torch.testing.assert_close(again_scales, scales, rtol=1e-6, atol=0)


def test_zero_rows_stay_zero(table: Tensor) -> None:
    integers, scales = quantize_rows(table)
    assert (integers * scales)[5].tolist() == [0.0] * 16
    assert scales.isfinite().all()


def test_a_stored_matrix_is_the_matrix_or_its_rounding(table: Tensor) -> None:
    rows, columns = quantize_rows(table), quantize_rows(table.T)
    assert Stored(table)().equal(table)
    assert Stored(table, "int8-per-row")().equal(rows[0] * rows[1])
    assert Stored(table, "int8-per-column")().equal((columns[0] * columns[1]).T)


def test_a_stored_matrix_is_within_half_a_scale(table: Tensor) -> None:
    for storage in ("int8-per-row", "int8-per-column"):
        stored = Stored(table, storage)
        assert ((stored() - table).abs() <= stored.scales * 0.5001).all()


def test_a_stored_matrix_is_a_copy_that_does_not_learn(table: Tensor) -> None:
    learned = torch.nn.Parameter(table.clone())
    for storage in STORAGES:
        stored = Stored(learned, storage)
        before = stored().clone()
        with torch.no_grad():
            learned.add_(1)
        assert stored().equal(before)
        assert stored().is_contiguous()
        assert not any(parameter.requires_grad for parameter in stored.parameters())


@pytest.mark.parametrize(
    ("storage", "size"), [("none", 6 * 16 * 4), ("int8-per-row", 6 * 16 + 6 * 4), ("int8-per-column", 6 * 16 + 16 * 4)]
)
def test_int8_storage_is_a_quarter_and_its_scales(table: Tensor, storage: str, size: int) -> None:
    state = Stored(table, storage).state_dict()
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.values()) == size


def test_what_is_rounded_is_said_in_words() -> None:
    assert Rounding().parts() == []
    assert Rounding(linear="dynamic").parts() == ["products"]
    assert Rounding(linear="weights", item_table="int8-per-row").parts() == ["weights", "item table"]
