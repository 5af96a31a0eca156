"""From raw interactions to dense ids in order of time, and the leave-one-out split over them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from compress.recipe.data import AnyData

IntArray = npt.NDArray[np.integer[Any]]

Split = Literal["validation", "test"]

HELD_OUT: dict[Split, int] = {"validation": 2, "test": 1}
"""How far from a user's end the target of a split stands; what comes before it is history."""

INTERACTIONS, ITEMS, USERS = "interactions.parquet", "items.parquet", "users.parquet"


@dataclass(frozen=True)
class Counts:
    """Rows taken away at each step, in this order."""

    missing: int
    rating: int
    duplicate: int
    core: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def filter_interactions(raw: pl.DataFrame, section: AnyData) -> tuple[pl.DataFrame, Counts]:
    """The rows worth learning from: complete, rated well enough, one per user and item, in the k-core.

    Args:
        raw: user, item, timestamp, rating, as a source gives them.

    Returns:
        user, item, timestamp of what is left, maybe nothing, in no particular order; and what went away.

    """
    complete = raw.drop_nulls(["user", "item", "timestamp"])
    rated = complete if section.min_rating is None else complete.filter(pl.col("rating") >= section.min_rating)
    timestamp = pl.col("timestamp")
    single = rated.group_by("user", "item").agg(timestamp.min() if section.duplicates == "first" else timestamp.max())
    core = _core(single, section.min_interactions)
    heights = [table.height for table in (raw, complete, rated, single, core)]
    return core, Counts(*(before - after for before, after in pairwise(heights)))


def _core(table: pl.DataFrame, k: int) -> pl.DataFrame:
    """The largest part in which every user and every item has at least k rows."""
    while True:
        smaller = table.filter(pl.len().over("user") >= k, pl.len().over("item") >= k)
        if smaller.height == table.height:
            return table
        table = smaller


def number(ids: pl.Series) -> pl.DataFrame:
    """Numbers each id once, from 0, in the order of the ids: as numbers if all are integers, else as strings.

    Args:
        ids: strings, named `user` or `item`.

    Returns:
        that column as int32, and its string in a column `user_id` or `item_id`.

    """
    unique = ids.unique()
    whole = unique.str.contains(r"^-?[0-9]{1,18}$").all()
    keys = pl.DataFrame({"id": unique, "value": unique.cast(pl.Int64 if whole else pl.String)})
    ordered = keys.sort("value", "id")["id"]
    return pl.DataFrame({ids.name: np.arange(len(ordered), dtype=np.int32), f"{ids.name}_id": ordered})


def order_by_time(interactions: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Sorts by user and time; interactions of a user at one time come in an order that only `seed` decides.

    Args:
        interactions: user, item, timestamp with dense ids, each user and item together once; their order is no matter.

    """
    # From the canonical order, so that neither the rows' order nor a pattern in it (sorted by item, say) comes through.
    canonical = interactions.sort("user", "timestamp", "item")
    keys = np.random.default_rng(seed).random(canonical.height)
    return canonical.with_columns(key=keys).sort("user", "timestamp", "key").drop("key")


@dataclass(frozen=True, eq=False)
class Interactions:
    """Everyone's items in order of time, end to end."""

    items: IntArray
    """Dense item ids of user 0, then of user 1, ...; int32."""
    timestamps: IntArray
    """When each was used; never falling within a user."""
    offsets: IntArray
    """Where each user begins, and the end; (users + 1)."""
    catalogue_size: int

    @classmethod
    def from_table(cls, table: pl.DataFrame, catalogue_size: int) -> Interactions:
        """From columns user, item, timestamp with dense ids, sorted by user and time."""
        offsets = np.concatenate([[0], np.cumsum(np.bincount(table["user"].to_numpy()))])
        return cls(table["item"].to_numpy(), table["timestamp"].to_numpy(), offsets, catalogue_size)

    @classmethod
    def load(cls, folder: Path) -> Interactions:
        """From the folder of a prepare stage."""
        catalogue_size = pl.scan_parquet(folder / ITEMS, glob=False).select(pl.len()).collect().item()
        table = pl.read_parquet(folder / INTERACTIONS, columns=["user", "item", "timestamp"], glob=False)
        return cls.from_table(table, catalogue_size)

    @property
    def user_count(self) -> int:
        return len(self.offsets) - 1

    def of_users(self, users: IntArray) -> Interactions:
        """These users alone, numbered from 0 in this order."""
        places = [np.arange(self.offsets[user], self.offsets[user + 1]) for user in users]
        together = np.concatenate(places)
        offsets = np.cumsum([0, *map(len, places)])
        return Interactions(self.items[together], self.timestamps[together], offsets, self.catalogue_size)

    def train(self, user: int) -> IntArray:
        """All but the last two."""
        return self.history("validation", user)

    def retold(self, user: int, random: np.random.Generator) -> IntArray:
        """The training part with items of one moment in a fresh order: which came first, nobody knows."""
        train = self.train(user)
        moments = self.timestamps[self.offsets[user] :][: len(train)]
        return train[np.lexsort((random.random(len(train)), moments))]

    def history(self, split: Split, user: int) -> IntArray:
        """What is known when the target of the split is guessed; test knows the validation target."""
        return self.items[self.offsets[user] : self.offsets[user + 1] - HELD_OUT[split]]

    def targets(self, split: Split) -> IntArray:
        """Every user's; (users)."""
        return self.items[self.offsets[1:] - HELD_OUT[split]]

    def popularity(self) -> IntArray:
        """How often each item occurs in the training parts; (catalogue_size)."""
        ends = self.offsets[1:]
        train = np.delete(self.items, np.concatenate([ends - 1, ends - 2]))
        return np.bincount(train, minlength=self.catalogue_size)


def save(folder: Path, interactions: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> None:
    """Writes what `Interactions.load` reads, and the id map apart: interactions hold no raw ids.

    Args:
        interactions: user: int32, item: int32, timestamp: int64, sorted by user and time.
        users: user: int32, user_id: str.
        items: item: int32, item_id: str, text: str, popularity: int64.

    """
    interactions.write_parquet(folder / INTERACTIONS)
    users.write_parquet(folder / USERS)
    items.write_parquet(folder / ITEMS)
