"""What a model reads beside texts: the first stage's opinion, and what is known of items and users as numbers.

I: items, P: candidates of a user, F: features of one, G: columns of a table.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from compress.artifact import write_json
from compress.data.histories import Asked, Attributes
from compress.data.interactions import IntArray

ENCODING = "features.json"
ITEM_FEATURES = "item_features.npy"
FILES = (ENCODING, ITEM_FEATURES)
"""Everything that `save` writes."""

Floats = NDArray[np.float32]

FIRST_STAGE = 2
"""Features made of the first stage's scores: see `_opinion`."""


@dataclass(frozen=True)
class Encoding:
    """How a row of strings becomes numbers."""

    numeric: Mapping[str, tuple[float, float]]
    """Column: mean and standard deviation."""
    categorical: Mapping[str, Sequence[str]]
    """Column: the words that have a feature each, in order."""

    @classmethod
    def learn(cls, table: pl.DataFrame, numeric: Sequence[str], categorical: Sequence[str], min_count: int) -> Encoding:
        """From a table of strings.

        Args:
            min_count: rows that a word must be in. Rarer ones tell a user or an item, and are learned by heart.
        Raises: ValueError if a cell is no number.

        """
        moments = {}
        for column in numeric:
            try:
                values = table[column].cast(pl.Float64).drop_nulls().drop_nans()
            except pl.exceptions.InvalidOperationError:
                raise ValueError(f"{column}: not every cell is a number; is it categorical?") from None
            deviation = values.std() if len(values) > 1 else 0.0
            mean = values.mean() if len(values) else 0.0
            moments[column] = (float(mean), float(deviation) or 1.0)  # type: ignore[arg-type]
        words = {}
        for column in categorical:
            told = table[column].cast(pl.String).fill_null("").str.split(" ").list.unique().explode()
            counts = told.filter(told != "").value_counts()
            words[column] = sorted(counts.filter(pl.col("count") >= min_count)[column].to_list())
        return cls(moments, words)

    @property
    def names(self) -> list[str]:
        """Of the features, in order."""
        return [*self.numeric, *(f"{column}={word}" for column, words in self.categorical.items() for word in words)]

    def of(self, rows: Sequence[Attributes]) -> Floats:
        """(rows, G). What is missing, or no number, is the mean; a word nobody knows is left out."""
        found = np.zeros((len(rows), len(self.names)), dtype=np.float32)
        for row, columns in zip(found, rows, strict=True):
            for place, (name, (mean, deviation)) in enumerate(self.numeric.items()):
                row[place] = (_number(columns.get(name), mean) - mean) / deviation
            place = len(self.numeric)
            for name, words in self.categorical.items():
                told = set((columns.get(name) or "").split())
                row[place : place + len(words)] = [word in told for word in words]
                place += len(words)
        return found


def _number(text: str | None, otherwise: float) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return otherwise
    return value if np.isfinite(value) else otherwise


@dataclass(frozen=True, eq=False)
class Features:
    """Of a catalogue and those who are recommended it."""

    items_IF: Floats
    """Memory-mapped when it was loaded."""
    users: Encoding
    folder: Path
    """Where it was loaded from or is saved."""

    @classmethod
    def load(cls, folder: Path) -> Features:
        described = json.loads((folder / ENCODING).read_text(encoding="utf-8"))
        items_IF = np.load(folder / ITEM_FEATURES, mmap_mode="r", allow_pickle=False)
        return cls(items_IF, Encoding(**described["users"]), folder)

    def save(self, folder: Path) -> None:
        for name in FILES:
            shutil.copyfile(self.folder / name, folder / name)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many of `pairs`' columns the first stage, an item, and a user has."""
        return FIRST_STAGE, self.items_IF.shape[1], len(self.users.names)

    @property
    def attributes(self) -> frozenset[str]:
        """Columns of users that are read."""
        return frozenset((*self.users.numeric, *self.users.categorical))

    def pairs(self, scores: Mapping[int, float], attributes: Attributes, items: IntArray) -> Floats:
        """A user beside each of these items: (P, F), in the order of `sizes`.

        Args:
            scores: what the first stage says of all that it found, these items among them.

        """
        user_G = self.users.of([attributes])[0]
        user_PG = np.broadcast_to(user_G, (len(items), len(user_G)))
        return np.concatenate([_opinion(scores, items), self.items_IF[items], user_PG], axis=1)

    def of(self, asked: Asked, row: int, items: IntArray) -> Floats:
        """`pairs` of one of these users. Raises ValueError if nothing is said of a first stage."""
        if asked.first_stage is None:
            raise ValueError("the first stage's scores are not there")
        return self.pairs(asked.first_stage[row], asked.attributes_of(row), items)


def _opinion(scores: Mapping[int, float], items: IntArray) -> Floats:
    """How many standard deviations an item's score is above the list's mean, and its place: 1 first, 0 last.

    Neither knows the scale of a score, which is the first stage's own. What it did not find is its last.
    """
    values = np.sort(np.fromiter(scores.values(), dtype=np.float64, count=len(scores)))
    if not len(values):
        return np.zeros((len(items), FIRST_STAGE), dtype=np.float32)
    own = np.array([scores.get(item, values[0]) for item in items.tolist()])
    deviations = (own - values.mean()) / (values.std() or 1.0)
    places = np.searchsorted(values, own) / max(1, len(values) - 1)
    return np.stack([deviations, places], axis=1).astype(np.float32)


def write_features(folder: Path, items_IF: Floats, names: Sequence[str], users: Encoding) -> None:
    """All of `FILES`. Args: names: of the columns of `items_IF`."""
    write_json(folder / ENCODING, {"items": list(names), "users": asdict(users)})
    np.save(folder / ITEM_FEATURES, items_IF, allow_pickle=False)
