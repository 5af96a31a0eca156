"""MovieLens latest-small (Harper & Konstan 2015, doi:10.1145/2827872), as of 9/2018; from a local copy."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path, PurePosixPath

import polars as pl

from compress.data.sources.reading import Raw, one_line, shared, tidy
from compress.errors import DataError
from compress.recipe.data import MovieLensSmall

SHA256 = "dba9015483eb8ef2dafcb49511e6ae8ab42eb450901dbc870d2d22546f016ad8"
"""Of `user,item,rating,timestamp` lines sorted by user and item as numbers."""

URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"

FILES = ("ratings.csv", "movies.csv", "tags.csv")

TAGS = 5
"""Of an item, at most: those that most users gave."""


def read_movielens_small(section: MovieLensSmall) -> Raw:
    """Items have a title, genres and tags. Tags carry no moment: some were given after the ratings one predicts."""
    path = section.path or shared("ml_latest_small", FILES)
    with one_line(path):
        members = _members(path)
        lacking = [name for name in FILES if name not in members]
        if lacking:
            raise DataError(f"{path}: not MovieLens latest-small: there is no {lacking[0]}; data.path takes {URL}")
        ratings, movies, tags = (pl.read_csv(members[name], infer_schema=False) for name in FILES)
        columns = {"user": "userId", "item": "movieId", "rating": "rating", "timestamp": "timestamp"}
        lines = ratings.select(pl.col(name).alias(role) for role, name in columns.items())
        numbers = lines.select(pl.col("user", "item", "timestamp").cast(pl.Int64), pl.col("rating").cast(pl.Float64))
        canonical = numbers.select(*columns).sort("user", "item")
    found = hashlib.sha256(canonical.write_csv(include_header=False).encode()).hexdigest()
    if found != SHA256:
        raise DataError(
            f"{path}: not MovieLens latest-small of 9/2018: the sha256 of its ratings is {found}, expected {SHA256}; "
            f"take it from {URL}, or read other data with source: csv"
        )
    return Raw.whole(canonical.cast({"user": pl.String, "item": pl.String}), _items(movies, tags))


def _items(movies: pl.DataFrame, tags: pl.DataFrame) -> pl.DataFrame:
    given = tags.select("userId", item="movieId", tag=tidy(pl.col("tag").str.to_lowercase())).unique()
    counted = given.group_by("item", "tag").len().sort("item", "len", "tag", descending=[False, True, False])
    told = counted.group_by("item", maintain_order=True).agg(tags=pl.col("tag").head(TAGS).str.join(", "))
    genres = pl.col("genres").replace("(no genres listed)", "").str.replace_all("|", " ", literal=True)
    return movies.select(item="movieId", text=tidy(pl.col("title")), genres=genres).join(told, on="item", how="left")


def _members(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
    with zipfile.ZipFile(path) as archive:
        inside = {PurePosixPath(member).name: member for member in archive.namelist()}
        return {name: archive.read(inside[name]) for name in FILES if name in inside}
