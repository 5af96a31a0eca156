"""What all sources share: the two tables they give, and errors of files as one line."""

from __future__ import annotations

import lzma
import os
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from compress.data.interactions import TRAIN
from compress.errors import DataError


@dataclass(frozen=True)
class Raw:
    """What a source gives, ids as strings; null where a value is missing."""

    batches: Iterable[pl.DataFrame]
    """user: str, item: str, timestamp: int64 or float64 (seconds), rating: float64, part: uint8; read once."""
    items: Callable[[], pl.DataFrame]
    """item: str, each once; text and other columns: str. Called after the batches have been read."""
    candidates: pl.DataFrame | None = None
    """user: str, item: str."""
    users: Callable[[], pl.DataFrame] | None = None
    """user: str, each once; attributes: str."""

    @classmethod
    def whole(cls, interactions: pl.DataFrame, items: pl.DataFrame) -> Raw:
        """Of a log that fits in memory and gives no split: all columns but `part`."""
        return cls([interactions.with_columns(part=pl.lit(TRAIN, pl.UInt8))], lambda: items)


def shared(name: str, files: Sequence[str]) -> Path:
    """A data set's folder among those that `RECPRESS_DATA` keeps. Raises DataError if nothing says where that is."""
    home = os.environ.get("RECPRESS_DATA")
    if not home:
        raise DataError(f"data: set data.path to a folder with {files[0]}, or RECPRESS_DATA to the folder of {name}")
    return Path(home) / name


def split(content: bytes, separator: str, names: list[str], header_lines: int = 0) -> pl.DataFrame:
    """The first columns of a plain separated file, as strings; quotes mean nothing in it."""
    table = pl.read_csv(
        content, separator=separator, has_header=False, skip_lines=header_lines, quote_char=None, infer_schema=False
    )
    return table.select(pl.nth(position).alias(name) for position, name in enumerate(names))


def tidy(text: pl.Expr) -> pl.Expr:
    return text.str.replace_all(r"\s+", " ").str.strip_chars()


def as_id(column: pl.Series) -> pl.Series:
    """A string. Whole floats lose their `.0`: pandas writes integers as floats where one is missing."""
    whole = column.dtype.is_float() and (column.drop_nulls() % 1 == 0).all()
    return (column.cast(pl.Int64) if whole else column).cast(pl.String)


@contextmanager
def one_line(where: Path | str) -> Iterator[None]:
    """Turns what a library says about a file into one line that starts with where it is."""
    # Polars panics, which is no PolarsError, at one in some hundred parquet files with random bytes changed.
    polars = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
    damaged = (*polars, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
    try:
        yield
    except (*damaged, OSError) as error:
        raise DataError(f"{where}: cannot be read: {shorten(error)}") from None


def shorten(error: BaseException) -> str:
    """The first line of a message: what follows in Polars' is advice on how to call Polars."""
    return textwrap.shorten((str(error).splitlines() or [type(error).__name__])[0], 160, placeholder=" ...")
