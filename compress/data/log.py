"""From raw interactions, batch by batch, to dense ids in order of time.

A log may be larger than memory: of each batch stay 32-bit codes of its ids and the time, 16 bytes a row, and what needs
more room (repeats, order) is done for a block of users at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from compress.data.interactions import JUDGED, TEST, TRAIN, VALIDATION, IntArray, leave_one_out
from compress.recipe.data import AnyData

BLOCK = 4_000_000
"""Rows that are sorted or grouped at once."""


@dataclass(frozen=True)
class Counts:
    """Rows taken away at each step, in this order."""

    missing: int
    rating: int
    duplicate: int
    core: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def filter_interactions(batches: Iterable[pl.DataFrame], section: AnyData) -> tuple[pl.DataFrame, Counts]:
    """The rows worth learning from: complete, rated well enough, one per user and item, in the k-core.

    Args:
        batches: user, item, timestamp, rating, part, as a source gives them.

    Returns:
        user and item (categorical), timestamp, part and, where the data has labels, label of what is left, maybe
        nothing, in no particular order; and what went away. Of repeats in different parts the earlier part keeps the
        item.

    """
    # Codes are consistent as long as a column of the same categories lives: the first batch's does.
    users, items = (pl.Categorical(pl.Categories.random()) for _ in range(2))
    read = complete = 0
    labelled = section.positive_rating is not None
    rated = []
    for batch in batches:
        whole = batch.drop_nulls(["user", "item", "timestamp", *(["rating"] if labelled else [])])
        good = whole if section.min_rating is None else whole.filter(pl.col("rating") >= section.min_rating)
        label = [(pl.col("rating") >= section.positive_rating).cast(pl.UInt8).alias("label")] if labelled else []
        rated.append(good.select(pl.col("user").cast(users), pl.col("item").cast(items), "timestamp", "part", *label))
        read, complete = read + batch.height, complete + whole.height
    table = pl.concat(rated, how="vertical_relaxed")  # one source's times may be whole in one batch and not in another
    single = pl.concat(_single(block, section.duplicates) for block in _blocks(table, _code("user")))
    core = _core(single, section.min_interactions)
    heights = [read, complete, table.height, single.height, core.height]
    return core, Counts(*(before - after for before, after in pairwise(heights)))


def _code(column: str) -> pl.Expr:
    return pl.col(column).to_physical()


def _blocks(table: pl.DataFrame, key: pl.Expr) -> Iterator[pl.DataFrame]:
    """The table by ranges of a dense key, each of about BLOCK rows; rows of one key stay together."""
    count = 1 + table.height // BLOCK
    if count == 1:
        yield table
        return
    top = table.select(key.max()).item() + 1
    for low, high in pairwise(np.linspace(0, top, count + 1).astype(int).tolist()):
        yield table.filter(key.is_between(low, high, closed="left"))


def _single(table: pl.DataFrame, which: str) -> pl.DataFrame:
    """One row per user and item."""
    first = pl.col("part") == pl.col("part").min()
    timestamp = pl.col("timestamp").filter(first)
    kept = timestamp.min() if which == "first" else timestamp.max()
    # Of one moment a yes counts: whatever the order of the rows, it is the same label.
    label = [pl.col("label").filter(first & (pl.col("timestamp") == kept)).max()] if "label" in table.columns else []
    return table.group_by("user", "item").agg(kept, pl.col("part").min(), *label)


def _core(table: pl.DataFrame, k: int) -> pl.DataFrame:
    """The largest part in which every user and every item has at least k training rows.

    What is held out of a user who stays, stays: an item nobody learns about is a miss, not a case to leave out.
    """
    users, items = (table[column].to_physical().to_numpy() for column in ("user", "item"))
    training = table["part"].to_numpy() == TRAIN
    kept = training
    while True:
        enough_users, enough_items = (np.bincount(codes[kept], minlength=1) >= k for codes in (users, items))
        smaller = kept & _holds(enough_users, users) & _holds(enough_items, items)
        if smaller.sum() == kept.sum():
            break
        kept = smaller
    return table.filter(kept | (~training & _holds(enough_users, users)))


def _holds(flags: np.ndarray, codes: IntArray) -> np.ndarray:
    """The flag of each code; codes beyond the last flag have none."""
    return np.append(flags, False)[np.minimum(codes, len(flags))]


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


def dense(column: pl.Series, rename: Callable[[str], str] | None = None) -> tuple[pl.Series, pl.DataFrame]:
    """A categorical column as dense numbers, and whose they are.

    Args:
        column: categorical, named `user` or `item`.
        rename: applied to each id before it is numbered.

    Returns:
        int32 of the same length; and `number` of its ids.

    """
    categories = column.unique()
    names = categories.cast(pl.String)
    if rename:
        names = names.map_elements(rename, pl.String)
    ids = number(names)
    table = np.zeros(1 + max(categories.to_physical(), default=0), dtype=np.int32)
    table[categories.to_physical().to_numpy()] = names.replace_strict(ids[f"{column.name}_id"], ids[column.name])
    return pl.Series(column.name, table[column.to_physical().to_numpy()]), ids


def order_by_time(interactions: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Sorts by user, part and time; what a user did at one time comes in an order that only `seed` decides.

    Args:
        interactions: user, item, timestamp, part with dense ids, each user and item together once, in any order.

    """
    random = np.random.default_rng(seed)
    ordered = []
    for block in _blocks(interactions, pl.col("user")):
        # From the canonical order: neither the rows' order nor a pattern in it (sorted by item, say) comes through.
        canonical = block.sort("user", "part", "timestamp", "item")
        keys = random.random(canonical.height)
        ordered.append(canonical.with_columns(key=keys).sort("user", "part", "timestamp", "key").drop("key"))
    return pl.concat(ordered)


