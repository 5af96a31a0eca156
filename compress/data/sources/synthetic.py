"""Synthetic users: small, seeded, learnable."""

from __future__ import annotations

import numpy as np
import polars as pl

from compress.data.sources.reading import Raw
from compress.recipe.data import Synthetic

RUN = 7
"""Items that a synthetic user takes from one cluster before moving on to the next."""


def read_synthetic(section: Synthetic) -> Raw:
    """Users that go round clusters of items, some forwards and some backwards.

    The catalogue is cut into rings of at least ten items, and the rings form a ring. A user enters one anywhere, takes
    `RUN` neighbours in their own direction, and enters the next. Six of seven steps follow from the last two items; no
    item comes twice. Early clusters have more users, so that popularity is worth something, but little.
    """
    rng = np.random.default_rng(section.seed)
    clusters = section.items // 10
    starts = np.linspace(0, section.items, clusters + 1).astype(np.int64)
    lengths = np.minimum(5 + rng.poisson(section.length - 5, section.users), RUN * clusters)
    visits = -(-int(lengths.max()) // RUN)
    home = (clusters * rng.random((section.users, 1)) ** 1.5).astype(np.int64)
    entry = rng.random((section.users, visits))
    direction = rng.choice([-1, 1], section.users)

    user = np.repeat(np.arange(section.users), lengths)
    step = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    visit, place = np.divmod(step, RUN)
    cluster = (home[user, 0] + visit) % clusters
    size = starts[cluster + 1] - starts[cluster]
    slot = ((entry[user, visit] * size).astype(np.int64) + direction[user] * place) % size
    began = 1_700_000_000 + rng.integers(0, 30 * 86_400, section.users)
    interactions = pl.DataFrame(
        {
            "user": pl.Series(user + 1).cast(pl.String),
            "item": pl.Series(starts[cluster] + slot + 1).cast(pl.String),
            "timestamp": pl.Series(began[user] + 60 * step),
            "rating": pl.Series([None] * len(user), dtype=pl.Float64),
        }
    )
    item = pl.Series("item", np.arange(section.items))
    cluster_of = pl.Series("cluster", np.searchsorted(starts, item.to_numpy(), side="right"))
    items = pl.DataFrame([item + 1, cluster_of])
    text = pl.format("cluster {} item {}", "cluster", "item")
    return Raw(interactions, items.select(pl.col("item").cast(pl.String), text=text))
