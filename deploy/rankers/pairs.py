"""A graph that scores one user with some items: candidates sorted by length, a call for each part of them.

The user's text is put together once from pieces that are tokens already, the items' tokens are looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.data import features, texts
from compress.data.histories import MASKED, Asked
from compress.data.interactions import IntArray
from compress.data.texts import Texts, cut, rendered_texts
from deploy.rankers.buckets import Fill
from deploy.runtimes import Arrays, Ids, Runtime, Scores

if TYPE_CHECKING:
    from deploy.bundle import Bundle

PART = 25
"""Candidates of a call. Fewer pad less, more are fewer calls: 100 candidates took the same time in 2 to 8 parts."""


class Pairs:
    """A user after the other."""

    files: tuple[str, ...] = texts.FILES
    reads_first_stage = False

    def __init__(self, folder: Path, description: Bundle) -> None:
        self.description = description
        self.texts = Texts.load(folder)
        self.pad = self.texts.layout.pad
        self.attributes = self.texts.layout.attributes

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        users = (2, max(2, self.texts.room(self.description.max_length)))
        return {"user_tokens": users, "item_tokens": (1, self.texts.items.longest + 1)}

    @property
    def fills(self) -> Mapping[str, Fill]:
        # A user's tokens are real, all of them.
        return {"items": Fill("right", self.limits["item_tokens"][1], self.pad)}

    def calls(self, asked: Asked) -> list[Arrays]:
        return [arrays for row in range(len(asked)) for _, arrays in self.parts(asked, row)]

    def rank(self, runtime: Runtime, asked: Asked) -> tuple[Ids, Scores]:
        top_k = self.description.top_k
        items_BK = np.zeros((len(asked), top_k), dtype=np.int64)
        scores_BK = np.full((len(asked), top_k), MASKED, dtype=np.float32)
        for row in range(len(asked)):
            parts = self.parts(asked, row)
            if parts:
                items = np.concatenate([part for part, _ in parts])
                scores = np.concatenate([runtime(arrays)[0] for _, arrays in parts])
                best = np.lexsort((items, -scores))[:top_k]
                items_BK[row, : len(best)], scores_BK[row, : len(best)] = items[best], scores[best]
        return items_BK, scores_BK

    def parts(self, asked: Asked, row: int) -> list[tuple[IntArray, Arrays]]:
        """A user's candidates in parts, and what the graph reads of each."""
        (user,) = self.texts.users(asked.of([row]), self.description.max_length)
        return [
            (part, {"user": user, "items": self.texts.candidates(part), **self.beside(asked, row, part)})
            for part in self._allowed(asked.excluded[row])
        ]

    def beside(self, asked: Asked, row: int, items: IntArray) -> Arrays:
        """What the graph reads of a user's candidates besides their tokens."""
        return {}

    def _allowed(self, barred: IntArray) -> list[IntArray]:
        """What is not barred, sorted by length, cut into parts of nearly equal size."""
        allowed = np.ones(self.description.catalogue_size, dtype=bool)
        allowed[barred] = False
        items = np.flatnonzero(allowed)
        ordered = items[np.argsort(self.texts.items.lengths[items], kind="stable")]
        return np.array_split(ordered, -(-len(ordered) // PART)) if len(ordered) else []


class PlainPairs(Pairs):
    """As sentence-transformers' CrossEncoder.predict is asked: every request tokenises its pairs, all in one call."""

    def __init__(self, folder: Path, description: Bundle) -> None:
        super().__init__(folder, description)
        self.item_texts, self.history_texts = rendered_texts(folder)

    def parts(self, asked: Asked, row: int) -> list[tuple[IntArray, Arrays]]:
        items, pairs = self.told(asked, row)
        if not pairs:
            return []
        encoded = self.texts.tokenizer.encode_batch(pairs)
        length = encoded[0].type_ids.index(1)
        user = cut(np.array(encoded[0].ids[:length]), self.texts.room(self.description.max_length))
        tokens = [pair.ids[length:] for pair in encoded]
        longest = max(map(len, tokens))
        padded = np.array([ids + [self.pad] * (longest - len(ids)) for ids in tokens])
        return [(items, {"user": user, "items": padded, **self.beside(asked, row, items)})]

    def told(self, asked: Asked, row: int) -> tuple[IntArray, list[tuple[str, str]]]:
        """A user's candidates, and the texts that each is asked about with."""
        items = np.concatenate([np.empty(0, dtype=np.int64), *self._allowed(asked.excluded[row])])
        user_text = self.texts.user_text(asked.histories[row], self.history_texts, asked.attributes_of(row))
        return items, [(user_text, self.item_texts[item]) for item in items]


class HybridPairs(Pairs):
    """Pairs with features beside them."""

    files: tuple[str, ...] = (*texts.FILES, *features.FILES)
    reads_first_stage = True

    def __init__(self, folder: Path, description: Bundle) -> None:
        super().__init__(folder, description)
        self.features = features.Features.load(folder)
        self.attributes = self.texts.layout.attributes | self.features.attributes

    def beside(self, asked: Asked, row: int, items: IntArray) -> Arrays:
        return {"features": self.features.of(asked, row, items)}


class PlainHybridPairs(HybridPairs, PlainPairs):
    """The same, asked as `PlainPairs` are."""
