"""Co-occurrence: counts by hand, and vectors whose products are the information they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fakes
from compress.methods.cooccurrence import follows, item_vectors

HELD_OUT = [9, 9]


def test_what_follows_within_the_window_is_counted_in_training_parts() -> None:
    people = fakes.interactions_of([[0, 1, 2, *HELD_OUT], [1, 0, *HELD_OUT]], items=10)
    one, two = (follows(people, window).toarray() for window in (1, 2))
    assert one[:3, :3].tolist() == [[0, 1, 0], [1, 0, 1], [0, 0, 0]]
    assert two[:3, :3].tolist() == [[0, 1, 1], [1, 0, 1], [0, 0, 0]]
    assert one[3:].sum() == two[3:].sum() == 0


def test_products_are_the_information_as_far_as_vectors_can_tell_it() -> None:
    """Items 0 and 1 always together, 2 and 3 too: in 12 pairs, one in 3 * 3 / 12 was expected where 3 were seen."""
    people = fakes.interactions_of([[0, 1, *HELD_OUT]] * 3 + [[2, 3, *HELD_OUT]] * 3, items=10)
    vectors = item_vectors(people, width=9)
    products = vectors @ vectors.T
    # [[0, a], [a, 0]] twice, with a = log 4: eigenvalues a and -a; the nearest that has vectors is [[a, a], [a, a]] / 2
    pair = np.ones((2, 2))
    assert products[:4, :4] / products[0, 1] == pytest.approx(np.kron(np.eye(2), pair), abs=1e-5)
    assert (vectors[4:] == 0).all()
    assert math.isclose(np.square(vectors).mean(), 1, rel_tol=1e-5)


def test_items_used_together_are_close_and_others_are_not() -> None:
    orders = [np.random.default_rng(user).permutation(10) for user in range(40)]
    lists = [[*(low + order).tolist(), 20, 20] for order in orders for low in (0, 10)]
    vectors = item_vectors(fakes.interactions_of(lists, items=21), 16)[:20]
    cosine = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    assert cosine[:10, :10].min() > 0.9
    assert cosine[:10, 10:].max() < 0.1


def test_vectors_are_the_best_of_their_width() -> None:
    people = fakes.interactions(users=80, items=20, shortest=8, longest=15)
    wide, narrow = item_vectors(people, 15).astype(float), item_vectors(people, 4).astype(float)
    assert (len(wide.T) > 4, narrow.shape) == (True, (20, 4))
    strengths = [np.linalg.svd(table, compute_uv=False) ** 2 for table in (wide, narrow)]
    wide_top, narrow_top = (values / values[0] for values in strengths)
    assert narrow_top[:4] == pytest.approx(wide_top[:4], rel=1e-4)


def test_the_same_data_give_the_same_vectors() -> None:
    people = fakes.interactions(users=40, items=20)
    assert np.array_equal(item_vectors(people, 8), item_vectors(people, 8))


def test_a_catalogue_smaller_than_the_width_gives_fewer_columns() -> None:
    assert 5 < item_vectors(fakes.interactions(users=40, items=20), 64).shape[1] < 20


def test_users_of_one_item_give_no_information() -> None:
    assert (item_vectors(fakes.interactions_of([[0, *HELD_OUT]] * 5, items=10), 4) == 0).all()
