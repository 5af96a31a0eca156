"""Sources: one canonical MovieLens whichever way it came, tables of many kinds, synthetic users, one-line errors."""

from __future__ import annotations

import hashlib
import io
import lzma
import sys
import zipfile
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from compress.data import sources
from compress.data.sources import movielens as movielens_source
from compress.data.sources import online_retail
from compress.errors import DataError
from compress.recipe.data import Columns, MovieLens100K, OnlineRetailII, Synthetic, Table


class Read(NamedTuple):
    """A source, read to its end."""

    interactions: pl.DataFrame
    items: pl.DataFrame


def read(section: Any) -> Read:
    raw = sources.read(section)
    interactions = pl.concat(raw.batches, how="vertical_relaxed")
    assert set(interactions["part"]) == {0}
    return Read(interactions.drop("part"), raw.items())


# The same three ratings, titles and genres as GroupLens writes them and as RecBole does.
UNKNOWN, DRAMA, CHILDRENS_ANIMATION = (
    "|".join(flags) for flags in ("1000000000000000000", "0000000010000000000", "0001100000000000000")
)
GROUPLENS = {
    "ml-100k/u.data": b"10\t2\t3\t881250949\n2\t1412\t4\t891717742\n2\t267\t1\t878887116\n",
    "ml-100k/u.item": (
        f"2|Mis\u00e9rables, Les (1995)|01-Jan-1995||http://x|{DRAMA}\n"
        f"267|unknown||||{UNKNOWN}\n"
        "1412|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||http://x|"
        f"{CHILDRENS_ANIMATION}\n"
    ).encode("latin-1"),
}
RECBOLE = {
    "recbole/dataset_example/ml-100k/ml-100k.inter": (
        b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + GROUPLENS["ml-100k/u.data"]
    ),
    "recbole/dataset_example/ml-100k/ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "2\tMis\u00e9rables, Les\t1995\tDrama\n"
        "267\tunkonwn\tunkonwn\tunknown\n"
        "1412\tLand Before Time III: The Time of the Great Giving (1995)\tV\tAnimation Children's\n"
    ).encode(),
}
CANONICAL = "2,267,1,878887116\n2,1412,4,891717742\n10,2,3,881250949\n"


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small MovieLens is the one that is expected."""
    monkeypatch.setattr(movielens_source, "MOVIELENS_SHA256", hashlib.sha256(CANONICAL.encode()).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "recpress"


def movielens(path: Path | None = None) -> Read:
    return read(MovieLens100K(source="ml-100k", path=path))


def refused() -> bytes:
    raise OSError("Name or service not known")


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize("files", [GROUPLENS, RECBOLE], ids=["grouplens", "recbole"])
def test_both_archives_give_one_canonical_table(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = tmp_path / "archive"
    path.write_bytes(zipped(files))
    raw = movielens(path)
    assert raw.interactions.select("user", "item", "timestamp", "rating").rows() == [
        ("2", "267", 878887116, 1.0),
        ("2", "1412", 891717742, 4.0),
        ("10", "2", 881250949, 3.0),
    ]
    assert raw.items.select("item", "text", "genres").rows() == [
        ("2", "Mis\u00e9rables, Les (1995)", "Drama"),
        ("267", "unknown", ""),
        ("1412", "Land Before Time III: The Time of the Great Giving (1995) (V)", "Animation Children's"),
    ]


@pytest.mark.usefixtures("pinned")
@pytest.mark.parametrize("depth", [".", "ml-100k"])
def test_an_unpacked_folder_reads_like_its_zip(tmp_path: Path, depth: str) -> None:
    with zipfile.ZipFile(io.BytesIO(zipped(GROUPLENS))) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "ml.zip").write_bytes(zipped(GROUPLENS))
    folder, packed = movielens(tmp_path / depth), movielens(tmp_path / "ml.zip")
    assert folder.interactions.equals(packed.interactions)
    assert folder.items.equals(packed.items)


def test_other_interactions_are_an_error_that_names_both_digests(tmp_path: Path) -> None:
    path = tmp_path / "ml-100k.zip"
    path.write_bytes(zipped(GROUPLENS))
    found = hashlib.sha256(CANONICAL.encode()).hexdigest()
    with pytest.raises(DataError, match=f"^[^\n]*{found}[^\n]*{movielens_source.MOVIELENS_SHA256}[^\n]*$"):
        movielens(path)


def test_a_table_that_is_called_parquet_and_is_not_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\n1,2,3\n")
    with pytest.raises(DataError, match=r"log.csv: cannot be read: it is no Parquet file; if it is CSV"):
        read(Table(source="parquet", path=path))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<html>log in</html>", "cannot be read: File is not a zip file"),
        (zipped({"readme": b""}), "there is no u.data and u.item or ml-100k.inter and ml-100k.item"),
        (zipped({**GROUPLENS, "ml-100k/u.data": b"one\ttwo\t3\t4\n"}), "cannot be read"),
        (zipped({**GROUPLENS, "ml-100k/u.data": b""}), "cannot be read"),
    ],
    ids=["no zip", "other files", "other columns", "no rows"],  # a zip holds the time: it makes no name for a test
)
def test_what_is_not_movielens_is_one_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "ml-100k.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: [^\n]*{complaint}[^\n]*$"):
        movielens(path)


@pytest.mark.usefixtures("pinned")
def test_the_second_origin_fills_the_cache_and_is_asked_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answers() -> bytes:
        asked.append(1)
        return zipped(RECBOLE)

    monkeypatch.setattr(movielens_source, "ORIGINS", {"ml-100k.zip": refused, "recbole.whl": answers})
    assert movielens().interactions.equals(movielens().interactions)
    assert len(asked) == 1
    assert [path.name for path in cache.iterdir()] == ["recbole.whl"]


@pytest.mark.usefixtures("pinned")
def test_a_login_page_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origins = {"ml-100k.zip": lambda: b"<html>log in</html>", "recbole.whl": lambda: zipped(RECBOLE)}
    monkeypatch.setattr(movielens_source, "ORIGINS", origins)
    movielens()
    assert not (cache / "ml-100k.zip").exists()


@pytest.mark.usefixtures("cache")
def test_no_network_is_one_line_that_names_data_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens_source, "ORIGINS", {"ml-100k.zip": refused, "recbole.whl": refused})
    with pytest.raises(DataError, match=r"^[^\n]*Name or service not known[^\n]*set data.path[^\n]*$"):
        movielens()


def test_pip_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(OSError, match="pip failed"):
        movielens_source._download_recbole()


RETAIL = (
    "user_id\titem_id\ttimestamp\tinvoice\tquantity\tprice\n"
    "7\t85123A\t120\t500\t1\t2.5\n7\t10002\t60\t500\t1\t2.5\n7\t10002\t180\t501\t6\t0.85\n9\t10002\t60\t502\t1\t2\n"
)
TITLES = '10002,"BOX OF 12 6"" CARDS"\n85123A,HEART\n'
PURCHASES = "7,10002,60\n7,10002,180\n7,85123A,60\n9,10002,60\n"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Online Retail II, which is the one that is expected; one of its invoices was typed over two minutes."""
    monkeypatch.setattr(online_retail, "SHA256", hashlib.sha256(PURCHASES.encode()).hexdigest())
    monkeypatch.setattr(online_retail, "ITEMS_SHA256", hashlib.sha256(TITLES.encode()).hexdigest())
    folder = tmp_path / "online_retail_ii"
    folder.mkdir()
    (folder / "interactions.tsv").write_text(RETAIL)
    (folder / "items.tsv").write_text('item_id\ttitle\n10002\tBOX OF 12 6" CARDS\n85123A\tHEART\n')
    return folder


