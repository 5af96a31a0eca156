"""What changes in a catalogue between two trainings, from files of one's own, and the id map afterwards.

Known items keep their dense ids and new ones follow in the order of their file: interactions stay what they are.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from compress.data.interactions import IntArray
from compress.data.sources.reading import as_id, one_line
from compress.errors import DataError


def read_new_texts(path: Path, known: pl.DataFrame) -> pl.DataFrame:
    """New items with a text each: item_id, text.

    Args:
        path: CSV or Parquet with columns item_id and text, a row per item.
        known: the id map as `prepare` writes it.
    Raises: DataError if it cannot be read, is empty, lacks a value, names an item twice or one that is known.

    """
    table = _read(path, "item_id", "text")
    twice = table.filter(pl.col("item_id").is_duplicated())
    if twice.height:
        raise DataError(f"{path}: item {twice['item_id'][0]!r} is there twice; leave one of its texts")
    _refuse_known(path, table, known)
    return table


def read_new_neighbours(path: Path, known: pl.DataFrame) -> pl.DataFrame:
    """New items with some known ones each: item_id, neighbours: list of dense ids.

    Args:
        path: CSV or Parquet with columns item_id and neighbour_id, a row per pair.
        known: the id map as `prepare` writes it.
    Raises: DataError as `read_new_texts`, or if a pair is there twice or a neighbour unknown.

    """
    table = _read(path, "item_id", "neighbour_id")
    twice = table.filter(table.is_duplicated())
    if twice.height:
        raise DataError(
            f"{path}: the pair {', '.join(map(repr, twice.row(0)))} is there twice; a neighbour counts once"
        )
    _refuse_known(path, table, known)
    found = table.join(_dense(known, "neighbour_id"), on="neighbour_id", how="left", maintain_order="left")
    unknown = found.filter(pl.col("item").is_null())
    if unknown.height:
        item, neighbour = unknown.select("item_id", "neighbour_id").row(0)
        raise DataError(
            f"{path}: {neighbour!r}, a neighbour of {item!r}, is no item that the model knows"
            f"{_and_more(unknown.height)}"
        )
    return found.group_by("item_id", maintain_order=True).agg(neighbours="item")


def read_removed(path: Path, known: pl.DataFrame, added: pl.DataFrame) -> IntArray:
    """Dense ids of what is never recommended again, each once; what the model never knew is passed over.

    Args:
        path: CSV or Parquet with a column item_id.
        known: the id map as `prepare` writes it.
        added: what is new, in column item_id.
    Raises: DataError if it cannot be read, is empty, lacks a value, names a new item or no known one at all.

    """
    table = _read(path, "item_id")
    both = table.join(added, on="item_id", how="semi")
    if both.height:
        raise DataError(
            f"{path}: item {both['item_id'][0]!r} is to be added as well{_and_more(both.height)}; one of them"
        )
    found = table.unique().join(_dense(known, "item_id"), on="item_id")
    if found.is_empty():
        raise DataError(f"{path}: none of its {table.height} rows names an item that the model knows")
    return found["item"].sort().to_numpy()


def extend(known: pl.DataFrame, added: pl.DataFrame, removed: IntArray) -> pl.DataFrame:
    """The id map afterwards: `known` and then `added` (item_id, maybe text), and a column `recommendable`."""
    new = added.select(
        item=pl.int_range(known.height, known.height + added.height, dtype=pl.Int32),
        item_id="item_id",
        text=pl.col("text") if "text" in added.columns else pl.lit(None, pl.String),
        popularity=pl.lit(0, pl.Int64),
    )
    whole = pl.concat([known.select(pl.col(name).cast(kind) for name, kind in new.schema.items()), new])
    return whole.with_columns(recommendable=~pl.col("item").is_in(removed.tolist()))


def _read(path: Path, *names: str) -> pl.DataFrame:
    """The named columns as strings, every value there."""
    with one_line(path):
        if path.suffix == ".parquet":
            rows = pl.scan_parquet(path, glob=False)
        else:
            rows = pl.scan_csv(path, infer_schema=False, glob=False)  # all strings: an id 007 stays 007
        there = rows.collect_schema().names()
        for name in names:
            if name not in there:
                raise DataError(f"{path}: no column {name!r}; columns: {', '.join(there)}")
        table = rows.select(names).collect()
        table = table.with_columns(as_id(table[name]).replace("", None).alias(name) for name in names)
    if table.is_empty():
        raise DataError(f"{path}: there are no rows in it")
    for name in names:
        missing = table[name].is_null().arg_true()
        if len(missing):
            raise DataError(f"{path}: row {missing[0] + 1}: {name} is missing")
    return table


def _refuse_known(path: Path, table: pl.DataFrame, known: pl.DataFrame) -> None:
    there = table.filter(pl.col("item_id").is_in(known["item_id"].implode())).unique("item_id", maintain_order=True)
    if there.height:
        raise DataError(f"{path}: item {there['item_id'][0]!r} is in the catalogue already{_and_more(there.height)}")


def _dense(known: pl.DataFrame, name: str) -> pl.DataFrame:
    return known.select(pl.col("item_id").alias(name), "item")


def _and_more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""
