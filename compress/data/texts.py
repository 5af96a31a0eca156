"""What text models read: every item's texts as tokens, and how a user's text is put together from them.

A template is rendered and tokenised once per item. A user's text is made of pieces that are tokens already: WordPiece
never looks across a space or a punctuation mark, so joined pieces are the tokens of the joined text.

I: items, C: tokens of a text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from compress.artifact import write_json
from compress.data.histories import Asked, Attributes
from compress.data.interactions import IntArray
from compress.errors import RecPressError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
LAYOUT = "texts.json"
RENDERED = "texts.parquet"
ARRAYS = ("item_tokens.npy", "item_offsets.npy", "history_tokens.npy", "history_offsets.npy")
FILES = (TOKENIZER, LAYOUT, RENDERED, *ARRAYS)
"""Everything that `save` writes."""

Tokens = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Layout:
    """How texts become a model's input."""

    last: int
    """History items in a user's text, at most; the latest first."""
    separator: str
    """Between two of them, as text."""
    separator_tokens: tuple[int, ...]
    cls: int
    sep: int
    pad: int
    vocab_size: int
    user: str = ""
    """Template over attributes of a user, told before the history; empty: they are not read."""

    @property
    def attributes(self) -> frozenset[str]:
        """Columns that `user` names."""
        return frozenset(name for _, name, _, _ in Formatter().parse(self.user) if name)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Token lists of many texts, end to end; memory-mapped when it was loaded."""

    tokens: Tokens
    offsets: IntArray
    """Where each text begins, and the end; (I + 1)."""

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | Tokens]) -> Ragged:
        sizes = [len(tokens) for tokens in lists]
        together = np.fromiter((token for tokens in lists for token in tokens), dtype=np.int32, count=sum(sizes))
        small = together.astype(np.uint16) if together.max(initial=0) < 2**16 else together
        return cls(small, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))

    def __getitem__(self, item: int) -> Tokens:
        return self.tokens[self.offsets[item] : self.offsets[item + 1]]

    @cached_property
    def lengths(self) -> IntArray:
        """Tokens of each text."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def longest(self) -> int:
        return int(self.lengths.max(initial=0))

    def padded(self, items: IntArray, end: int, pad: int) -> NDArray[np.int64]:
        """The texts of these items, each followed by `end`, padded to the longest: (items, C)."""
        starts = self.offsets[items]
        lengths = self.offsets[items + 1] - starts
        columns = np.arange(lengths.max(initial=0) + 1)
        there = columns < lengths[:, None]
        found = np.full(there.shape, pad, dtype=np.int64)
        found[there] = self.tokens[(starts[:, None] + columns)[there]]
        found[np.arange(len(items)), lengths] = end
        return found


