"""Prepares the data of a recipe: reads, filters, numbers and orders the interactions.

    python -m compress.prepare recipe.yaml

The artifact holds `interactions.parquet` (dense ids, by user and time), and as the id map `users.parquet` and
`items.parquet` (raw ids, texts, popularity in training). The split is not stored: it is the last two of each user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from compress.artifact import Artifact
from compress.command import main
from compress.data import sources
from compress.data.interactions import Counts, Interactions, filter_interactions, number, order_by_time, save
from compress.errors import DataError
from compress.recipe.data import AnyData
from compress.stage import Workspace

TOP = 10
"""Quality is judged on so many recommended items."""


def run(section: AnyData, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes the three tables; the metrics count what is in them and what was dropped on the way.

    Raises: DataError if the source cannot be read or filtering leaves too little.
    """
    raw = sources.read(section)
    kept, dropped = filter_interactions(raw.interactions, section)
    if kept.is_empty():
        raise DataError(_nothing_left(raw.interactions.height, dropped, section))
    users, items = number(kept["user"]), number(kept["item"])
    if items.height <= TOP:
        raise DataError(f"data: {items.height} items are left; a top {TOP} needs more items than that to choose from")
    dense = kept.select(
        user=pl.col("user").replace_strict(users["user_id"], users["user"]),
        item=pl.col("item").replace_strict(items["item_id"], items["item"]),
        timestamp="timestamp",
    )
    interactions = order_by_time(dense, section.seed)
    texts = raw.items.rename({"item": "item_id"})
    described = items.join(texts, on="item_id", how="left", maintain_order="left").with_columns(
        popularity=Interactions.from_table(interactions, items.height).popularity()
    )
    save(workspace.folder, interactions, users, described)
    return {
        "users": users.height,
        "items": items.height,
        "interactions": interactions.height,
        "dropped": dropped.as_dict(),
    }


def _nothing_left(read: int, dropped: Counts, section: AnyData) -> str:
    k = section.min_interactions
    steps = [f"{dropped.missing} lack a user, item or timestamp"]
    if section.min_rating is not None:
        steps.append(f"{dropped.rating} are not rated {section.min_rating:g} or more")
    steps.append(f"{dropped.duplicate} are repeats")
    steps.append(f"{dropped.core} are of users or items with fewer than {k}")
    knobs = "data.min_interactions" + ("" if section.min_rating is None else " or data.min_rating")
    return f"data: nothing is left of {read} interactions: {', '.join(steps)}; lower {knobs} or bring more data"


if __name__ == "__main__":
    raise SystemExit(main("prepare"))
