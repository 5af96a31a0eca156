"""What a model reads beside texts: the first stage's opinion, and what is known of items and users as numbers.

I: items, P: candidates of a user, F: features of one, G: columns of a table.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from compress.artifact import write_json
from compress.data.histories import Asked, Attributes, FirstStage
from compress.data.interactions import IntArray

ENCODING = "features.json"
ITEM_FEATURES, ITEM_VECTORS = "item_features.npy", "item_vectors.npy"
FILES = (ENCODING, ITEM_FEATURES, ITEM_VECTORS)
"""Everything that `save` writes."""

Floats = NDArray[np.float32]

OPINIONS = 3
"""Features that depend on the list an item stands in: see `Features.pairs`."""


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
                told = table[column].cast(pl.String).replace("", None)
                values = told.cast(pl.Float64).drop_nulls().to_numpy()
            except pl.exceptions.InvalidOperationError:
                raise ValueError(f"{column}: not every cell is a number; is it categorical?") from None
            finite = values[np.isfinite(values)]
            mean = float(finite.mean()) if len(finite) else 0.0
            deviation = float(finite.std(ddof=1)) if len(finite) > 1 else 0.0
            moments[column] = (mean, deviation or 1.0)
        words = {}
        for column in categorical:
            cells = table[column].cast(pl.String).fill_null("").value_counts()
            counts: Counter[str] = Counter()
            for cell, times in cells.iter_rows():
                counts.update(dict.fromkeys(_words(cell), times))
            words[column] = sorted(word for word, times in counts.items() if times >= min_count)
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
                told = _words(columns.get(name) or "")
                row[place : place + len(words)] = [word in told for word in words]
                place += len(words)
        return found


def _words(cell: str) -> set[str]:
    return set(cell.split())


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
    """Memory-mapped when it was loaded, as the vectors."""
    vectors_ID: Floats
    """Of length 1, or 0 where an item has none; D may be 0."""
    users: Encoding
    recent: int
    """Items of a history that nearness is told from."""
    folder: Path
    """Where it was loaded from or is saved."""

    @classmethod
    def load(cls, folder: Path) -> Features:
        described = json.loads((folder / ENCODING).read_text(encoding="utf-8"))
        items, vectors = (
            np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (ITEM_FEATURES, ITEM_VECTORS)
        )
        return cls(items, vectors, Encoding(**described["users"]), described["recent"], folder)

    def save(self, folder: Path) -> None:
        for name in FILES:
            shutil.copyfile(self.folder / name, folder / name)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """How many of `pairs`' columns tell of an item's place in its list, of the item, and of the user."""
        return OPINIONS, self.items_IF.shape[1] + self.vectors_ID.shape[1], len(self.users.names)

    @property
    def attributes(self) -> frozenset[str]:
        """Columns of users that are read."""
        return frozenset((*self.users.numeric, *self.users.categorical))

    def pairs(
        self, scores: FirstStage, history: NDArray[np.integer[Any]], attributes: Attributes, items: IntArray
    ) -> Floats:
        """A user beside each of these items: (P, F), in the order of `sizes`.

        The first three are how many standard deviations the first stage's score is above its list's mean, the score's
        place in the list (1 first, 0 last), and how many deviations the item is nearer to the history than the list's
        are on average. None knows the scale of a score, which is the first stage's own.

        Args:
            scores: what the first stage says of all that it found, these items among them; another is its last.

        """
        said = dict.fromkeys(items.tolist(), min(scores.values(), default=0.0)) | dict(scores)
        listed = np.fromiter(said, dtype=np.int64, count=len(said))
        scores_C = np.fromiter(said.values(), dtype=np.float64, count=len(said))
        latest_RD = self.vectors_ID[history[-self.recent :]]
        near_C = self.vectors_ID[listed] @ latest_RD.sum(axis=0)
        places_C = np.searchsorted(np.sort(scores_C), scores_C) / max(1, len(said) - 1)
        opinions_C3 = np.stack([_standardised(scores_C), places_C, _standardised(near_C)], axis=1).astype(np.float32)
        row = {item: place for place, item in enumerate(said)}
        opinions_P3 = opinions_C3[[row[item] for item in items.tolist()]]
        user_G = self.users.of([attributes])[0]
        user_PG = np.broadcast_to(user_G, (len(items), len(user_G)))
        # Their numbers are as large as those of the others on average.
        vectors_PD = self.vectors_ID[items] * np.float32(self.vectors_ID.shape[1] ** 0.5)
        return np.concatenate([opinions_P3, self.items_IF[items], vectors_PD, user_PG], axis=1)

    def of(self, asked: Asked, row: int, items: IntArray) -> Floats:
        """`pairs` of one of these users. Raises ValueError if nothing is said of a first stage."""
        if asked.first_stage is None:
            raise ValueError("the first stage's scores are not there")
        return self.pairs(asked.first_stage[row], asked.histories[row], asked.attributes_of(row), items)


def _standardised(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 1e-12 else np.zeros_like(values)


def write_features(
    folder: Path, names: Sequence[str], items_IF: Floats, vectors_ID: Floats, users: Encoding, recent: int
) -> None:
    """All of `FILES`. Args: names: of the columns of `items_IF`; vectors_ID: of any length."""
    lengths_I1 = np.linalg.norm(vectors_ID, axis=1, keepdims=True)
    write_json(folder / ENCODING, {"items": list(names), "users": asdict(users), "recent": recent})
    np.save(folder / ITEM_FEATURES, items_IF, allow_pickle=False)
    np.save(folder / ITEM_VECTORS, (vectors_ID / np.maximum(lengths_I1, 1e-12)).astype(np.float32), allow_pickle=False)
