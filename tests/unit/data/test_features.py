"""What is known of items and users, and of an item's place in its list, as numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import fakes
import text_fakes
from compress import features
from compress.data.features import OPINIONS, Encoding, Features, write_features
from compress.data.histories import Asked
from compress.data.interactions import ATTRIBUTES, Rehearsals
from compress.errors import DataError
from compress.recipe.features import FeaturesSection
from compress.stage import Workspace

TABLE = pl.DataFrame({"age": ["20", "40", ""], "job": ["cook", "cook poet", "poet"], "town": ["a", "b", ""]})


def section(**options: Any) -> FeaturesSection:
    return FeaturesSection.model_validate({"kind": "features", "min_count": 1, **options})


def made(folder: Path, options: dict[str, Any], users: pl.DataFrame | None = None) -> tuple[Features, dict[str, Any]]:
    """The stage, run on the text fakes' catalogue."""
    data = text_fakes.data(folder / "data", text_fakes.table())
    if users is not None:
        users.write_parquet(folder / "data" / ATTRIBUTES)
    (folder / "made").mkdir()
    metrics = features.run(section(**options), {"data": data}, Workspace(folder / "made", seed=0))
    return Features.load(folder / "made"), metrics


def test_numbers_are_standardised_and_words_have_a_feature_each() -> None:
    encoding = Encoding.learn(TABLE, ["age"], ["job"], min_count=1)
    assert encoding.names == ["age", "job=cook", "job=poet"]
    deviation = np.std([20, 40], ddof=1)
    found = encoding.of([{"age": "40", "job": "poet"}, {"age": "old", "job": "poet poet cook"}, {}])
    assert found == pytest.approx(np.array([[10 / deviation, 0, 1], [0, 1, 1], [0, 0, 0]]))


@pytest.mark.parametrize("cell", ["", None, "inf", "nan"])
def test_a_cell_without_a_number_is_not_counted(cell: str | None) -> None:
    table = pl.DataFrame({"age": ["20", "40", cell]})
    assert Encoding.learn(table, ["age"], [], 1) == Encoding.learn(table.head(2), ["age"], [], 1)


def test_words_are_told_apart_alike_when_learned_and_when_read() -> None:
    table = pl.DataFrame({"town": ["New\u00a0York", "New York", "\tYork"]})
    encoding = Encoding.learn(table, [], ["town"], min_count=1)
    assert encoding.names == ["town=New", "town=York"]
    assert encoding.of([{"town": cell} for cell in table["town"]]).tolist() == [[1, 1], [1, 1], [0, 1]]


def test_a_rare_word_is_no_feature() -> None:
    assert Encoding.learn(TABLE, [], ["job", "town"], min_count=2).names == ["job=cook", "job=poet"]


@pytest.mark.parametrize("text", ["nan", "inf", "", "x"])
def test_what_is_no_number_is_the_mean(text: str) -> None:
    assert Encoding.learn(TABLE, ["age"], [], 1).of([{"age": text}]).tolist() == [[0.0]]


def written(folder: Path) -> Features:
    """Three items whose vectors are known."""
    vectors = np.array([[2, 0], [0, 3], [0, 0]], dtype=np.float32)
    write_features(folder, ["a"], np.array([[5], [6], [7]], dtype=np.float32), vectors, Encoding({}, {}), recent=1)
    return Features.load(folder)


def test_a_pair_is_its_place_in_the_list_its_item_and_its_user(tmp_path: Path) -> None:
    known = written(tmp_path)
    scores = {0: -3.0, 1: -1.0, 2: -2.0}
    found = known.pairs(scores, np.array([0, 1]), {}, np.array([2, 1]))
    assert sum(known.sizes) == found.shape[1]
    deviation = np.std([-3, -1, -2])
    near = np.array([0.0, 1.0, 0.0])  # to item 1, the latest: item 0 is at right angles, item 2 has no vector
    nearness = (near - near.mean()) / near.std()
    assert found[:, :OPINIONS] == pytest.approx(
        np.array([[0, 0.5, nearness[2]], [1 / deviation, 1, nearness[1]]]), abs=1e-6
    )
    assert found[:, OPINIONS:] == pytest.approx(np.array([[7, 0, 0], [6, 0, np.sqrt(2)]]), abs=1e-6)


def test_an_items_features_do_not_depend_on_which_others_are_computed_with_it(tmp_path: Path) -> None:
    known = written(tmp_path)
    scores = {0: 4.0, 1: 1.0, 2: 2.5}
    together = known.pairs(scores, np.array([1]), {}, np.array([0, 1, 2]))
    alone = [known.pairs(scores, np.array([1]), {}, np.array([item]))[0] for item in range(3)]
    assert np.array_equal(together, np.stack(alone))


