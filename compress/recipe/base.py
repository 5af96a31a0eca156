"""What every section of a recipe has in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""A name that is also a folder: letters, digits, `_`, `-` and `.`, never a path."""

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of a recipe: immutable, and strict about what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def resolved(self) -> dict[str, Any]:
        """The section with every default written out, as JSON types: what a fingerprint and a manifest hold."""
        return self.model_dump(mode="json", by_alias=True)


class StageSection(Section):
    """A stage: `kind` says which module runs it; fields that name earlier stages are its inputs."""

    kind: str

    def inputs(self) -> tuple[str, ...]:
        """Names of the earlier stages that this one reads, besides the data."""
        return ()
