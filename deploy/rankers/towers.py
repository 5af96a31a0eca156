"""A graph that reads a user's text and ranks the catalogue, whose vectors it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress.data.histories import Asked
from compress.data.texts import FILES, Texts, cut, padded, rendered_texts
from deploy.rankers.catalogue import Catalogue
from deploy.runtimes import Arrays

if TYPE_CHECKING:
    from deploy.bundle import Bundle


class Towers(Catalogue):
    """Users' texts are put together from pieces that are tokens already."""

    files: tuple[str, ...] = FILES

    def __init__(self, folder: Path, description: Bundle) -> None:
        super().__init__(folder, description)
        self.texts = Texts.load(folder)
        self.pad = self.texts.layout.pad
        self.attributes = self.texts.layout.attributes

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        users = (2, max(2, self.texts.room(self.description.max_length)))
        return {"user_tokens": users, "excluded": (0, self.description.catalogue_size)}

    def read(self, asked: Asked) -> Arrays:
        return {"user": padded(self._users(asked), self.pad)}

    def _users(self, asked: Asked) -> list[NDArray[np.int64]]:
        return self.texts.users(asked, self.description.max_length)


class PlainTowers(Towers):
    """As sentence-transformers is asked: every request tokenises its text."""

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
