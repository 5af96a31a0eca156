"""Rows of new items: means worked out by hand, at the length of what they are made of."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from compress.methods.new_rows import equal_weights, mean_rows

TABLE = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0], [6.0, 8.0]], dtype=np.float32)


def test_a_mean_worked_out_by_hand_is_as_long_as_its_parts_are_on_average() -> None:
    weights = sp.csr_matrix([[0.5, 0.5, 0, 0], [0.2, 0, 0, 0.8]])
    # The means are (1.5, 2) and (5.4, 6.4); the parts are 3 and 4, and 3 and 10 long.
    expected = [np.array([1.5, 2]) / 2.5 * 3.5, np.array([5.4, 6.4]) / np.hypot(5.4, 6.4) * 8.6]
    found = mean_rows(weights, TABLE)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_the_mean_of_one_row_is_the_row() -> None:
    np.testing.assert_allclose(mean_rows(sp.csr_matrix(np.eye(4)), TABLE), TABLE)


def test_rows_that_cancel_out_and_no_rows_at_all_give_zeros() -> None:
    table = np.array([[1.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    assert mean_rows(sp.csr_matrix([[0.5, 0.5], [0, 0]]), table).tolist() == [[0, 0], [0, 0]]


def test_given_neighbours_weigh_the_same() -> None:
    weights = equal_weights([[1, 3], [0], [0, 1, 2]], known=4)
    third = pytest.approx(1 / 3)
    assert weights.toarray().tolist() == [[0, 0.5, 0, 0.5], [1, 0, 0, 0], [third, third, third, 0]]
