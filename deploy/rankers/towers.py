"""A graph that reads a user's text and ranks the catalogue, whose vectors it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress.data.histories import Asked, left_padded
from compress.data.texts import FILES, Texts, cut, padded, rendered_texts
from deploy.rankers.buckets import Fill
from deploy.rankers.catalogue import Catalogue
from deploy.runtimes import Arrays, Ids, Runtime, Scores

if TYPE_CHECKING:
    from deploy.bundle import Bundle


PADDING = 0.05
"""Of the positions of a call, at most."""


def of_like_length(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows in groups, the longest first, so that little of a group is padding."""
    order = np.argsort(-lengths, kind="stable")
    groups, start, filled = [], 0, 0
    for place, row in enumerate(order):
        filled += int(lengths[row])
        if filled < (1 - PADDING) * (place + 1 - start) * lengths[order[start]]:
            groups.append(order[start:place])
            start, filled = place, int(lengths[row])
    return [*groups, order[start:]]


def all_at_once(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows in one group."""
    return [np.arange(len(lengths))]


class Towers(Catalogue):
    """Users' texts are put together from pieces that are tokens already; texts of like length make a call."""

    files: tuple[str, ...] = FILES
    grouped = staticmethod(of_like_length)

    def __init__(self, folder: Path, description: Bundle) -> None:
        super().__init__(folder, description)
        self.texts = Texts.load(folder)
        self.pad = self.texts.layout.pad
        self.attributes = self.texts.layout.attributes

    def calls(self, asked: Asked) -> list[Arrays]:
        return [arrays for _, arrays in self._calls(asked)]

    def rank(self, runtime: Runtime, asked: Asked) -> tuple[Ids, Scores]:
        answers = [(rows, *runtime(arrays)) for rows, arrays in self._calls(asked)]
        places = np.argsort(np.concatenate([rows for rows, *_ in answers]))
        items_BK, scores_BK = (np.concatenate([answer[part] for answer in answers])[places] for part in (1, 2))
        return items_BK, scores_BK

    def _calls(self, asked: Asked) -> list[tuple[NDArray[np.int64], Arrays]]:
        """Which users, and the graph's inputs for them."""
        users, found = self._users(asked), []
        for rows in self.grouped(np.array([len(user) for user in users])):
            excluded = [asked.excluded[row] for row in rows]
            arrays: Arrays = {
                "user": padded([users[row] for row in rows], self.pad),
                "exclude": left_padded(excluded, max(map(len, excluded)), self.description.pad_id),
            }
            found.append((rows, arrays))
        return found

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        users = (2, max(2, self.texts.room(self.description.max_length)))
        return {"user_tokens": users, "excluded": (0, self.description.catalogue_size)}

    @property
    def fills(self) -> Mapping[str, Fill]:
        return {"user": Fill("right", self.limits["user_tokens"][1], self.pad), "exclude": super().fills["exclude"]}

    def _users(self, asked: Asked) -> list[NDArray[np.int64]]:
        return self.texts.users(asked, self.description.max_length)


class PlainTowers(Towers):
    """As sentence-transformers is asked: every request tokenises its text, and all are one batch."""

    grouped = staticmethod(all_at_once)

    def __init__(self, folder: Path, description: Bundle) -> None:
        super().__init__(folder, description)
        _, self.history_texts = rendered_texts(folder)

    def _users(self, asked: Asked) -> list[NDArray[np.int64]]:
        texts = [
            self.texts.user_text(asked.histories[row], self.history_texts, asked.attributes_of(row))
            for row in range(len(asked))
        ]
        room = self.texts.room(self.description.max_length)
        return [cut(np.array(found.ids), room) for found in self.texts.tokenizer.encode_batch(texts)]