def retail(path: Path | None = None) -> Read:
    return read(OnlineRetailII(source="online-retail-ii", path=path))


def test_the_lines_of_an_invoice_are_one_moment(shop: Path) -> None:
    raw = retail(shop)
    assert raw.interactions.drop("rating").rows() == [
        ("7", "10002", 60),
        ("7", "10002", 180),
        ("7", "85123A", 60),
        ("9", "10002", 60),
    ]
    assert raw.items.rows() == [("10002", 'BOX OF 12 6" CARDS'), ("85123A", "HEART")]


def test_packed_and_from_the_shared_folder_it_is_the_same(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = retail(shop)
    (shop / "interactions.tsv.xz").write_bytes(lzma.compress((shop / "interactions.tsv").read_bytes()))
    (shop / "interactions.tsv").unlink()
    monkeypatch.setenv("RECPRESS_DATA", str(shop.parent))
    assert retail().interactions.equals(plain.interactions)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda shop: (shop / "interactions.tsv").unlink(), "there is no interactions.tsv.xz or interactions.tsv"),
        (lambda shop: (shop / "interactions.tsv").write_text(RETAIL.replace("180", "190")), "the sha256 of its purch"),
        (lambda shop: (shop / "interactions.tsv").write_text("a\tb\n"), "cannot be read"),
        (lambda shop: (shop / "interactions.tsv.xz").write_bytes(b"no xz"), "cannot be read"),
        (lambda shop: (shop / "items.tsv").unlink(), "cannot be read"),
        (lambda shop: (shop / "items.tsv").write_text("item_id\ttitle\n10002\tBOX\n"), "its titles' sha256 is"),
    ],
)
def test_what_is_not_the_shop_is_one_line(shop: Path, spoil: Callable[[Path], object], complaint: str) -> None:
    spoil(shop)
    with pytest.raises(DataError, match=rf"^[^\n]*{complaint}[^\n]*$"):
        retail(shop)