def test_the_scale_of_the_first_stages_scores_means_nothing(tmp_path: Path) -> None:
    known = written(tmp_path)
    one, other = (
        known.pairs(
            {item: a * score + b for item, score in ((0, 4.0), (1, 1.0), (2, 2.5))}, np.array([0]), {}, np.arange(3)
        )
        for a, b in ((1, 0), (7, -100))
    )
    assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("scores", [{}, {0: 1.0}, {0: 1.0, 1: 1.0, 2: 1.0}])
def test_a_list_that_says_nothing_is_finite(tmp_path: Path, scores: dict[int, float]) -> None:
    found = written(tmp_path).pairs(scores, np.empty(0, dtype=np.int64), {}, np.arange(3))
    assert np.isfinite(found).all()


def test_without_a_first_stage_there_are_no_features(tmp_path: Path) -> None:
    history = [np.array([0])]
    with pytest.raises(ValueError, match="first stage's scores are not there"):
        written(tmp_path).of(Asked(history, history), 0, np.array([1]))


def test_the_stage_reads_items_users_and_vectors(tmp_path: Path) -> None:
    given = tmp_path / "given.npz"
    np.savez(given, item_id=np.array(["id-3", "elsewhere"]), vectors=np.array([[3.0, 4.0], [1.0, 1.0]]))
    options = {
        "items": {"numeric": ["year"], "categorical": ["kind"]},
        "users": {"numeric": ["age"], "categorical": ["job"]},
        "vectors": str(given),
    }
    users = TABLE.with_columns(user=pl.Series(range(3), dtype=pl.Int32))
    known, metrics = made(tmp_path, options, users)
    kinds = {word for kind in text_fakes.KINDS if kind for word in kind.split()}
    assert metrics == {"items_features": 1 + len(kinds), "vectors_features": 2, "users_features": 3}
    assert known.vectors_ID[3] == pytest.approx([0.6, 0.8])
    assert not known.vectors_ID[[0, 1, 2, 4]].any()
    assert known.attributes == {"age", "job"}
    assert known.items_IF[:, 0].mean() == pytest.approx(0, abs=1e-5)


def test_cooccurrence_has_not_been_told_what_is_rehearsed(tmp_path: Path) -> None:
    """Vectors are the same whatever the rehearsed interactions were."""
    people = fakes.interactions(users=30, items=20, longest=12)
    rehearsed = Rehearsals(np.array([0]), people.train_ends[:1] - people.offsets[:1] - 2, [{}])
    kept = replace(people, rehearsals=rehearsed).before_rehearsals
    assert kept.parts.tolist() == people.without_latest(2).parts.tolist()
    assert (kept.parts != people.parts).sum() > people.user_count


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip"])
def test_a_file_that_is_no_npz_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "given.npz").write_bytes(content)
    with pytest.raises(DataError, match="no npz file with item_id and vectors: ") as raised:
        made(tmp_path, {"vectors": str(tmp_path / "given.npz")})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"items": {"numeric": ["colour"]}}, "features.items: there is no column 'colour'; there are text, kind, year"),
        ({"items": {"numeric": ["kind"]}}, "features.items: kind: not every cell is a number; is it categorical?"),
        ({"users": {"numeric": ["age"]}}, "features.users: nothing is known of users"),
        ({"vectors": "/nowhere.npz"}, "/nowhere.npz: no npz file with item_id and vectors"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as raised:
        made(tmp_path, options)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"item_id": np.array(["id-1"]), "vectors": np.ones((2, 3))}, "vectors are (2, 3), of 1 items"),
        ({"item_id": np.array(["id-1"]), "vectors": np.full((1, 3), np.nan)}, "one finite row for each"),
        ({"item_id": np.array(["elsewhere"]), "vectors": np.ones((1, 3))}, "none of its items is in the catalogue"),
        ({"vectors": np.ones((1, 3))}, "no npz file with item_id and vectors"),
        ({"item_id": np.array([{}], dtype=object), "vectors": np.ones((1, 3))}, "no npz file with item_id and vectors"),
    ],
)
def test_vectors_that_are_none_are_one_line(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "given.npz", **arrays)
    with pytest.raises(DataError) as raised:
        made(tmp_path, {"vectors": str(tmp_path / "given.npz")})
    assert said in str(raised.value)
