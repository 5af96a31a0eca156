"""Which known items a text is like: the obvious ones, the hidden ones never, and nothing where nothing is shared."""

from __future__ import annotations

import numpy as np
import pytest

from compress.methods.text_similarity import SHARPNESS, TextSimilarity

TEXTS = ["red mug", "blue mug", "oak table", "oak chair", "", "garden hose"]


@pytest.fixture(scope="module")
def similarity() -> TextSimilarity:
    return TextSimilarity(TEXTS)


def weights(similarity: TextSimilarity, text: str, nearest: int = 3, hidden: list[int] | None = None) -> list[float]:
    found = similarity.weights([text], nearest, None if hidden is None else np.array(hidden))
    row: list[float] = found.toarray()[0].tolist()
    return row


def test_the_same_text_is_most_alike_and_weights_sum_to_one(similarity: TextSimilarity) -> None:
    row = weights(similarity, "red mug")
    assert int(np.argmax(row)) == 0
    assert row[0] > 0.9
    assert sum(row) == pytest.approx(1)


def test_a_word_in_another_form_is_like_it(similarity: TextSimilarity) -> None:
    row = weights(similarity, "mugs")
    assert min(row[:2]) > 0.2
    assert row[0] + row[1] == pytest.approx(1)


def test_no_more_than_the_nearest_count(similarity: TextSimilarity) -> None:
    assert np.count_nonzero(weights(similarity, "red oak", nearest=1)) == 1
    assert np.count_nonzero(weights(similarity, "red oak", nearest=100)) == 3


def test_hidden_items_lend_nothing(similarity: TextSimilarity) -> None:
    assert weights(similarity, "red mug", hidden=[0, 2])[:2] == [0, 1]


def test_a_text_that_shares_nothing_has_no_weights(similarity: TextSimilarity) -> None:
    assert weights(similarity, "xyzzy") == weights(similarity, "") == [0] * len(TEXTS)


def test_weights_are_powers_of_the_cosine() -> None:
    one = TextSimilarity(["red mug", "red hat"])
    features = one.features.transform(["red mug", "red hat", "red mug hat"]).toarray()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    powers = (unit[:2] @ unit[2]) ** SHARPNESS
    assert weights(one, "red mug hat") == pytest.approx((powers / powers.sum()).tolist())


def test_what_else_is_new_changes_nothing(similarity: TextSimilarity) -> None:
    alone = similarity.weights(["oak desk"], 3).toarray()
    together = similarity.weights(["desk", "oak desk", "desk desk"], 3).toarray()
    np.testing.assert_array_equal(together[1], alone[0])


def test_texts_without_a_word_are_refused() -> None:
    with pytest.raises(ValueError, match="empty vocabulary"):
        TextSimilarity(["", " - "])