def test_a_shop_that_is_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECPRESS_DATA", raising=False)
    with pytest.raises(DataError, match=r"set data.path .*RECPRESS_DATA"):
        retail()


def csv(tmp_path: Path, content: str | bytes, **options: Any) -> Read:
    path = tmp_path / "ratings[1].csv"  # a name that globbing would not find
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(Table(source="csv", path=path, **options))


def parquet(tmp_path: Path, **columns: Any) -> Read:
    path = tmp_path / "ratings.parquet"
    pl.DataFrame(columns, strict=False).write_parquet(path)
    return read(Table(source="parquet", path=path))


def test_ids_are_strings_and_007_is_not_7(tmp_path: Path) -> None:
    raw = csv(tmp_path, "user_id,item_id,timestamp\n007,a b,1\n7,1e3,2\n")
    assert raw.interactions["user"].to_list() == ["007", "7"]
    assert raw.interactions["item"].to_list() == ["a b", "1e3"]


def test_named_columns_and_a_separator_are_followed(tmp_path: Path) -> None:
    columns = Columns(user="u", item="i", timestamp="t", rating="r", text="title")
    content = 'r\ttitle\tt\ti\tu\n1\tB\t5\tx\tann\n0.5\tA\t6\tx\tbob\n\t"tab\tin it"\t7\ty\tann\n'
    raw = csv(tmp_path, content, columns=columns, separator="\t")
    assert raw.interactions.rows() == [("ann", "x", 5, 1.0), ("bob", "x", 6, 0.5), ("ann", "y", 7, None)]
    assert raw.items.rows() == [("x", "A"), ("y", "tab\tin it")]


def test_missing_values_stay_for_the_filter_to_count(tmp_path: Path) -> None:
    raw = csv(tmp_path, 'user_id,item_id,timestamp\n,a,1\n1,"",2\n1,a,\n1,a,4\n')
    assert raw.interactions.drop("rating").rows() == [(None, "a", 1), ("1", None, 2), ("1", "a", None), ("1", "a", 4)]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1706659200", 1706659200),
        (" 1706659200 ", 1706659200),
        ("1706659200.9", 1706659200.9),
        ("9007199254740993", 9007199254740993),  # 2**53 + 1, which no float holds
        ("-1", -1),
        ("2024-01-31", 1706659200),
        ("2024-01-31T12:00:00", 1706702400),
        ("2024-01-31 12:00:00.750", 1706702400.75),
        ("2024-01-31T12:00:00Z", 1706702400),
        ("2024-01-31T14:00+02:00", 1706702400),
    ],
)
def test_a_written_time_is_seconds_or_an_iso_date(tmp_path: Path, written: str, seconds: int) -> None:
    raw = csv(tmp_path, f"user_id,item_id,timestamp\n1,1,{written}\n")
    assert raw.interactions["timestamp"].to_list() == [seconds]


@pytest.mark.parametrize(
    ("stored", "seconds"),
    [
        (7, 7),
        (7.9, 7.9),
        (8.0, 8),
        (datetime(2024, 1, 31, 12, 0, 0, 250_000), 1706702400.25),
        (float("nan"), None),
        (date(2024, 1, 31), 1706659200),
        (datetime(2024, 1, 31, 12), 1706702400),
        (datetime(2024, 1, 31, 14, tzinfo=timezone(timedelta(hours=2))), 1706702400),
        ("2024-01-31", 1706659200),
    ],
)
def test_a_stored_time_may_have_a_type(tmp_path: Path, stored: Any, seconds: int | None) -> None:
    raw = parquet(tmp_path, user_id=[1], item_id=[1], timestamp=[stored])
    assert raw.interactions["timestamp"].to_list() == [seconds]


def test_moments_within_a_second_keep_their_order(tmp_path: Path) -> None:
    raw = csv(tmp_path, "user_id,item_id,timestamp\n1,a,2024-01-31 10:00:00.900\n1,b,2024-01-31 10:00:00.100\n1,c,7\n")
    assert raw.interactions.sort("timestamp")["item"].to_list() == ["c", "b", "a"]


def test_a_rating_written_as_nan_is_no_rating(tmp_path: Path) -> None:
    raw = csv(tmp_path, "user_id,item_id,timestamp,r\n1,a,1,nan\n1,b,2,NaN\n1,c,3,4\n", columns=Columns(rating="r"))
    assert raw.interactions["rating"].to_list() == [None, None, 4.0]


