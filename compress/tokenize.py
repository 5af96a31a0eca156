"""Renders and tokenises the texts of the catalogue, once for all models over them.

`python -m compress.tokenize recipe.yaml`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.texts import TokenizeSection
from compress.stage import Workspace

if TYPE_CHECKING:
    import polars as pl
    from tokenizers import Tokenizer

SHARED = 10
"""Users of whom a word is told before a vocabulary learns it."""

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def run(section: TokenizeSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes the tokenizer, the texts and their tokens (`data.texts.FILES`). Returns how long they are.

    Raises: DataError if a template names a column that the items lack, or the tokenizer is no BERT tokenizer.
    """
    import numpy as np
    import polars as pl

    from compress.data.interactions import ITEMS
    from compress.data.texts import TOKENIZER, Layout, Ragged, write_texts
    from compress.errors import DataError

    items = pl.read_parquet(inputs["data"].path(ITEMS), glob=False).sort("item")
    rendered = items.select(
        item=_rendered(section.item, items, "item"),
        history=_rendered(section.history.item or section.item, items, "history.item"),
    )
    told = _told(section.user, inputs["data"].folder)
    tokenizer = _tokenizer(
        section, [*rendered["item"], *rendered["history"], section.history.separator, *_common(told)]
    )
    tokenizer.save(str(workspace.folder / TOKENIZER))

    def tokens(texts: list[str]) -> list[list[int]]:
        return [encoded.ids for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]

    limit = section.max_item_tokens
    lengths = [len(ids) for ids in tokens(rendered["item"].to_list())]
    rendered = rendered.select(
        pl.Series(name, _cut(rendered[name].to_list(), tokenizer, limit)) for name in rendered.columns
    )
    candidates, parts = (tokens(rendered[name].to_list()) for name in ("item", "history"))
    if not any(candidates) or not any(parts):
        raise DataError("data: no item has a text (data.columns.text): there is nothing to tokenize")
    layout = Layout(
        last=section.history.last,
        separator=section.history.separator,
        separator_tokens=tuple(tokens([section.history.separator])[0]),
        cls=_id(tokenizer, "[CLS]"),
        sep=_id(tokenizer, "[SEP]"),
        pad=_id(tokenizer, "[PAD]"),
        vocab_size=tokenizer.get_vocab_size(),
        user=section.user or "",
    )
    write_texts(workspace.folder, layout, Ragged.of(candidates), Ragged.of(parts), rendered)
    unknown = _id(tokenizer, "[UNK]")
    return {
        "vocab_size": layout.vocab_size,
        "tokens_per_item": round(float(np.mean([len(ids) for ids in candidates])), 2),
        "longest_item": max(len(ids) for ids in candidates),
        "cut_items": sum(length > limit for length in lengths),
        "unknown_share": round(float(np.mean([token == unknown for ids in candidates for token in ids])), 6),
    }


def _cut(texts: list[str], tokenizer: Tokenizer, limit: int) -> list[str]:
    """The texts as far as `limit` tokens of each reach, so that whoever tokenises them gets no more."""
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [
        text[: found.offsets[limit - 1][1]] if len(found.ids) > limit else text
        for text, found in zip(texts, encoded, strict=True)
    ]


def _common(told: Sequence[str]) -> list[str]:
    """What a vocabulary may learn of users, who are in no bundle otherwise: letters, and words that many share."""
    users = Counter(word for text in told for word in set(text.split()))
    shared = sorted(word for word, count in users.items() if count >= SHARED)
    return [*shared, " ".join(sorted(set("".join(told))))]


def _told(template: str | None, folder: Path) -> list[str]:
    """What is told of each user besides the history."""
    import polars as pl

    from compress.data.interactions import ATTRIBUTES
    from compress.errors import DataError

    if template is None:
        return []
    if not (folder / ATTRIBUTES).exists():
        raise DataError(f"user: {template!r}: nothing is known of users; data.users names a table of them")
    known = pl.read_parquet(folder / ATTRIBUTES, glob=False).drop("user")
    return known.select(_rendered(template, known, "user")).to_series().to_list()


def _rendered(template: str, table: pl.DataFrame, key: str) -> pl.Expr:
    """A column of texts; a missing value leaves its place empty."""
    import polars as pl

    from compress.errors import DataError

    parts: list[pl.Expr] = []
    for words, name, _, _ in Formatter().parse(template):
        parts.append(pl.lit(words))
        if name is None:
            continue
        if name not in table.columns:
            known = ", ".join(column for column in table.columns if column not in ("item", "popularity"))
            raise DataError(f"{key}: {template!r}: there is no column {name!r}; there are {known}")
        parts.append(pl.col(name).cast(pl.String).fill_null(""))
    return pl.concat_str(parts)


def _tokenizer(section: TokenizeSection, texts: list[str]) -> Tokenizer:
    from compress.data.pretrained import locate
    from compress.data.texts import TOKENIZER, read_tokenizer
    from compress.errors import DataError
    from compress.recipe.texts import TrainedTokenizer

    if isinstance(section.tokenizer, TrainedTokenizer):
        return _train(section.tokenizer.vocab_size, texts)
    path = locate(section.tokenizer) / TOKENIZER
    try:
        tokenizer = read_tokenizer(path)
    except Exception as error:  # tokenizers raises nothing else
        raise DataError(f"{path}: no tokenizer: {str(error)[:160]}") from None
    lacking = [token for token in SPECIAL if tokenizer.token_to_id(token) is None]
    kind = type(tokenizer.model).__name__
    if lacking or kind != "WordPiece":
        raise DataError(f"{path}: no BERT tokenizer: {kind}{', without ' if lacking else ''}{', '.join(lacking)}")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, "it has all of SPECIAL"
    return found


def _train(vocab_size: int, texts: list[str]) -> Tokenizer:
    """A lowercase WordPiece vocabulary, as BERT's is made."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import BertProcessing
    from tokenizers.trainers import WordPieceTrainer

    learned = Tokenizer(WordPiece(unk_token="[UNK]"))
    learned.normalizer, learned.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    # The trainer numbers letters in the order of a hash and breaks ties by those numbers: they are given to it.
    pieces = {
        word
        for text in texts
        for word, _ in learned.pre_tokenizer.pre_tokenize_str(BertNormalizer().normalize_str(text))
    }
    letters = sorted({word[0] for word in pieces}) + sorted({f"##{letter}" for word in pieces for letter in word[1:]})
    trainer = WordPieceTrainer(vocab_size=vocab_size, special_tokens=SPECIAL + letters, show_progress=False)
    learned.train_from_iterator(texts, trainer)
    words = sorted(learned.get_vocab().keys() - set(SPECIAL))
    tokenizer = Tokenizer(WordPiece({word: place for place, word in enumerate([*SPECIAL, *words])}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.encode_special_tokens = True
    tokenizer.post_processor = BertProcessing(("[SEP]", _id(tokenizer, "[SEP]")), ("[CLS]", _id(tokenizer, "[CLS]")))
    return tokenizer


if __name__ == "__main__":
    raise SystemExit(main("tokenize"))
