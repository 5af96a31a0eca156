"""What every section of a recipe has in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
"""A name that is also a folder: letters, digits, `_`, `-` and `.`, never a path."""

Fraction = Annotated[float, Field(ge=0, le=1)]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"each once; got {list(values)}")
    return values


Distinct = AfterValidator(_distinct)
"""For a tuple that may hold nothing twice."""


class Section(BaseModel):
    """A part of a recipe: immutable, and strict about what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    incidental: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how the work is watched, not what comes of it: changing one makes nothing out of date."""

    def resolved(self) -> dict[str, Any]:
        """What the result depends on, every default written out, as JSON types: for fingerprint and manifest."""
        return self.model_dump(mode="json", by_alias=True, exclude=set(self.incidental))

    def environment(self) -> dict[str, str]:
        """What the result depends on that neither recipe nor files say, in a form that gives nothing away."""
        return {}

    def paths(self) -> Iterator[tuple[tuple[str, ...], Path]]:
        """Every path in it, sections inside included, with the keys that lead there."""
        for key, value in self:
            if isinstance(value, Path):
                yield (key,), value
            elif isinstance(value, Section):
                for keys, path in value.paths():
                    yield (key, *keys), path

    def with_path(self, keys: Sequence[str], path: Path) -> Self:
        """A copy with another path there."""
        first, *rest = keys
        return self.model_copy(update={first: getattr(self, first).with_path(rest, path) if rest else path})


class StageSection(Section):
    """A stage: `kind` says which module runs it; fields that name earlier stages are its inputs."""

    kind: str

    def inputs(self) -> tuple[str, ...]:
        """Names of the earlier stages that this one reads, besides the data."""
        return ()
