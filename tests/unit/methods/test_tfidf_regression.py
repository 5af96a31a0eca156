"""tf-idf regression: what shares words with a history comes first, and what a history is not told is not read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

import fakes
import text_fakes
from compress.data.histories import Asked, Recommend
from compress.data.interactions import IntArray, Interactions
from compress.data.texts import Texts
from compress.methods.tfidf_regression import tfidf_regression
from compress.models.cross_encoder import CrossEncoder
from compress.models.two_tower import TwoTower

TOPICS = ("harbour", "glacier", "orchard", "canyon")
EACH = 10
ITEMS = EACH * len(TOPICS)
Example = tuple[IntArray, IntArray]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """Four topics with a word each, and a word of each item's own; half of the items are called `good`."""
    words = [f"{TOPICS[item // EACH]} number{item} {'good' if item % 2 else 'poor'}" for item in range(ITEMS)]
    table = text_fakes.table(ITEMS).with_columns(text=pl.Series(words))
    made, _ = text_fakes.tokenized(tmp_path_factory.mktemp("texts"), table, tokenizer={"vocab_size": 400})
    return made


def examples(count: int, wanted: str) -> list[Example]:
    """What came next is of the history's topic (`topic`) or is a good item (`good`); the others are not."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        topic = random.integers(len(TOPICS))
        own = topic * EACH + random.permutation(EACH)
        others = random.permutation(np.setdiff1d(np.arange(ITEMS), own))
        if wanted == "topic":
            made.append((own[:3], np.array([own[3], *others[:5]])))
        else:
            everything = random.permutation(ITEMS)
            good, poor = everything[everything % 2 == 1], everything[everything % 2 == 0]
            made.append((own[:3], np.array([good[0], *poor[:5]])))
    return made


def learned(texts: Texts, examples: Sequence[Example], k: int) -> Recommend:
    histories, items = zip(*examples, strict=True)
    wanted = [np.arange(len(some)) == 0 for some in items]
    return tfidf_regression(texts, Asked(histories, fakes.nothing(histories)), items, wanted, k)


def test_items_that_share_words_with_the_history_come_first(texts: Texts) -> None:
    recommend = learned(texts, examples(300, "topic"), k=6)
    for topic in range(len(TOPICS)):
        history = topic * EACH + np.arange(4)
        top = recommend(Asked([history], [history]))[0]
        assert set(top.tolist()) == set(range(topic * EACH + 4, topic * EACH + 10))


def test_items_that_are_liked_for_their_own_words_come_first_whatever_the_history(texts: Texts) -> None:
    recommend = learned(texts, examples(300, "good"), k=12)
    histories = [np.array([0, 2]), np.array([33, 35, 37]), np.array([], dtype=np.int64)]
    assert (recommend(Asked(histories, fakes.nothing(histories))) % 2 == 1).all()


def test_what_is_excluded_is_not_recommended_and_the_others_keep_their_order(texts: Texts) -> None:
    recommend = learned(texts, examples(300, "topic"), k=15)
    history = np.array([12, 15])
    free = recommend(Asked([history], [history]))[0]
    barred = np.append(history, free[:4])
    again = recommend(Asked([history], [barred]))[0]
    assert not set(again.tolist()) & set(barred.tolist())
    assert again[:11].tolist() == free[4:].tolist()


def test_a_batch_is_answered_as_its_users_one_by_one(texts: Texts) -> None:
    recommend = learned(texts, examples(300, "topic"), k=8)
    histories = fakes.histories(1, 5, 0, 9, items=ITEMS)
    together = recommend(Asked(histories, histories))
    for row, history in zip(together, histories, strict=True):
        assert row.tolist() == recommend(Asked([history], [history]))[0].tolist()


def test_only_the_latest_items_are_read(texts: Texts) -> None:
    assert texts.layout.last == 4
    recommend = learned(texts, examples(300, "topic"), k=6)
    long = np.array([20, 21, 22, 23, 24, 25, 0, 1, 2, 3])  # most of it about another topic, long ago
    assert set(recommend(Asked([long], [long]))[0].tolist()) == {4, 5, 6, 7, 8, 9}
    assert recommend(Asked([long], [long])).tolist() == recommend(Asked([long[-4:]], [long])).tolist()
    assert recommend(Asked([long], [long])).tolist() != recommend(Asked([long[:-4]], [long])).tolist()


def topical() -> Interactions:
    """Everybody stays within a topic."""
    random = np.random.default_rng(1)
    return fakes.interactions_of(
        [(user % 4 * EACH + random.permutation(EACH)[:8]).tolist() for user in range(60)], ITEMS
    )


@pytest.mark.parametrize("family", ["cross_encoder", "two_tower"])
@pytest.mark.parametrize("negatives", [0, 39])
def test_models_over_texts_are_held_against_it(texts: Texts, family: str, negatives: int) -> None:
    """It learns from the training parts alone, however many negatives the model has."""
    people = topical()
    if family == "cross_encoder":
        model = text_fakes.cross_encoder(texts, negatives=max(1, negatives))
        found = CrossEncoder().baselines(model, people, 5)
    else:
        model = text_fakes.two_tower(texts, negatives=negatives)
        found = TwoTower().baselines(model, people, 5)
    assert list(found) == ["tfidf"]
    history = np.array([20, 21, 22])
    top = found["tfidf"](Asked([history], [history]))
    assert top.shape == (1, 5)
    assert set((top[0] // EACH).tolist()) == {2}
    assert model.config.recommender["negatives"] == (max(1, negatives) if family == "cross_encoder" else negatives)


def test_held_out_items_are_not_learned_from(texts: Texts) -> None:
    people = topical()
    random = np.random.default_rng(2)
    lists = [people.items[start : start + 8].tolist() for start in people.offsets[:-1]]
    other = fakes.interactions_of([[*each[:6], *random.permutation(ITEMS)[:2].tolist()] for each in lists], ITEMS)
    model = text_fakes.two_tower(texts)
    one, another = (TwoTower().baselines(model, each, 9)["tfidf"] for each in (people, other))
    asked = fakes.histories(1, 4, 9, items=ITEMS)
    assert one(Asked(asked, asked)).tolist() == another(Asked(asked, asked)).tolist()