@dataclass(frozen=True, eq=False)
class Texts:
    """Of a catalogue."""

    layout: Layout
    items: Ragged
    """Each item as a candidate."""
    history: Ragged
    """Each item as a part of a user's history."""
    folder: Path
    """Where it was loaded from or is saved: the tokenizer and the texts themselves are there."""

    @classmethod
    def load(cls, folder: Path) -> Texts:
        described = json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
        described["separator_tokens"] = tuple(described["separator_tokens"])
        arrays = [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in ARRAYS]
        texts = cls(Layout(**described), Ragged(*arrays[:2]), Ragged(*arrays[2:]), folder)
        if texts.layout.user:  # requests will need it: what is missing is said now
            _ = texts.tokenizer
        return texts

    def save(self, folder: Path) -> None:
        """All of it, the tokenizer and the texts included."""
        for name in FILES:
            shutil.copyfile(self.folder / name, folder / name)

    def room(self, max_length: int) -> int:
        """Tokens that a user's text may take of a pair's: whichever item is scored beside it, it is the same text."""
        return max_length - self.items.longest - 1

    def longest(self, told: Sequence[Sequence[int]]) -> int:
        """Tokens that no pair exceeds. Args: told: attributes of all users, as tokens."""
        parts = self.layout.last * (self.history.longest + len(self.layout.separator_tokens))
        return 1 + max(map(len, told), default=0) + parts + 1 + self.items.longest + 1

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.folder / TOKENIZER)

    def attributes(self, users: Sequence[Attributes]) -> list[Sequence[int]]:
        """What is told of each of these users besides the history, as tokens."""
        if not self.layout.user:
            return [()] * len(users)
        told = [render(self.layout.user, attributes) for attributes in users]
        return [found.ids for found in self.tokenizer.encode_batch(told, add_special_tokens=False)]

    def user(self, history: IntArray, room: int, attributes: Sequence[int] | Tokens = ()) -> NDArray[np.int64]:
        """[CLS], attributes, the latest items of a history, latest first, [SEP]; cut to `room` tokens, at least 2: (C).

        Args:
            attributes: as tokens.

        """
        layout = self.layout
        pieces: list[Sequence[int] | Tokens] = [(layout.cls,), attributes] if len(attributes) else [(layout.cls,)]
        for item in history[: -layout.last - 1 : -1]:
            if len(pieces) > 1:
                pieces.append(layout.separator_tokens)
            pieces.append(self.history[item])
        return cut(np.concatenate([*pieces, (layout.sep,)]).astype(np.int64), room)

    def users(self, asked: Asked, max_length: int) -> list[NDArray[np.int64]]:
        """The text of each user, beside which any item's fits into `max_length` tokens."""
        told = self.attributes(asked.attributes or [{}] * len(asked))
        pairs = zip(asked.histories, told, strict=True)
        return [self.user(history, self.room(max_length), attributes) for history, attributes in pairs]

    def user_text(self, history: IntArray, rendered: Sequence[str], attributes: Attributes | None = None) -> str:
        """What `user` says, as text. `rendered`: what `rendered_texts` says of histories."""
        told = render(self.layout.user, attributes or {})
        latest = history[: -self.layout.last - 1 : -1]
        return self.layout.separator.join([*filter(None, [told]), *(rendered[item] for item in latest)])

    def alone(self, items: IntArray) -> NDArray[np.int64]:
        """[CLS], each item's text and [SEP], padded to the longest; (items, C)."""
        return np.pad(self.candidates(items), ((0, 0), (1, 0)), constant_values=self.layout.cls)

    def candidates(self, items: IntArray) -> NDArray[np.int64]:
        """Each candidate's text and [SEP], padded to the longest; (items, C)."""
        return self.items.padded(items, self.layout.sep, self.layout.pad)


def render(template: str, columns: Attributes) -> str:
    """A template filled in; what is missing leaves its place empty."""
    parts = (words + (columns.get(name) or "" if name else "") for words, name, _, _ in Formatter().parse(template))
    return "".join(parts).strip()


def cut(tokens: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """At most `room` tokens, the last of which stays."""
    return np.append(tokens[: room - 1], tokens[-1:]) if len(tokens) > room else tokens


def padded(texts: Sequence[NDArray[np.int64]], pad: int) -> NDArray[np.int64]:
    """Token lists as rows, padded at the end: (texts, longest)."""
    rows = np.full((len(texts), max(map(len, texts), default=0)), pad, dtype=np.int64)
    for row, tokens in zip(rows, texts, strict=True):
        row[: len(tokens)] = tokens
    return rows


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer to which "[SEP]" in a text is five characters. Raises: RecPressError if its package is not here."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise RecPressError("tokenizers is missing, which users' attributes need: pip install tokenizers") from None

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def rendered_texts(folder: Path) -> tuple[list[str], list[str]]:
    """The texts that were tokenised, of every item as a candidate and in a history."""
    table = pl.read_parquet(folder / RENDERED, glob=False)
    return table["item"].to_list(), table["history"].to_list()


def write_texts(folder: Path, layout: Layout, items: Ragged, history: Ragged, rendered: pl.DataFrame) -> None:
    """All of `FILES` but the tokenizer."""
    rendered.select("item", "history").write_parquet(folder / RENDERED)
    write_arrays(folder, layout, items, history)


def write_arrays(folder: Path, layout: Layout, items: Ragged, history: Ragged) -> None:
    """The layout and all tokens."""
    write_json(folder / LAYOUT, asdict(layout))
    for name, array in zip(ARRAYS, (items.tokens, items.offsets, history.tokens, history.offsets), strict=True):
        np.save(folder / name, array, allow_pickle=False)
