"""Synthetic users: small or many, seeded, learnable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from compress.data.interactions import TRAIN
from compress.data.sources.reading import Raw
from compress.recipe.data import Synthetic

RUN = 7
"""Items that a synthetic user takes from one cluster before moving on to the next."""

BATCH = 50_000
"""Users whose interactions are written out at once."""


def read_synthetic(section: Synthetic) -> Raw:
    """Users that go round clusters of items, some forwards and some backwards.

    The catalogue is cut into rings of at least ten items, and the rings form a ring. A user enters one anywhere, takes
    `RUN` neighbours in their own direction, and enters the next. Six of seven steps follow from the last two items; no
    item comes twice, but for what is refused. Early clusters have more users, so that popularity is worth something,
    but little.
    """
    starts = np.linspace(0, section.items, section.items // 10 + 1).astype(np.int64)
    return Raw(_batches(section, starts), lambda: _items(section, starts))


def _batches(section: Synthetic, starts: NDArray[np.int64]) -> Iterator[pl.DataFrame]:
    rng = np.random.default_rng(section.seed)
    chance = np.random.default_rng((section.seed, 1))
    clusters = len(starts) - 1
    lengths = np.minimum(5 + rng.poisson(section.length - 5, section.users), RUN * clusters)
    visits = -(-int(lengths.max()) // RUN)
    home = (clusters * rng.random((section.users, 1)) ** 1.5).astype(np.int64)
    entry = rng.random((section.users, visits))
    direction = rng.choice([-1, 1], section.users)
    began = 1_700_000_000 + rng.integers(0, 600, section.users)  # all at once: a moment divides most histories
    for first in range(0, section.users, BATCH):
        here = lengths[first : first + BATCH]
        user = np.repeat(np.arange(first, first + len(here)), here)
        step = np.arange(len(user)) - np.repeat(np.cumsum(here) - here, here)
        visit, place = np.divmod(step, RUN)
        cluster = (home[user, 0] + visit) % clusters
        size = starts[cluster + 1] - starts[cluster]
        slot = ((entry[user, visit] * size).astype(np.int64) + direction[user] * place) % size
        refused = chance.random(len(user)) < section.refused
        item = np.where(refused, chance.integers(0, section.items, len(user)), starts[cluster] + slot)
        yield pl.DataFrame(
            {
                "user": pl.Series(user + 1).cast(pl.String),
                "item": pl.Series(item + 1).cast(pl.String),
                "timestamp": pl.Series(began[user] + 60 * step),
                "rating": np.where(refused, 1.0, 5.0),
            }
        ).with_columns(part=pl.lit(TRAIN, pl.UInt8))


def _items(section: Synthetic, starts: NDArray[np.int64]) -> pl.DataFrame:
    item = pl.Series("item", np.arange(section.items))
    cluster = pl.Series("cluster", np.searchsorted(starts, item.to_numpy(), side="right"))
    text = pl.format("cluster {} item {}", "cluster", "item")
    return pl.DataFrame([item + 1, cluster]).select(pl.col("item").cast(pl.String), text=text)
