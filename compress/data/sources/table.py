"""One's own interactions, CSV or Parquet, by named columns; read a batch at a time."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

import polars as pl

from compress.data.interactions import TEST, TRAIN, VALIDATION
from compress.data.sources.reading import Raw, one_line
from compress.errors import DataError
from compress.recipe.data import Table

BATCH = 1_000_000
"""Rows that are turned into ids and times at once."""

WORDS = {"train": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "test": TEST}
"""What columns.split may say."""


def read_table(section: Table) -> Raw:
    log = _File(section, section.path, "path", TRAIN)
    files = [log, *(_File(section, path, role, part) for role, path, part in _held_out(section) if path)]
    candidates = None
    if section.candidates:
        lists = _File(section, section.candidates, "candidates", TRAIN, roles=("user", "item"))
        candidates = pl.concat(lists.batches()).select("user", "item").drop_nulls()
    items = partial(_described, section, "items", "item") if section.items else log.items
    users = partial(_described, section, "users", "user") if section.users else None
    return Raw((batch for file in files for batch in file.batches()), items, candidates, users)


def _described(section: Table, key: str, role: str) -> pl.DataFrame:
    """A table of items or users: its id under the role's name, all other columns as strings; each id once.

    Raises: DataError, one line, if it cannot be read, lacks the id, or has one twice.
    """
    path: Path = getattr(section, key)
    name = getattr(section.columns, role)
    file = _File(section, path, key, TRAIN, roles=(role,))
    with one_line(path):
        ids = pl.concat(file.batches())[role]
        rest = SCANS[section.source](path, section).drop(name).collect().select(pl.all().cast(pl.String))
    taken = {"item", "popularity", "user", f"{role}_id"} & set(rest.columns)
    if taken:
        raise DataError(f"{path}: a column may not be named {taken.pop()!r}")
    table = pl.DataFrame([ids, *rest]).drop_nulls(role)
    twice = table.filter(table[role].is_duplicated())
    if twice.height:
        raise DataError(f"{path}: {name} {twice[role][0]!r} is there more than once")
    return table


def _held_out(section: Table) -> list[tuple[str, Path | None, int]]:
    return [("validation", section.validation, VALIDATION), ("test", section.test, TEST)]


@dataclass(frozen=True)
class _File:
    """A file with the recipe's columns, all of them or some."""

    section: Table
    path: Path
    key: str
    """Of the recipe's `data`, that names the file."""
    part: int
    """Of its interactions, unless a column says it."""
    roles: tuple[str, ...] = ("user", "item", "timestamp", "rating", "text", "split")

    @property
    def columns(self) -> dict[str, str | None]:
        return {role: name for role, name in self.section.columns.model_dump().items() if role in self.roles}

    @cached_property
    def rows(self) -> pl.LazyFrame:
        """The named columns by role, blanks and NaN as nulls. Raises DataError if one is not there."""
        if not self.path.is_file():
            raise DataError(f"data.{self.key}: {self.path}: no such file")
        if self.section.source == "parquet" and not _begins_with(self.path, b"PAR1"):
            raise DataError(f"{self.path}: cannot be read: it is no Parquet file; if it is CSV, say source: csv")
        rows = SCANS[self.section.source](self.path, self.section)
        there = rows.collect_schema().names()
        for role, name in self.columns.items():
            if name is not None and name not in there:
                near = difflib.get_close_matches(name, there, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                columns_there = ", ".join(there)[:160]  # the first line may be the whole file
                raise DataError(
                    f"{self.path}: no column {name!r} (data.columns.{role}); {hint}columns: {columns_there}"
                )
        named = {role: pl.lit(None, pl.String) if name is None else pl.col(name) for role, name in self.columns.items()}
        blanks = [pl.col(pl.String).replace("", None), pl.col(pl.Float32, pl.Float64).fill_nan(None)]
        clean = rows.select(**named).with_columns(blanks)
        if clean.collect_schema().get("rating") == pl.String:  # an unknown number may be written so, and would pass
            clean = clean.with_columns(rating=pl.when(pl.col("rating").str.to_lowercase() != "nan").then("rating"))
        return clean

    @cached_property
    def whole_ids(self) -> frozenset[str]:
        """Roles whose ids are floats without a fraction: pandas writes integers so where one is missing."""
        schema = self.rows.collect_schema()
        floats = [role for role in ("user", "item", "text") if role in self.columns and schema[role].is_float()]
        if not floats:
            return frozenset()
        whole = self.rows.select((pl.col(role).drop_nulls() % 1 == 0).all() for role in floats)
        found = whole.collect(engine="streaming").row(0, named=True)
        return frozenset(role for role in floats if found[role])

    def batches(self) -> Iterator[pl.DataFrame]:
        """As `Raw.batches`, of the roles that the file has. Raises DataError, one line, at the first bad row."""
        read = 0
        with one_line(self.path):
            for batch in self.rows.collect_batches(chunk_size=BATCH, maintain_order=True):
                yield self._converted(batch, read)
                read += batch.height
        if not read:
            raise DataError(f"{self.path}: there are no rows in it")

    def items(self) -> pl.DataFrame:
        """The smallest of an item's texts rather than the first: it does not depend on the order of the rows."""
        with one_line(self.path):
            texts = self.rows.select(_as_id(role, role in self.whole_ids) for role in ("item", "text"))
            single = texts.drop_nulls("item").group_by("item").agg(pl.min("text"))
            return single.collect(engine="streaming").sort("item")

    def _converted(self, batch: pl.DataFrame, read: int) -> pl.DataFrame:
        """Args: read: rows before it."""

        def converted(role: str, convert: Callable[[pl.Series], pl.Series], wanted: str) -> pl.Series:
            column = batch[role]
            with one_line(f"{self.path}: column {self.columns[role]!r}"):
                result = convert(column)
            lost = (result.is_null() & column.is_not_null()).arg_true()
            if len(lost):
                row = lost[0]
                where = f"{self.path}: row {read + row + 1}: {self.columns[role]}"
                raise DataError(f"{where}: {column[row]!r} is not {wanted}")
            return result.alias(role)

        def as_id(column: pl.Series) -> pl.Series:
            return column.to_frame().select(_as_id(column.name, column.name in self.whole_ids)).to_series()

        found = [converted(role, as_id, "an id") for role in ("user", "item") if role in self.columns]
        if "timestamp" in self.columns:
            if self.columns["timestamp"] is None:
                found.append(pl.Series("timestamp", range(read, read + batch.height), pl.Int64))
            else:
                found.append(converted("timestamp", _as_seconds, "epoch seconds or an ISO date"))
            found.append(converted("rating", _as_rating, "a number"))
            part = pl.repeat(self.part, batch.height, dtype=pl.UInt8, eager=True)
            if self.columns["split"] is not None:
                part = converted("split", _as_part, "train, validation or test").fill_null(self.part)
            found.append(part.alias("part"))
        return pl.DataFrame(found)


SCANS: Mapping[str, Callable[[Path, Table], pl.LazyFrame]] = {
    # All strings: an id 007 stays 007. No globbing: brackets in a path are brackets.
    "csv": lambda path, section: pl.scan_csv(path, separator=section.separator, infer_schema=False, glob=False),
    "parquet": lambda path, section: pl.scan_parquet(path, glob=False),
}


def _as_id(role: str, whole: bool) -> pl.Expr:
    """A string. Whole floats lose their `.0`."""
    column = pl.col(role)
    return (column.cast(pl.Int64) if whole else column).cast(pl.String)


def _as_part(column: pl.Series) -> pl.Series:
    words = column.cast(pl.String).str.strip_chars().str.to_lowercase()
    return words.replace_strict(list(WORDS), list(WORDS.values()), default=None, return_dtype=pl.UInt8)


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


def _begins_with(path: Path, magic: bytes) -> bool:
    with one_line(path), path.open("rb") as file:
        return file.read(len(magic)) == magic
