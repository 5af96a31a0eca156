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

WIDTH = 64
"""Of vectors of what is used with what."""


def run(section: FeaturesSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `data.features.FILES`. Returns how many features items and users have.

    Raises: DataError if a column is not there or holds no numbers, or the vectors' file is no such file.
    """
    import numpy as np
    import polars as pl

    from compress.data.features import write_features
    from compress.data.interactions import ATTRIBUTES, ITEMS, Interactions
    from compress.errors import DataError
    from compress.methods.cooccurrence import item_vectors

    data = inputs["data"]
    earlier = Interactions.of(inputs).before_rehearsals
    items = pl.read_parquet(data.path(ITEMS), glob=False).sort("item")
    items = items.with_columns(popularity=np.log1p(earlier.popularity()))
    item_ids = items["item_id"].to_list()
    known = pl.DataFrame()
    if section.users:
        if not (data.folder / ATTRIBUTES).exists():
            raise DataError("features.users: nothing is known of users; data.users names a table of them")
        known = pl.read_parquet(data.folder / ATTRIBUTES, glob=False).drop("user")
    of_items = _encoding("items", section.items, items, section.min_count)
    of_users = _encoding("users", section.users, known, section.min_count)
    columns = items.select(
        pl.col(name).cast(pl.String) for name in (*section.items.numeric, *section.items.categorical)
    )
    items_IF = of_items.of(columns.to_dicts() or [{}] * len(item_ids))
    vectors_ID = np.zeros((len(item_ids), 0), dtype=np.float32)
    if section.vectors == "cooccurrence":
        vectors_ID = item_vectors(earlier, WIDTH)
    elif section.vectors:
        vectors_ID = _given(Path(section.vectors), item_ids)
    write_features(workspace.folder, of_items.names, items_IF, vectors_ID, of_users, section.recent)
    sizes = {"items": len(of_items.names), "vectors": vectors_ID.shape[1], "users": len(of_users.names)}
    return {f"{name}_features": size for name, size in sizes.items()}


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


def _given(path: Path, item_ids: Sequence[str]) -> Floats:
    """Of each item, zeros where there is none: (I, D)."""
    import zipfile
    import zlib

    import numpy as np

    from compress.errors import DataError

    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, vectors_ND = arrays["item_id"].astype(str).tolist(), arrays["vectors"].astype(np.float32)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: no npz file with item_id and vectors: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None
    if vectors_ND.ndim != 2 or len(ids) != len(vectors_ND) or not np.isfinite(vectors_ND).all():
        raise DataError(f"{path}: vectors are {vectors_ND.shape}, of {len(ids)} items; one finite row for each")
    place = {item: row for row, item in enumerate(ids)}
    rows = [place.get(item, -1) for item in item_ids]
    if max(rows) < 0:
        raise DataError(f"{path}: none of its items is in the catalogue; item_id is as in the data")
    found: Floats = np.concatenate([vectors_ND, np.zeros((1, vectors_ND.shape[1]), dtype=np.float32)])[rows]
    return found


if __name__ == "__main__":
    raise SystemExit(main("features"))
