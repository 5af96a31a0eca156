"""Prepares the data of a recipe: reads, filters, numbers, orders and splits the interactions.

    python -m compress.prepare recipe.yaml

The artifact holds `interactions.parquet` (dense ids, by user, part and time), `items.parquet` (raw ids, texts,
popularity in training), `candidates.parquet` where quality is judged on given candidates, `attributes.parquet` where
there is a table of users, and `users.parquet` where the recipe asks for a map: what else is made of the data knows
users by number only.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from compress.artifact import Artifact
from compress.command import main
from compress.data import sources
from compress.data.interactions import ATTRIBUTES, CANDIDATES, INTERACTIONS, ITEMS, TRAIN, USERS, Interactions
from compress.data.log import Counts, dense, filter_interactions, hold_out, order_by_time
from compress.errors import DataError
from compress.recipe.data import USER_KEY, AnyData, DataSection
from compress.stage import Workspace

TOP = 10
"""Quality is judged on so many recommended items."""


def run(section: AnyData, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes the tables; the metrics count what is in them and what was dropped on the way.

    Raises: DataError if the source cannot be read or filtering leaves too little.
    """
    rename = _rename(section)
    raw = sources.read(section)
    kept, dropped = filter_interactions(raw.batches, section)
    if kept.is_empty():
        raise DataError(_nothing_left(dropped, section))
    (user, users), (item, items) = dense(kept["user"], rename), dense(kept["item"])
    if items.height <= TOP:
        raise DataError(f"data: {items.height} items are left; a top {TOP} needs more items than that to choose from")
    ordered = order_by_time(kept.with_columns(user, item), section.seed)
    del kept, user, item
    table = hold_out(ordered, section)
    lists = None
    if raw.candidates is not None:
        lists = _candidates(raw.candidates, users, items, rename)
        listed = pl.col("user").is_in(lists["user"].unique().implode())  # whoever has none would be missed by any model
        table = table.filter((pl.col("part") == TRAIN) | listed)
    interactions = Interactions.from_table(table, items.height)
    asked = {split: len(interactions.users(split)) for split in ("validation", "test")}
    for split, count in asked.items():
        if not count:
            raise DataError(
                f"data: no user has a {split} item{' and candidates' if lists is not None else ''} after filtering; "
                "nothing could be judged on them"
            )
    if interactions.labels:
        _check_labels(table)
    texts = raw.items().rename({"item": "item_id"})
    if raw.users is not None:
        _attributes(raw.users(), users, rename).write_parquet(workspace.folder / ATTRIBUTES)
    described = items.join(texts, on="item_id", how="left", maintain_order="left").with_columns(
        popularity=interactions.popularity()
    )
    table.write_parquet(workspace.folder / INTERACTIONS)
    described.write_parquet(workspace.folder / ITEMS)
    if rename or section.user_map == "plain":
        users.write_parquet(workspace.folder / USERS)
    judged_on = "full catalogue"
    if interactions.labels:
        judged_on = "labels of what each user was asked about"
    if lists is not None:
        lists.write_parquet(workspace.folder / CANDIDATES)
        judged_on = f"user's given candidates, {lists.height / lists['user'].n_unique():.0f} on average"
    return {
        "users": users.height,
        "items": items.height,
        "interactions": table.height,
        "split": section.split,
        "judged_on": judged_on,
        "judged_users": asked,
        "dropped": dropped.as_dict() | {"later_held_out": ordered.height - table.height},
    }


def _rename(section: DataSection) -> Callable[[str], str] | None:
    """What stands for a user's raw id. Raises DataError if it is to be keyed and there is no key."""
    if section.user_map != "keyed":
        return None
    key = os.environ.get(USER_KEY, "").encode()
    if not key:
        raise DataError(f"data.user_map: keyed: set {USER_KEY} to a secret; who has it can tell which user is which")
    return lambda user: hmac.new(key, user.encode(), hashlib.sha256).hexdigest()


def _candidates(
    lists: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame, rename: Callable[[str], str] | None
) -> pl.DataFrame:
    """Dense user and item, each pair once; users and items that filtering took away are left out."""
    named = lists.with_columns(pl.col("user").map_elements(rename, pl.String)) if rename else lists
    known = named.join(users, left_on="user", right_on="user_id").join(items, left_on="item", right_on="item_id")
    pairs = known.select(user="user_right", item="item_right").unique().sort("user", "item")
    if pairs.is_empty():
        raise DataError("data.candidates: no user and item of it is left in the interactions; are the ids the same?")
    return pairs


def _check_labels(table: pl.DataFrame) -> None:
    """Raises DataError unless there is something to tell apart in each part."""
    if table["part"].min() != TRAIN:
        raise DataError("data.split: time: most interactions are of one moment; nothing comes before the held-out ones")
    for part, name in enumerate(("training", "validation", "test")):
        share = table.filter(pl.col("part") == part)["label"].mean()
        if share in (0, 1):
            raise DataError(
                f"data.positive_rating: all labels of the {name} part are {share:.0f}; nothing to tell apart"
            )


def _attributes(table: pl.DataFrame, users: pl.DataFrame, rename: Callable[[str], str] | None) -> pl.DataFrame:
    """What is known of each user, by dense id; empty where nothing is."""
    named = table.with_columns(pl.col("user").map_elements(rename, pl.String)) if rename else table
    if not named["user"].is_in(users["user_id"].implode()).any():
        raise DataError("data.users: no user of it is in the interactions; are the ids the same?")
    known = users.join(named, left_on="user_id", right_on="user", how="left", maintain_order="left")
    return known.drop("user_id").sort("user").with_columns(pl.col(pl.String).fill_null(""))


def _nothing_left(dropped: Counts, section: AnyData) -> str:
    k = section.min_interactions
    steps = [f"{dropped.missing} lack a user, item or timestamp"]
    if section.min_rating is not None:
        steps.append(f"{dropped.rating} are not rated {section.min_rating:g} or more")
    steps.append(f"{dropped.duplicate} are repeats")
    steps.append(f"{dropped.core} are of users or items with fewer than {k}")
    knobs = "data.min_interactions" + ("" if section.min_rating is None else " or data.min_rating")
    read = sum(dropped.as_dict().values())
    return f"data: nothing is left of {read} interactions: {', '.join(steps)}; lower {knobs} or bring more data"


if __name__ == "__main__":
    raise SystemExit(main("prepare"))