def test_integer_ids_that_pandas_made_floats_are_integers_again(tmp_path: Path) -> None:
    raw = parquet(tmp_path, user_id=[196.0, float("nan")], item_id=[0.5, 1.0], timestamp=[1, 2])
    assert raw.interactions["user"].to_list() == ["196", None]
    assert raw.interactions["item"].to_list() == ["0.5", "1.0"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "cannot be read: empty CSV"),
        ("user_id,item_id,timestamp\n", "there are no rows"),
        ("user_id,item_id,timestamp\n1,2,3,4\n", "cannot be read: found more fields"),
        ('user_id,item_id,timestamp\n"1,2,3\n', "cannot be read"),
        (b"user_id,item_id,timestamp\n\xe9,2,3\n", "cannot be read: invalid utf-8"),
        ("userid,item_id,timestamp\n1,2,3\n", r"no column 'user_id' \(data.columns.user\); did you mean userid\?"),
        ("a,b,c\n1,2,3\n", "no column 'user_id' .*; columns: a, b, c"),
        ("user_id,item_id,timestamp\n1,2,3\n1,2,yesterday\n", "row 2: timestamp: 'yesterday' is not epoch seconds"),
        ("user_id,item_id,timestamp\n1,2,inf\n", "row 1: timestamp: 'inf' is not"),
        ("user_id,item_id,timestamp\n1,2,99999999999999999999\n", "row 1: timestamp: '9+' is not"),
    ],
)
def test_a_bad_csv_is_one_line(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"^[^\n]*ratings\[1\].csv: {complaint}[^\n]*$"):
        csv(tmp_path, content)


def test_a_rating_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^[^\n]*: row 1: stars: 'five' is not a number$"):
        csv(tmp_path, "user_id,item_id,timestamp,stars\n1,2,3,five\n", columns=Columns(rating="stars"))


@pytest.mark.parametrize("damage", [lambda good: b"", lambda good: b"hello", lambda good: good[:-20]])
def test_a_broken_parquet_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x.parquet"
    pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [1]}).write_parquet(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"^{path}: cannot be read: [^\n]*$"):
        read(Table(source="parquet", path=path))


@pytest.mark.parametrize(
    "columns",
    [
        {"user_id": [1], "item_id": [[1]], "timestamp": [1]},
        {"user_id": [1], "item_id": [b"\xff"], "timestamp": [1]},
        {"user_id": [1e300], "item_id": [1], "timestamp": [1]},
        {"user_id": [1], "item_id": [1], "timestamp": [timedelta(1)]},
        {"user_id": [1], "item_id": [1], "timestamp": [True]},
    ],
)
def test_columns_of_a_useless_type_are_one_line(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    with pytest.raises(DataError, match=r"^[^\n]*ratings.parquet: [^\n]*(user_id|item_id|timestamp)[^\n]*$"):
        parquet(tmp_path, **columns)


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, source: Any) -> None:
    with pytest.raises(DataError, match=f"^data.path: {tmp_path}: no such file$"):
        read(Table(source=source, path=tmp_path))


def synthetic(**options: Any) -> pl.DataFrame:
    return read(Synthetic(source="synthetic", **options)).interactions


def test_synthetic_users_are_the_seed_and_nothing_else() -> None:
    assert synthetic(seed=1).equals(synthetic(seed=1))
    assert not synthetic(seed=1).equals(synthetic(seed=2))


@pytest.mark.parametrize(("users", "items", "length"), [(200, 120, 20), (50, 10, 5), (50, 19, 1000), (20, 500, 100)])
def test_synthetic_users_have_at_least_five_items_none_twice(users: int, items: int, length: int) -> None:
    table = synthetic(users=users, items=items, length=length)
    per_user = table.group_by("user").agg(rows=pl.len(), distinct=pl.n_unique("item"), times=pl.n_unique("timestamp"))
    assert per_user.height == users
    assert per_user["rows"].min() >= 5  # type: ignore[operator]
    assert per_user.filter((pl.col("rows") != pl.col("distinct")) | (pl.col("rows") != pl.col("times"))).is_empty()
    assert table["item"].cast(pl.Int64).is_between(1, items).all()


def test_synthetic_steps_follow_from_the_last_two_items() -> None:
    table = synthetic()
    moves = np.diff(table["item"].cast(pl.Int64).to_numpy())
    goes_on = (np.abs(moves[1:]) == 1) & (moves[1:] == moves[:-1])
    assert goes_on.mean() > 0.5  # by chance: 1 in 120


def test_synthetic_items_have_texts() -> None:
    raw = read(Synthetic(source="synthetic", users=10, items=25))
    assert raw.items.height == 25
    assert raw.items.row(0) == ("1", "cluster 1 item 1")
    assert raw.items.row(24) == ("25", "cluster 2 item 25")
