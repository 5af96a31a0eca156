"""A WordPiece vocabulary without the tokens that nothing uses.

A text all of whose tokens stay is read as before: the longest match in the whole vocabulary is still there, and a
smaller vocabulary has no longer one. Any other text falls back to shorter pieces, down to single ASCII characters, and
where there are none to [UNK].
"""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.data.texts import RENDERED, TOKENIZER, Ragged, Texts, write_arrays
from compress.errors import DataError

CHARACTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits + string.punctuation
"""What any text may fall back to, where the vocabulary has it: at a word's start and inside."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def used(texts: Texts, others: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Tokens of the catalogue, of `others`, of the layout, and the fallback, in rising order."""
    layout = texts.layout
    vocabulary = texts.tokenizer.get_vocab(with_added_tokens=True)
    pieces = [*CHARACTERS, *(f"##{character}" for character in CHARACTERS), *SPECIAL]
    always = [vocabulary[piece] for piece in pieces if piece in vocabulary]
    always += texts.tokenizer.get_added_tokens_decoder()
    always += [layout.cls, layout.sep, layout.pad, *layout.separator_tokens]
    found = [texts.items.tokens, texts.history.tokens, np.array([token for tokens in others for token in tokens])]
    return np.unique(np.concatenate([np.array(always), *found]).astype(np.int64))


def trimmed(texts: Texts, kept_V: NDArray[np.int64], folder: Path) -> Texts:
    """The same texts in a vocabulary of these tokens, numbered anew in their order; their files are written there.

    Raises: DataError if the tokenizer is no WordPiece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = {int(token): place for place, token in enumerate(kept_V)}
    described = json.loads(texts.tokenizer.to_str())
    if described["model"].get("type") != "WordPiece":
        raise DataError(f"vocabulary: a {described['model'].get('type')} tokenizer cannot be cut; WordPiece can")
    vocabulary = described["model"]["vocab"]
    described["model"]["vocab"] = {
        piece: new[token] for piece, token in sorted(vocabulary.items(), key=lambda each: each[1]) if token in new
    }
    described["added_tokens"] = [
        {**each, "id": new[each["id"]]} for each in described["added_tokens"] if each["id"] in new
    ]
    processor = described.get("post_processor") or {}
    for name in ("cls", "sep"):  # of a BertProcessing
        if name in processor:
            processor[name][1] = new[processor[name][1]]
    for special in (processor.get("special_tokens") or {}).values():  # of a TemplateProcessing
        special["ids"] = [new[token] for token in special["ids"]]
    described |= {"padding": None, "truncation": None}
    (folder / TOKENIZER).write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    layout = texts.layout
    renumbered = replace(
        layout,
        cls=new[layout.cls],
        sep=new[layout.sep],
        pad=new[layout.pad],
        separator_tokens=tuple(new[token] for token in layout.separator_tokens),
        vocab_size=len(kept_V),
    )
    places_V = np.full(layout.vocab_size, -1, dtype=np.int64)
    places_V[kept_V] = np.arange(len(kept_V))
    items, history = (
        Ragged(places_V[each.tokens].astype(np.uint16 if len(kept_V) < 2**16 else np.int32), each.offsets)
        for each in (texts.items, texts.history)
    )
    shutil.copyfile(texts.folder / RENDERED, folder / RENDERED)
    write_arrays(folder, renumbered, items, history)
    return Texts(renumbered, items, history, folder)
