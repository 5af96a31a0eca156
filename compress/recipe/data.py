"""`data:` where the interactions come from and how they are filtered and split."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from compress.recipe.base import Section

USER_KEY = "RECPRESS_USER_KEY"
"""The environment variable that holds the key of users' ids."""


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
    positive_rating: float | None = Field(
        None,
        description="the data has labels: 1 if rated so or better, 0 if not; models predict them. Absent: every "
        "interaction is wanted",
    )
    split: Literal["leave-one-out", "time", "given"] = Field(
        "leave-one-out",
        description="leave-one-out: the last item of each user is test, the one before it validation; time: the latest "
        "interactions of all are test, those before them validation; given: by columns.split, or by files named test "
        "and validation",
    )
    held_out: float = Field(
        0.1, gt=0, lt=0.5, description="share of the interactions that is test, and validation; split: time"
    )
    evaluation_users: int | None = Field(
        None,
        ge=10,
        description="quality is judged on so many users, drawn by seed; of the others all is training, or with labels "
        "what is not held out",
    )
    user_map: Literal["absent", "keyed", "plain"] = Field(
        "absent",
        description="what prepare keeps of the users' raw ids: nothing; their HMAC-SHA256 under the key in the "
        "environment variable RECPRESS_USER_KEY, which numbers users as well; or the ids themselves",
    )

    def environment(self) -> dict[str, str]:
        key = os.environ.get(USER_KEY, "").encode()
        return {"user_key": hmac.new(key, b"check", hashlib.sha256).hexdigest()} if self.user_map == "keyed" else {}

    @model_validator(mode="after")
    def _split_fits(self) -> DataSection:
        if self.positive_rating is not None and self.split == "leave-one-out":
            raise ValueError("positive_rating: labels are predicted of what came later; split: time, or given")
        if self.positive_rating is None and self.split == "time":
            raise ValueError("split: time is for data with labels; name positive_rating")
        if self.positive_rating is not None and self.min_rating is not None:
            raise ValueError("positive_rating and min_rating: what is rated below is a no, or it is dropped; name one")
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
    timestamp: str | None = Field("timestamp", description="null: rows stand in order of time")
    rating: str | None = Field(
        None, description="compared with min_rating or positive_rating; of a 0/1 label, positive_rating: 1"
    )
    text: str | None = Field(None, description="the item's title or description")
    split: str | None = Field(None, description="train, validation or test; for split: given")


class Table(DataSection):
    """One's own interactions, a row each."""

    source: Literal["csv", "parquet"]
    path: Path = Field(description="a file; relative to the recipe's folder")
    columns: Columns = Columns()
    separator: str = Field(",", pattern=r"^[\t -~]$", description="one ASCII character; csv only")
    items: Path | None = Field(
        None, description="a table of items: the item column, and columns for templates; instead of columns.text"
    )
    users: Path | None = Field(
        None, description="a table of users: the user column, and attributes or a query, for the template of users"
    )
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
        if (self.min_rating is not None or self.positive_rating is not None) and self.columns.rating is None:
            raise ValueError("min_rating and positive_rating need columns.rating, which they are compared with")
        if self.positive_rating is not None and self.candidates is not None:
            raise ValueError(
                "positive_rating and candidates: with labels, users are judged on what they were asked about"
            )
        if self.positive_rating is not None and self.test is not None and self.validation is None:
            raise ValueError("test: with labels, name a validation file as well: choices are made on it")
        if self.items is not None and self.columns.text is not None:
            raise ValueError("items and columns.text: texts stand in the table of items, or in the log; name one")
        return self


class MovieLensSmall(DataSection):
    """GroupLens' MovieLens latest-small of 9/2018: 100,836 ratings, titles, genres and users' tags."""

    source: Literal["ml-latest-small"]
    path: Path | None = Field(
        None, description="ml-latest-small.zip or its folder; else ml_latest_small in RECPRESS_DATA"
    )


class Synthetic(DataSection):
    """Users that walk along item clusters: small, seeded, learnable; for tests."""

    source: Literal["synthetic"]
    users: int = Field(200, ge=10, le=1_000_000)
    items: int = Field(120, ge=10, le=1_000_000)
    length: int = Field(20, ge=5, le=1_000, description="mean interactions of a user")
    refused: float = Field(
        0, ge=0, lt=1, description="share of interactions with any item at all, rated 1; the others are rated 5"
    )


AnyData = Annotated[MovieLens100K | MovieLensSmall | OnlineRetailII | Table | Synthetic, Field(discriminator="source")]
