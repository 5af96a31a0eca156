"""The prepare stage: three tables that agree with each other, counts, and one line where nothing is left."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from compress import prepare
from compress.data import sources
from compress.data.interactions import Interactions
from compress.errors import DataError
from compress.recipe.data import Columns, Synthetic, Table
from compress.stage import Workspace

ROWS = [
    *((user, item, time, 5) for user in ("u9", "u10", "u11") for time, item in enumerate(["30", "4", "100"])),
    ("u12", "4", 1, 5),  # outside the 3-core
    ("u9", "4", 7, 5),  # a repeat
    ("", "4", 7, 5),
]
TITLES = {"30": "thirty", "4": "", "100": "a hundred"}


@pytest.fixture(autouse=True)
def small_catalogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three items can be checked by hand."""
    monkeypatch.setattr(prepare, "TOP", 2)


@pytest.fixture
def recipe(tmp_path: Path) -> Table:
    path = tmp_path / "ratings.csv"
    lines = [",".join(map(str, (*row, TITLES[str(row[1])]))) for row in ROWS]
    path.write_text("\n".join(["user_id,item_id,timestamp,stars,title", *lines]))
    columns = Columns(rating="stars", text="title")
    return Table(source="csv", path=path, columns=columns, min_interactions=3, user_map="plain")


