"""Turns columns of items and users, and given vectors, into numbers that a `hybrid` reads beside texts.

`python -m compress.features recipe.yaml`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.features import DescribedBy, FeaturesSection
from compress.stage import Workspace

if TYPE_CHECKING:
    import polars as pl

    from compress.data.features import Encoding, Floats


def run(section: FeaturesSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `data.features.FILES`. Returns how many features items and users have.

    Raises: DataError if a column is not there or holds no numbers, or the vectors' file is no such file.
    """
    import numpy as np
    import polars as pl

    from compress.data.features import write_features
    from compress.data.interactions import ATTRIBUTES, ITEMS
    from compress.errors import DataError

    data = inputs["data"]
    items = pl.read_parquet(data.path(ITEMS), glob=False).sort("item").with_columns(pl.col("popularity").log1p())
    item_ids = items["item_id"].to_list()
    known = pl.DataFrame()
    if section.users:
        if not (data.folder / ATTRIBUTES).exists():
            raise DataError("features.users: nothing is known of users; data.users names a table of them")
        known = pl.read_parquet(data.folder / ATTRIBUTES, glob=False).drop("user")
    of_items = _encoding("items", section.items, items, section.min_count)
    of_users = _encoding("users", section.users, known, section.min_count)
    columns = items.select(pl.col(*section.items.numeric, *section.items.categorical).cast(pl.String))
    items_IF = of_items.of(columns.to_dicts() or [{}] * len(item_ids))
    names = of_items.names
    if section.vectors:
        given = _vectors(section.vectors, item_ids)
        items_IF = np.concatenate([items_IF, given], axis=1)
        names = [*names, *(f"vector {place}" for place in range(given.shape[1]))]
    write_features(workspace.folder, items_IF, names, of_users)
    return {"item_features": len(names), "user_features": len(of_users.names)}


def _encoding(key: str, wanted: DescribedBy, table: pl.DataFrame, min_count: int) -> Encoding:
    from compress.data.features import Encoding
    from compress.errors import DataError

    for column in (*wanted.numeric, *wanted.categorical):
        if column not in table.columns:
            known = ", ".join(column for column in table.columns if column not in ("item", "item_id"))
            raise DataError(f"features.{key}: there is no column {column!r}; there are {known}")
    try:
        return Encoding.learn(table, wanted.numeric, wanted.categorical, min_count)
    except ValueError as error:
        raise DataError(f"features.{key}: {error}") from None


def _vectors(path: Path, item_ids: Sequence[str]) -> Floats:
    """Of each item, scaled so that a number is as large as any other feature on average: (I, D)."""
    import zipfile

    import numpy as np

    from compress.errors import DataError

    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, vectors_ND = arrays["item_id"].astype(str).tolist(), arrays["vectors"].astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no npz file with item_id and vectors: {str(error).splitlines()[0]}") from None
    if vectors_ND.ndim != 2 or len(ids) != len(vectors_ND) or not np.isfinite(vectors_ND).all():
        raise DataError(f"{path}: vectors are {vectors_ND.shape}, of {len(ids)} items; one finite row for each")
    place = {item: row for row, item in enumerate(ids)}
    rows = [place.get(item, -1) for item in item_ids]
    if max(rows) < 0:
        raise DataError(f"{path}: none of its items is in the catalogue; item_id is as in the data")
    found = np.concatenate([vectors_ND, np.zeros((1, vectors_ND.shape[1]), dtype=np.float32)])[rows]
    scaled: Floats = (found / (np.sqrt(np.square(vectors_ND).mean()) or 1.0)).astype(np.float32)
    return scaled


if __name__ == "__main__":
    raise SystemExit(main("features"))