def hold_out(ordered: pl.DataFrame, section: AnyData) -> pl.DataFrame:
    """The part of each interaction that stays.

    Leave-one-out: the last item of a user is test, the one before it validation; of `evaluation_users` alone if that is
    given, everything of the others is training. With labels, by time or given: all of each part, of a user the first
    JUDGED. A given split: of each user the first item of each held-out part, or of `evaluation_users` of them alone,
    what was given to hold out of the others being left out; where nothing is given for validation it is the last
    training item of the users with a test item, if it is not their only one.

    Args:
        ordered: as `order_by_time` leaves it.

    """
    if section.split == "leave-one-out":
        offsets = np.concatenate([[0], np.cumsum(np.bincount(ordered["user"].to_numpy()))])
        asked = _asked(len(offsets) - 1, section)
        return ordered.with_columns(part=leave_one_out(offsets, asked))
    place = pl.int_range(pl.len()).over("user", "part")
    if section.positive_rating is not None:
        parts = _by_time(ordered, section.held_out) if section.split == "time" else ordered
        held_out = parts.filter(pl.col("part") != TRAIN)["user"].unique().sort().to_numpy()
        asked = _asked(len(held_out), section)
        there = (pl.col("part") == TRAIN) | pl.col("user").is_in(held_out if asked is None else held_out[asked])
        heard = parts.filter(there)
        return heard.filter((pl.col("part") == TRAIN) | (place < JUDGED))
    single = ordered.filter((pl.col("part") == TRAIN) | (place == 0))
    held_out = single.filter(pl.col("part") != TRAIN)["user"].unique().sort().to_numpy()
    asked = _asked(len(held_out), section)
    if asked is not None:
        single = single.filter((pl.col("part") == TRAIN) | pl.col("user").is_in(held_out[asked]))
    if not single.select((pl.col("part") == VALIDATION).any()).item():
        size = pl.len().over("user", "part")
        tested = (pl.col("part") == TEST).any().over("user")
        last = (pl.col("part") == TRAIN) & tested & (place == size - 1) & (size > 1)
        single = single.with_columns(part=pl.when(last).then(pl.lit(VALIDATION, pl.UInt8)).otherwise("part"))
    return single


def _by_time(ordered: pl.DataFrame, share: float) -> pl.DataFrame:
    """The latest share of all interactions is test, as much before it validation; one moment is in one part."""
    moments = ordered["timestamp"].sort()
    ends = [moments[min(len(moments) - 1, int(len(moments) * (1 - parts * share)))] for parts in (2, 1)]
    later = [(pl.col("timestamp") >= end).cast(pl.UInt8) for end in ends]
    return ordered.with_columns(part=later[0] + later[1])


def _asked(users: int, section: AnyData) -> IntArray | None:
    """The users that quality is judged on, drawn by the data's seed; None: all."""
    if section.evaluation_users is None or section.evaluation_users >= users:
        return None
    return np.sort(np.random.default_rng((section.seed, 1)).permutation(users)[: section.evaluation_users])
