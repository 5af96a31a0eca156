"""Labels: what was said before a moment predicts what is said after it, from raw rows to metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from benchmarks import measure
from benchmarks.variants import Variant
from compress import prepare
from compress.data.histories import MASKED, Asked
from compress.data.interactions import NOBODY, TRAIN, Interactions
from compress.errors import DataError
from compress.metrics import compare, estimate, prediction_metrics, ranking_metrics
from compress.recipe.data import Columns, Synthetic, Table
from compress.stage import Workspace

ROWS = [  # user, item, time, stars
    ("a", "w", 1, 5),
    ("a", "x", 2, 1),
    ("a", "y", 2, 4),
    ("b", "w", 3, 4),
    ("b", "z", 3, 5),
    ("a", "z", 4, 2),
    ("b", "x", 5, 3),
    ("a", "v", 6, 4),  # from here on validation
    ("b", "y", 7, 2),
    ("b", "v", 8, 5),  # and from here on test
    ("a", "u", 8, 5),
    ("c", "w", 9, 1),
]


@pytest.fixture(autouse=True)
def small_catalogues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "TOP", 2)


def table(folder: Path, rows: list[tuple[str, str, int, int]] = ROWS, **options: Any) -> Table:
    path = folder / "ratings.csv"
    path.write_text("\n".join(["user_id,item_id,timestamp,stars", *(",".join(map(str, row)) for row in rows)]))
    fields: dict[str, Any] = {"min_interactions": 1, "positive_rating": 4, "split": "time", "held_out": 0.2}
    return Table(source="csv", path=path, columns=Columns(rating="stars"), **{**fields, **options})


def prepared(section: Any, folder: Path) -> Interactions:
    folder.mkdir()
    prepare.run(section, {}, Workspace(folder, seed=0))
    return Interactions.load(folder)


def names(people: Interactions, folder: Path, items: Any) -> list[str]:
    ids = pl.read_parquet(folder / "items.parquet")["item_id"].to_list()
    return [ids[item] for item in items]


def test_a_moment_divides_what_everybody_said(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    people = prepared(table(tmp_path), folder)
    told = {
        split: {
            user: (
                names(people, folder, people.history(split, user)),
                sorted(names(people, folder, people.candidates[split][user])),
                sorted(names(people, folder, [item for item in row if item != NOBODY])),
            )
            for user, row in zip(people.users(split).tolist(), people.targets(split), strict=True)
        }
        for split in ("validation", "test")
        if people.candidates
    }
    assert told["validation"] == {0: (["w", "y"], ["v"], ["v"]), 1: (sorted(["w", "z"]), ["y"], [])}
    assert {user: (sorted(said[0]), *said[1:]) for user, said in told["test"].items()} == {
        0: (["v", "w", "y"], ["u"], ["u"]),
        1: (["w", "z"], ["v"], ["v"]),
        2: ([], ["w"], []),
    }


def test_a_label_is_learned_from_what_was_liked_at_an_earlier_moment(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    people = prepared(table(tmp_path), folder)
    labels = people.labels
    assert labels is not None
    found = sorted(
        (user, names(people, folder, [item])[0], place, wanted)
        for user, item, place, wanted in zip(labels.users, labels.items, labels.places, labels.wanted, strict=True)
    )
    expected = [(0, "w", 0, 1), (0, "x", 1, 0), (0, "y", 1, 1), (0, "z", 2, 0)]
    assert found == [*expected, (1, "w", 0, 1), (1, "x", 2, 0), (1, "z", 0, 1)]
    assert [len(people.train(user)) for user in range(3)] == [2, 2, 0]
    assert people.popularity().sum() == 4


def test_one_moment_is_in_one_part(tmp_path: Path) -> None:
    rows = [("abc"[row % 3], f"i{row}", row // 4, 5 - 3 * (row % 2)) for row in range(60)]
    for held_out in (0.1, 0.17, 0.3):
        folder = tmp_path / str(held_out)
        prepared(table(tmp_path, rows, held_out=held_out), folder)
        stored = pl.read_parquet(folder / "interactions.parquet")
        assert (stored.group_by("timestamp").agg(pl.col("part").n_unique())["part"] == 1).all()
        ends = stored.group_by("part").agg(low=pl.min("timestamp"), high=pl.max("timestamp")).sort("part")
        assert ends["high"][0] < ends["low"][1] <= ends["high"][1] < ends["low"][2]
        assert (stored["part"] == 2).mean() == pytest.approx(held_out, abs=4 / 60)


def test_a_user_is_judged_on_so_many_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compress.data import log

    monkeypatch.setattr(log, "JUDGED", 3)
    rows = [("a", f"i{row}", row, 5 - 3 * (row % 2)) for row in range(60)]
    people = prepared(table(tmp_path, rows, held_out=0.2), tmp_path / "data")
    assert people.candidates is not None
    assert [len(people.candidates[split][0]) for split in ("validation", "test")] == [3, 3]
    assert int((people.parts == TRAIN).sum()) == 18


def test_rows_without_a_time_stand_in_order_of_it(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    lines = [f"u{row % 5},i{row % 7},{row % 2}" for row in range(35)]
    path.write_text("\n".join(["user_id,item_id,label", *lines]))
    columns = Columns(timestamp=None, rating="label")
    section = Table(source="csv", path=path, columns=columns, positive_rating=1, split="time", min_interactions=1)
    people = prepared(section, tmp_path / "data")
    stored = pl.read_parquet(tmp_path / "data" / "interactions.parquet")
    assert sorted(stored["timestamp"].to_list()) == list(range(35))
    assert stored.filter(pl.col("part") == 2)["timestamp"].min() == 31
    assert (stored["label"] == stored["timestamp"] % 2).all()
    assert people.labels is not None


@pytest.mark.parametrize("stars", [5, 1])
def test_with_one_label_alone_there_is_nothing_to_tell_apart(tmp_path: Path, stars: int) -> None:
    rows = [(user, item, time, stars) for user, item, time, _ in ROWS]
    with pytest.raises(DataError, match=r"no user has a|nothing to tell apart"):
        prepared(table(tmp_path, rows), tmp_path / "data")


def test_of_two_labels_of_one_moment_the_yes_counts(tmp_path: Path) -> None:
    rows = [*ROWS, ("b", "x", 5, 5)]
    for order in (rows, rows[::-1]):
        folder = tmp_path / str(order is rows)
        prepared(table(tmp_path, order), folder)
        stored = pl.read_parquet(folder / "interactions.parquet")
        (x,) = pl.read_parquet(folder / "items.parquet").filter(pl.col("item_id") == "x")["item"].to_list()
        assert stored.filter((pl.col("user") == 1) & (pl.col("item") == x))["label"].to_list() == [1]


def test_synthetic_users_refuse_as_often_as_they_are_told_to(tmp_path: Path) -> None:
    section = Synthetic(source="synthetic", users=300, refused=0.3, positive_rating=3, split="time")
    prepared(section, tmp_path / "data")
    stored = pl.read_parquet(tmp_path / "data" / "interactions.parquet")
    assert stored["label"].mean() == pytest.approx(0.7, abs=0.06)


# --- attributes ---


def test_a_table_of_users_says_what_is_known_of_them_and_not_who_they_are(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id,age,query\nb,33,red mug\na,,blue cup\nnobody,9,x\n")
    people = prepared(table(tmp_path, users=tmp_path / "users.csv"), tmp_path / "data")
    assert people.attributes == [
        {"age": "", "query": "blue cup"},
        {"age": "33", "query": "red mug"},
        {"age": "", "query": ""},
    ]
    assert not (tmp_path / "data" / "users.parquet").exists()
    assert people.asked("test", np.array([1])).attributes_of(0) == {"age": "33", "query": "red mug"}


def test_a_table_of_items_gives_columns_to_templates(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,text,brand\nw,a mug,acme\nz,a cup,\n")
    prepared(table(tmp_path, items=tmp_path / "items.csv"), tmp_path / "data")
    stored = pl.read_parquet(tmp_path / "data" / "items.parquet").select("item_id", "text", "brand")
    assert {row[0]: row[1:] for row in stored.rows()} | {"w": ("a mug", "acme")} == {
        "u": (None, None), "v": (None, None), "w": ("a mug", "acme"), "x": (None, None), "y": (None, None),
        "z": ("a cup", None),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("user_id,age\na,1\na,2\n", "user_id 'a' is there more than once"),
        ("name,age\na,1\n", "no column 'user_id'"),
        ("user_id,popularity\na,1\n", "a column may not be named 'popularity'"),
        ("", "cannot be read"),
    ],
)
def test_a_table_of_users_that_cannot_be_used_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "users.csv").write_text(content)
    with pytest.raises(DataError, match=said) as error:
        prepared(table(tmp_path, users=tmp_path / "users.csv"), tmp_path / "data")
    assert "\n" not in str(error.value)


# --- metrics ---


def lists(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and labels of 9 users' 12 candidates, and the candidates in order of score."""
    random = np.random.default_rng(seed)
    scores, labels = random.normal(size=(9, 12)), (random.random((9, 12)) < 0.4).astype(int)
    labels[:, 0], labels[:, 1] = 1, 0
    return scores, labels, np.argsort(-scores, axis=1)