def run(section: Any, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return prepare.run(section, {}, Workspace(folder, seed=0))


def test_the_tables_are_those_worked_out_by_hand(tmp_path: Path, recipe: Table) -> None:
    metrics = run(recipe, tmp_path / "data")
    read = {name: pl.read_parquet(tmp_path / "data" / f"{name}.parquet") for name in ("interactions", "items", "users")}
    assert metrics == {
        "users": 3,
        "items": 3,
        "interactions": 9,
        "split": "leave-one-out",
        "judged_on": "full catalogue",
        "judged_users": {"validation": 3, "test": 3},
        "dropped": {"missing": 1, "rating": 0, "duplicate": 1, "core": 1, "later_held_out": 0},
    }
    assert read["users"].rows() == [(0, "u10"), (1, "u11"), (2, "u9")]
    assert read["items"].rows() == [(0, "4", None, 0), (1, "30", "thirty", 3), (2, "100", "a hundred", 0)]
    assert read["interactions"].rows() == [
        (user, item, at, at) for user in range(3) for at, item in enumerate([1, 0, 2])
    ]
    assert read["interactions"].schema == {"user": pl.Int32, "item": pl.Int32, "timestamp": pl.Int64, "part": pl.UInt8}


def test_the_order_of_rows_does_not_matter(tmp_path: Path, recipe: Table) -> None:
    run(recipe, tmp_path / "one")
    header, *lines = recipe.path.read_text().splitlines()
    recipe.path.write_text("\n".join([header, *reversed(lines)]))
    run(recipe, tmp_path / "other")
    for name in ("interactions.parquet", "items.parquet", "users.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_ids_lead_back_to_the_raw_interactions(tmp_path: Path) -> None:
    section = Synthetic(source="synthetic", users=50, items=40, length=12, user_map="plain")
    run(section, tmp_path / "data")
    read = {name: pl.read_parquet(tmp_path / "data" / f"{name}.parquet") for name in ("interactions", "items", "users")}
    back = read["interactions"].join(read["users"], on="user").join(read["items"], on="item")
    raw = pl.concat(sources.read(section).batches)
    wanted = raw.select("user", "item", "timestamp").rows()
    assert set(back.select("user_id", "item_id", "timestamp").iter_rows()) == set(wanted)
    assert read["items"]["popularity"].to_list() == Interactions.load(tmp_path / "data").popularity().tolist()


def test_nothing_left_is_one_line_with_the_counts_and_the_remedy(tmp_path: Path, recipe: Table) -> None:
    high = recipe.model_copy(update={"min_rating": 6.0})
    with pytest.raises(DataError) as raised:
        run(high, tmp_path / "data")
    assert str(raised.value) == (
        "data: nothing is left of 12 interactions: 1 lack a user, item or timestamp, 11 are not rated 6 or more, "
        "0 are repeats, 0 are of users or items with fewer than 3; "
        "lower data.min_interactions or data.min_rating or bring more data"
    )


def test_a_catalogue_that_fits_into_one_answer_is_one_line(
    tmp_path: Path, recipe: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "TOP", 3)
    with pytest.raises(DataError, match=r"^data: 3 items are left; a top 3 needs more items than that"):
        run(recipe, tmp_path / "data")


def test_without_a_threshold_only_the_core_can_be_lowered(tmp_path: Path, recipe: Table) -> None:
    deep = recipe.model_copy(update={"min_interactions": 4})
    with pytest.raises(DataError, match=r"10 are of [^;]* fewer than 4; lower data.min_interactions or bring"):
        run(deep, tmp_path / "data")


def test_users_are_known_by_number_alone_unless_a_map_is_asked_for(tmp_path: Path, recipe: Table) -> None:
    run(recipe.model_copy(update={"user_map": "absent"}), tmp_path / "data")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"interactions.parquet", "items.parquet"}


def test_a_keyed_map_holds_the_hmac_and_numbers_by_it(
    tmp_path: Path, recipe: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECPRESS_USER_KEY", "secret")
    run(recipe.model_copy(update={"user_map": "keyed"}), tmp_path / "data")
    expected = sorted(hmac.new(b"secret", user, "sha256").hexdigest() for user in (b"u9", b"u10", b"u11"))
    assert pl.read_parquet(tmp_path / "data" / "users.parquet")["user_id"].to_list() == expected


def test_a_keyed_map_without_a_key_is_one_line(tmp_path: Path, recipe: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECPRESS_USER_KEY", raising=False)
    with pytest.raises(DataError, match=r"^data.user_map: keyed: set RECPRESS_USER_KEY"):
        run(recipe.model_copy(update={"user_map": "keyed"}), tmp_path / "data")


@pytest.fixture
def own_split(tmp_path: Path) -> Table:
    """Three users with three items each; one of them is tested on an item of the others, one on a new one."""
    header = "user_id,item_id,timestamp"
    lines = [f"{user},{item},{at}" for user in ("a", "b", "c") for at, item in enumerate(["30", "4", "100"])]
    (tmp_path / "log.csv").write_text("\n".join([header, *lines]))
    (tmp_path / "test.csv").write_text("\n".join([header, "a,7,9", "b,8,9", "stranger,4,9"]))
    (tmp_path / "lists.csv").write_text("\n".join(["user_id,item_id", "a,7", "a,8", "b,7", "b,nowhere", "b,8", "d,4"]))
    files = {"path": tmp_path / "log.csv", "test": tmp_path / "test.csv"}
    return Table(source="csv", split="given", min_interactions=3, user_map="plain", **files)


def test_a_test_file_is_what_is_tested(tmp_path: Path, own_split: Table) -> None:
    metrics = run(own_split, tmp_path / "data")
    assert metrics["judged_users"] == {"validation": 2, "test": 2}
    assert metrics["dropped"]["core"] == 1, "the stranger"
    loaded = Interactions.load(tmp_path / "data")
    ids = pl.read_parquet(tmp_path / "data" / "items.parquet")["item_id"]
    assert ids.gather(loaded.targets("test")).to_list() == ["7", "8"]
    assert ids.gather(loaded.targets("validation")).to_list() == ["100", "100"]
    assert [ids.gather(loaded.train(user)).to_list() for user in range(3)] == [
        ["30", "4"],
        ["30", "4"],
        ["30", "4", "100"],
    ]


def test_candidates_are_the_known_ones_of_each_user(tmp_path: Path, own_split: Table) -> None:
    lists = own_split.model_copy(update={"candidates": tmp_path / "lists.csv"})
    assert run(lists, tmp_path / "data")["judged_on"] == "user's given candidates, 2 on average"
    loaded = Interactions.load(tmp_path / "data")
    ids = pl.read_parquet(tmp_path / "data" / "items.parquet")["item_id"]
    assert loaded.candidates
    assert set(loaded.candidates) == {"validation", "test"}
    for of_users in loaded.candidates.values():
        assert [set(ids.gather(each)) for each in of_users] == [{"7", "8"}, {"7", "8"}, set()]


def test_who_has_no_candidates_is_not_judged(tmp_path: Path, own_split: Table) -> None:
    (tmp_path / "lists.csv").write_text("user_id,item_id\na,7\na,8\n")
    metrics = run(own_split.model_copy(update={"candidates": tmp_path / "lists.csv"}), tmp_path / "data")
    assert metrics["judged_users"] == {"validation": 1, "test": 1}
    loaded = Interactions.load(tmp_path / "data")
    assert loaded.within_reach("test").all()
    (tmp_path / "lists.csv").write_text("user_id,item_id\nc,4\n")
    with pytest.raises(DataError, match="no user has a validation item and candidates after filtering"):
        run(own_split.model_copy(update={"candidates": tmp_path / "lists.csv"}), tmp_path / "data2")


def test_candidates_of_nobody_known_are_one_line(tmp_path: Path, own_split: Table) -> None:
    (tmp_path / "lists.csv").write_text("user_id,item_id\nx,y\n")
    with pytest.raises(DataError, match=r"^data.candidates: no user and item of it is left"):
        run(own_split.model_copy(update={"candidates": tmp_path / "lists.csv"}), tmp_path / "data")


def test_a_split_column_says_which_part_a_row_is(tmp_path: Path) -> None:
    rows = [(user, item, at) for user in ("a", "b", "c") for at, item in enumerate(["30", "4", "100", "7", "8"])]
    words = ["train", "", "Train ", "valid", "test"]
    lines = [f"{user},{item},{at},{words[at]}" for user, item, at in rows]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,fold", *lines]))
    section = Table(
        source="csv", path=tmp_path / "log.csv", split="given", min_interactions=3, columns=Columns(split="fold")
    )
    run(section, tmp_path / "data")
    assert pl.read_parquet(tmp_path / "data" / "interactions.parquet")["part"].to_list() == [0, 0, 0, 1, 2] * 3
    (tmp_path / "log.csv").write_text((tmp_path / "log.csv").read_text().replace("valid", "later"))
    with pytest.raises(DataError, match=r"row 4: fold: 'later' is not train, validation or test"):
        run(section, tmp_path / "other")
