"""A graph that reads a user's text and ranks the catalogue, whose vectors it holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compress.data.histories import Histories
from compress.data.texts import FILES, TOKENIZER, Texts, cut, padded, read_tokenizer, rendered_texts
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
        self.room = self.texts.room(description.max_length)

    def read(self, histories: Histories) -> Arrays:
        return {"user": padded(self._users(histories), self.pad)}

    def _users(self, histories: Histories) -> list[NDArray[np.int64]]:
        return [self.texts.user(history, self.room) for history in histories]


class PlainTowers(Towers):
    """As sentence-transformers is asked: every request tokenises its text."""

    def __init__(self, folder: Path, description: Bundle) -> None:
        super().__init__(folder, description)
        _, self.history_texts = rendered_texts(folder)
        self.tokenizer = read_tokenizer(folder / TOKENIZER)

    def _users(self, histories: Histories) -> list[NDArray[np.int64]]:
        texts = [self.texts.user_text(history, self.history_texts) for history in histories]
        return [cut(np.array(found.ids), self.room) for found in self.tokenizer.encode_batch(texts)]