def targets_of(labels: np.ndarray) -> np.ndarray:
    found = np.full(labels.shape, NOBODY)
    for row, own in zip(found, labels, strict=True):
        row[: own.sum()] = np.flatnonzero(own)
    return found


def test_ranking_metrics_of_several_targets_are_scikit_learns() -> None:
    scores, labels, top = lists()
    found = ranking_metrics(top, targets_of(labels), whole=True)
    rows = list(zip(labels, scores, strict=True))
    assert found["auc"].tolist() == pytest.approx([roc_auc_score(*row) for row in rows])
    assert found["ndcg@10"].tolist() == pytest.approx([ndcg_score([own], [score], k=10) for own, score in rows])
    best = [own[order[:10]].sum() / min(10, own.sum()) for own, order in zip(labels, top, strict=True)]
    assert found["recall@10"].tolist() == pytest.approx(best)


def test_who_wants_nothing_or_everything_is_nobody() -> None:
    top = np.array([[2, 0, 1], [2, 0, 1], [2, 0, 1], [NOBODY] * 3])
    targets = np.array([[NOBODY] * 3, [0, 1, 2], [0, NOBODY, NOBODY], [1, NOBODY, NOBODY]])
    wide = np.pad(top, ((0, 0), (0, 7)), constant_values=NOBODY)
    found = ranking_metrics(wide, targets, whole=True)
    assert np.isnan(found["auc"]).tolist() == [True, True, False, False]
    assert found["auc"][2:].tolist() == [0.5, 0.0]
    assert np.isnan(found["ndcg@10"]).tolist() == [True, False, False, False]
    assert found["ndcg@10"][1:].tolist() == pytest.approx([1, 1 / np.log2(3), 0])
    assert "auc" not in ranking_metrics(wide, targets)


