"""`kind: features`: what is known of items and users besides their texts, as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compress.recipe.base import Distinct, Section, StageSection

Columns = Annotated[tuple[str, ...], Distinct]


class DescribedBy(Section):
    """Columns, and how each is read."""

    numeric: Columns = Field((), description="standardised; what is missing is the mean")
    categorical: Columns = Field((), description="a 0 or 1 per word; a cell may hold several, with spaces between")

    @model_validator(mode="after")
    def _read_in_one_way(self) -> DescribedBy:
        both = set(self.numeric) & set(self.categorical)
        if both:
            raise ValueError(f"{', '.join(sorted(both))}: numeric or categorical, not both")
        return self

    def __bool__(self) -> bool:
        return bool(self.numeric or self.categorical)


class FeaturesSection(StageSection):
    """Turns columns of items and users, and given vectors, into what a `hybrid` reads beside texts."""

    kind: Literal["features"]
    items: DescribedBy = Field(
        DescribedBy(), description="columns of items.parquet; popularity is the logarithm of its count in training"
    )
    users: DescribedBy = Field(DescribedBy(), description="columns of data.users")
    vectors: Literal["cooccurrence"] | Path | None = Field(
        None,
        description="of items: an npz file with item_id (N) and vectors (N, D), such as image embeddings, zeros for "
        "other items; or cooccurrence, what is used with what in training; read as they are, and as how near an item "
        "is to a history",
    )
    recent: int = Field(20, ge=1, description="items of a history that nearness is told from, the latest ones")
    min_count: int = Field(10, ge=1, description="items, or users, that a word must be told of to be a feature")

    @model_validator(mode="after")
    def _something_is_told(self) -> FeaturesSection:
        if not (self.items or self.users or self.vectors):
            raise ValueError("features: names no column and no vectors")
        return self
