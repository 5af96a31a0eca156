"""`data:` where the interactions come from and how they are filtered and split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compress.recipe.base import Section


class DataSection(Section):
    """What all sources share."""

    seed: int = Field(0, ge=0, description="shuffles interactions of one user that share a timestamp")
    min_interactions: int = Field(
        5, ge=1, description="k of the k-core over users and items; leave-one-out needs at least 3 per user"
    )
    min_rating: float | None = Field(None, description="interactions rated below it are dropped")
    duplicates: Literal["first", "last"] = Field(
        "first", description="which interaction of a user with the same item is kept"
    )
    split: Literal["leave-one-out", "given"] = Field(
        "leave-one-out",
        description="leave-one-out: the last item of each user is test, the one before it validation; "
        "given: by columns.split, or by files named test and validation",
    )
    evaluation_users: int | None = Field(
        None, ge=10, description="quality is judged on so many users, drawn by seed; of the others all is training"
    )
    user_map: Literal["absent", "keyed", "plain"] = Field(
        "absent",
        description="what prepare keeps of the users' raw ids: nothing; their HMAC-SHA256 under the key in the "
        "environment variable RECPRESS_USER_KEY, which numbers users as well; or the ids themselves",
    )

    @model_validator(mode="after")
    def _leave_one_out_has_three(self) -> DataSection:
        if self.split == "leave-one-out" and self.min_interactions < 3:
            raise ValueError(
                f"min_interactions: {self.min_interactions}; split: leave-one-out needs at least 3 per user"
            )
        if self.split == "given" and not isinstance(self, Table):
            raise ValueError("split: given is for one's own tables, source: csv or parquet")
        return self


class MovieLens100K(DataSection):
    """GroupLens' MovieLens 100K, fetched once and checked by sha256."""

    source: Literal["ml-100k"]
    path: Path | None = Field(None, description="a local ml-100k.zip or unpacked folder; fetched if absent")


class OnlineRetailII(DataSection):
    """Online Retail II, purchases by invoice (doi:10.24432/C5CG6D), from a local copy checked by sha256."""

    source: Literal["online-retail-ii"]
    path: Path | None = Field(None, description="folder of interactions.tsv(.xz) and items.tsv; else in RECPRESS_DATA")


class Columns(Section):
    """Which column is what."""

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    rating: str | None = Field(None, description="compared with min_rating; a 0/1 label works too")
    text: str | None = Field(None, description="the item's title or description")
    split: str | None = Field(None, description="train, validation or test; for split: given")


class Table(DataSection):
    """One's own interactions, a row each."""

    source: Literal["csv", "parquet"]
    path: Path = Field(description="a file; relative to the recipe's folder")
    columns: Columns = Columns()
    separator: str = Field(",", pattern=r"^[\t -~]$", description="one ASCII character; csv only")

    validation: Path | None = Field(
        None, description="a file of held-out interactions, same columns; of each user the first counts"
    )
    test: Path | None = Field(None, description="likewise; for split: given")
    candidates: Path | None = Field(
        None, description="a file of user and item columns: quality is judged on these items of each user alone"
    )

    @model_validator(mode="after")
    def _a_given_split_is_given(self) -> Table:
        given = self.columns.split is not None or self.test is not None
        if given != (self.split == "given") or (self.validation is not None and self.test is None):
            raise ValueError("split: given goes with columns.split, or with a test file and maybe a validation file")
        if self.columns.split is not None and self.test is not None:
            raise ValueError("columns.split and test both give the split; name one of them")
        return self

    @model_validator(mode="after")
    def _rating_has_a_column(self) -> Table:
        if self.min_rating is not None and self.columns.rating is None:
            raise ValueError("min_rating needs columns.rating, the column it is compared with")
        return self


class Synthetic(DataSection):
    """Users that walk along item clusters: small, seeded, learnable; for tests."""

    source: Literal["synthetic"]
    users: int = Field(200, ge=10, le=1_000_000)
    items: int = Field(120, ge=10, le=1_000_000)
    length: int = Field(20, ge=5, le=1_000, description="mean interactions of a user")


AnyData = Annotated[MovieLens100K | OnlineRetailII | Table | Synthetic, Field(discriminator="source")]
