"""Which token of somebody else's checkpoint is which item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from compress.data.sources.reading import one_line
from compress.errors import DataError
from compress.recipe.adoption import Bert4RecCheckpoint

VOCABULARY = "vocab.txt"


def item_tokens(section: Bert4RecCheckpoint, folder: Path, item_ids: Sequence[str], vocab_size: int) -> list[int]:
    """The token of each item.

    Raises: DataError if an item has none, two have the same, or a token is none of the model's or a special one.
    """
    if section.token_offset is not None:
        tokens = _by_offset(item_ids, section.token_offset)
        where = f"token_offset {section.token_offset}"
    else:
        path = section.tokens or folder / VOCABULARY
        known, where = _by_file(path), str(path)
        tokens = [known.get(item_id, -1) for item_id in item_ids]
    missing = [item_id for item_id, token in zip(item_ids, tokens, strict=True) if not 0 <= token < vocab_size]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(item_ids)} items have no token of the model's {vocab_size}, "
            f"{missing[0]!r} among them; filter them from the data, or correct the map"
        )
    special = {section.pad_token, section.mask_token}
    taken = [item_id for item_id, token in zip(item_ids, tokens, strict=True) if token in special]
    if taken or len(set(tokens)) < len(tokens):
        what = f"item {taken[0]!r} has the pad or mask token" if taken else "two items have the same token"
        raise DataError(f"{where}: {what}; correct the map, pad_token or mask_token")
    return tokens


def _by_offset(item_ids: Sequence[str], offset: int) -> list[int]:
    try:
        return [int(item_id) + offset for item_id in item_ids]
    except ValueError as error:
        raise DataError(f"token_offset: item ids must be integers: {error}; use tokens, a file") from None


def _by_file(path: Path) -> Mapping[str, int]:
    if path.name == VOCABULARY:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}; name a file of token_id,item_id with tokens") from None
        return {item_id: token for token, item_id in enumerate(lines)}
    with one_line(path):
        if path.suffix == ".parquet":
            table = pl.read_parquet(path, glob=False)
        else:
            table = pl.read_csv(path, infer_schema=False, glob=False)  # all strings: an id 007 stays 007
        for column in ("token_id", "item_id"):
            if column not in table.columns:
                raise DataError(f"{path}: no column {column!r}; columns: {', '.join(table.columns)}")
        rows = table.select(pl.col("item_id").cast(pl.String), pl.col("token_id").cast(pl.Int64)).drop_nulls()
    return dict(rows.iter_rows())
