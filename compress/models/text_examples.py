"""Training examples of models over texts, the same for all of them, so that one can teach another.

B: examples, C: candidates of one, U: tokens of a user, T: of an item, I: items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig

from compress.data.histories import Asked
from compress.data.interactions import IntArray, Interactions
from compress.data.texts import Texts, padded
from compress.errors import RecipeError
from compress.models.family import Examples

ATTEMPTS = 8
"""Draws after which negatives are no longer sought at random."""


class Example(NamedTuple):
    """What a user said to some items, or would have said."""

    user: int
    history: IntArray
    items: IntArray
    wanted: NDArray[np.float32]
    """Of each item, 1 or 0. Where the data has no labels the first alone is wanted, and the others were drawn."""


class TextExamples(Examples):
    """An interaction in training, given what came before.

    Where the data has labels it is an item and its label. Else an item of a history is told from items drawn beside it,
    none of which the user has in training.
    """

    def __init__(self, config: BertConfig, texts: Texts, interactions: Interactions, seed: int) -> None:
        self.texts = texts
        self.interactions = interactions
        self.seed = seed
        self.negatives: int = config.recommender["negatives"]
        self.drawn: str = config.recommender["drawn"]
        self.room = texts.room(config.max_position_embeddings)
        self.labels = interactions.labels
        if self.labels:
            self.user_of, self.place_of = self.labels.users, self.labels.places
        else:
            counts_U = np.maximum(0, interactions.before_rehearsals.train_ends - interactions.offsets[:-1] - 1)
            self.user_of = np.repeat(np.arange(interactions.user_count), counts_U)
            self.place_of = 1 + np.arange(len(self.user_of)) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
        # Tokenised once: of each user, what is told besides the history.
        self.attributes = texts.attributes(interactions.attributes or [{}] * interactions.user_count)
        self.pools = interactions.retrieved if self.drawn == "retrieved" else None
        if self.pools is None and self.drawn == "retrieved":
            raise RecipeError("drawn: retrieved: the recipe names no earlier retrieve stage as its `candidates`")
        popularity_I = interactions.popularity()
        weights_I = popularity_I if self.drawn == "popularity" else np.ones_like(popularity_I)
        drawn_I = weights_I / max(1, weights_I.sum())
        self.cumulated_I = np.cumsum(drawn_I)
        labels_I = popularity_I / max(1, popularity_I.sum())
        self.shares_I = ((labels_I + self.negatives * drawn_I) / (1 + self.negatives)).astype(np.float32)

    @property
    def shaped_by(self) -> dict[str, Any]:
        return {"room": self.room, "negatives": self.negatives, "drawn": self.drawn}

    def __len__(self) -> int:
        return len(self.user_of)

    def __getitem__(self, index: int) -> Example:
        user, place = int(self.user_of[index]), int(self.place_of[index])
        train = self.interactions.train(user)
        if self.labels:
            wanted = self.labels.wanted[index : index + 1].astype(np.float32)
            return Example(user, train[:place], self.labels.items[index : index + 1], wanted)
        random = np.random.default_rng((self.seed, self.epoch, index))
        found = np.empty(0, dtype=np.int64)
        if self.pools is not None:  # half of them hard: with nothing else a model forgets what is not even near
            found = random.permutation(self.pools[user])[: -(-self.negatives // 2)].astype(np.int64)
        negatives = self._negatives(train, random, found)
        items = np.concatenate([train[place : place + 1], negatives])
        return Example(user, train[:place], items, (np.arange(len(items)) == 0).astype(np.float32))

    def asked(self, examples: Sequence[Example]) -> Asked:
        """Their users, nothing excluded."""
        known = self.interactions.attributes
        nothing = np.empty(0, dtype=np.int64)
        return Asked(
            [example.history for example in examples],
            [nothing] * len(examples),
            known and [known[example.user] for example in examples],
        )

    def _negatives(self, seen: IntArray, random: np.random.Generator, found: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those found and more, each once and none of them seen, as long as the catalogue has any."""
        wanted = self.negatives
        for _ in range(ATTEMPTS):
            if len(found) >= wanted:
                return found[:wanted]
            drawn = np.searchsorted(self.cumulated_I, random.random(2 * wanted), side="right")
            fresh = drawn[(drawn < len(self.cumulated_I)) & ~np.isin(drawn, seen)]
            found = np.concatenate([found, fresh])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
        rest = random.permutation(np.setdiff1d(np.arange(len(self.cumulated_I)), [*seen, *found]))
        unseen = np.concatenate([found, rest])[:wanted]
        return np.resize(unseen if len(unseen) else seen, wanted)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Tokens of users (B, U) and of candidates (B, C, T), padded at the end; of candidates ids and more, (B, C).

        An item's share is how often an item of a batch is that one.
        """
        users = [self.texts.user(example.history, self.room, self.attributes[example.user]) for example in examples]
        items_BC = np.stack([example.items for example in examples]).astype(np.int64)
        return {
            "user": torch.from_numpy(padded(users, self.texts.layout.pad)),
            "items": torch.from_numpy(self.texts.candidates(items_BC.ravel()).reshape(*items_BC.shape, -1)),
            "item_ids": torch.from_numpy(items_BC),
            "wanted": torch.from_numpy(np.stack([example.wanted for example in examples])),
            "shares": torch.from_numpy(self.shares_I[items_BC]),
        }


class BatchScores:
    """A `Scorer` of what a batch holds: its states are the scores."""

    def __call__(self, states_NH: Tensor, items_K: Tensor | None) -> Tensor:
        if items_K is not None:
            raise ValueError("a model over texts scores the items of a batch and no others in training")
        return states_NH

    def pairs(self, states_NH: Tensor, items_N: Tensor) -> Tensor:
        return states_NH.gather(1, items_N[:, None]).squeeze(1)