def test_nobody_counts_in_no_mean() -> None:
    values, others = np.array([0.2, np.nan, 0.6, 0.4]), np.array([0.1, np.nan, 0.3, 0.2])
    assert estimate(values).mean == pytest.approx(0.4)
    assert compare(values, others).ratio.mean == pytest.approx(2)
    assert compare(values, others).ratio.low == pytest.approx(2)


def test_prediction_metrics_worked_out_by_hand() -> None:
    odds = np.array([0.9, 0.9, 0.2, 0.2, 0.6])
    wanted = np.array([1, 0, 0, 1, 1])
    found = prediction_metrics(np.log(odds / (1 - odds)), wanted)
    assert found["log_loss"] == pytest.approx(log_loss(wanted, odds))
    assert found["auc"] == pytest.approx((0.5 + 1 + 0 + 0.5 + 0 + 1) / 6)
    # gaps of the three bins that hold any: .8 and .4 of two each, .4 of one
    assert found["calibration_error"] == pytest.approx((abs(0.9 + 0.9 - 1) + abs(0.4 - 1) + abs(0.6 - 1)) / 5)
    assert found["classification"]["yes"]["precision"] == pytest.approx(2 / 3)
    assert found["classification"]["accuracy"] == pytest.approx(3 / 5)


def test_every_label_is_predicted_and_what_fills_a_row_up_is_not(tmp_path: Path) -> None:
    """Item 0 fills up the rows of a ranker, and is an item as well."""
    rows = [(f"u{row % 9}", f"i{row % 11}", row, 5 - 3 * (row * 7 % 2)) for row in range(99)]
    people = prepared(table(tmp_path, rows, held_out=0.3), tmp_path / "data")
    odds = np.random.default_rng(0).normal(size=people.catalogue_size)

    class Answering:
        def rank(self, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
            items, scores = np.zeros((len(asked), 100), dtype=np.int64), np.full((len(asked), 100), MASKED)
            for row, barred in enumerate(asked.excluded):
                left = np.setdiff1d(np.arange(people.catalogue_size), barred)
                best = left[np.argsort(-odds[left])]
                items[row, : len(best)], scores[row, : len(best)] = best, odds[best]
            return items, scores

    answering: Any = Answering()
    variant = Variant({}, lambda threads: answering, answering, lambda threads: {})
    found = measure._prediction(variant, people)
    assert people.labels is not None
    assert people.candidates is not None
    users = people.users("test")
    items = np.concatenate([people.candidates["test"][user] for user in users])
    wanted = np.concatenate([people.labels.judged["test"][user] for user in users])
    assert 0 in items
    assert found == prediction_metrics(odds[items], wanted)


def test_users_nobody_knows_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id,age\nA,1\n")
    with pytest.raises(DataError, match="no user of it is in the interactions"):
        prepared(table(tmp_path, users=tmp_path / "users.csv"), tmp_path / "data")


def test_with_labels_all_candidates_are_what_was_asked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positive_rating and candidates"):
        table(tmp_path, candidates=tmp_path / "lists.csv")


def test_judged_users_are_drawn_among_those_with_something_held_out(tmp_path: Path) -> None:
    early = [(f"e{row % 50}", f"i{row % 11}", row, 5 - 3 * (row % 2)) for row in range(200)]
    late = [(f"l{row % 12}", f"i{row % 11}", 900 + row, 5 - 3 * (row // 12 % 2)) for row in range(60)]
    people = prepared(table(tmp_path, early + late, evaluation_users=10), tmp_path / "data")
    assert len({*people.users("validation"), *people.users("test")}) == 10


def test_if_all_is_one_moment_nothing_comes_before(tmp_path: Path) -> None:
    rows = [(user, item, 7, stars) for user, item, _, stars in ROWS]
    with pytest.raises(DataError, match=r"nothing comes before the held-out ones|no user has a"):
        prepared(table(tmp_path, rows), tmp_path / "data")
