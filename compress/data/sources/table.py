"""One's own interactions, CSV or Parquet, by named columns."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import polars as pl

from compress.data.sources.reading import Raw, as_id, one_line
from compress.errors import DataError
from compress.recipe.data import Table


def read_table(section: Table) -> Raw:
    path = section.path
    if not path.is_file():
        raise DataError(f"data.path: {path}: no such file")
    columns: dict[str, str | None] = section.columns.model_dump()
    with one_line(path):
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
        with one_line(f"{path}: column {columns[role]!r}"):
            result = convert(column)
        lost = (result.is_null() & column.is_not_null()).arg_true()
        if len(lost):
            row = lost[0]
            raise DataError(f"{path}: row {row + 1}: {columns[role]}: {column[row]!r} is not {wanted}")
        return result.alias(role)

    user, item, text = (converted(role, as_id, "an id") for role in ("user", "item", "text"))
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
