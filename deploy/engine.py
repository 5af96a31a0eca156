"""What stands beside TensorRT engines: which graph and package each was made from, and what its file must be."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from compress.artifact import digest, sealed, unsealed, write_json
from compress.errors import ArtifactError

SCHEMA_VERSION = 3
DESCRIPTION = "engine.json"

TYPE = re.compile(r"\b(FP32|FP16|BF16|FP8|FP4|INT64|INT32|INT8|INT4|UINT8|BOOL)\b", re.IGNORECASE)
"""As inspectors spell it."""

Sizes = tuple[list[int], list[int], list[int]]
"""Of an input: the smallest shape, the one that is tuned for, the largest."""

Profile = Mapping[str, Sizes]
"""Of every input."""


class Kernel(BaseModel):
    """A layer of an engine, as the builder's inspector tells it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    outputs: list[str]
    """How each lies in memory, and its type: Row major linear FP16."""
    metadata: str
    """The network's layers that it was made of."""

    @classmethod
    def of(cls, told: Any) -> Kernel:
        """From the inspector's JSON, where a layer without details is its name alone."""
        if not isinstance(told, Mapping):
            return cls(name=str(told), outputs=[], metadata="")
        outputs = [str(each.get("Format/Datatype", "")) for each in told.get("Outputs", [])]
        return cls(name=str(told.get("Name", "")), outputs=outputs, metadata=str(told.get("Metadata", "")))

    @property
    def is_fused(self) -> bool:
        """Whether several of the network's layers became it."""
        return "+" in self.name

    @property
    def precision(self) -> str:
        """Of its first output; other where the inspector does not say, as of dynamic shapes."""
        found = TYPE.search(self.outputs[0]) if self.outputs else None
        return found[0].lower() if found else "other"


class Engine(BaseModel):
    """One engine: a model, a precision, a GPU generation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str
    size_bytes: int
    precision: str
    compute_capability: str
    builder: str
    """The package that built it, which alone runs it."""
    version: str
    graph: str
    graph_sha256: str
    driver: str | None
    """Of the machine that built it; None without a GPU."""
    version_compatible: bool
    hardware_compatibility: str
    profiles: list[dict[str, Sizes]]
    """Those for short calls first."""
    build_seconds: float
    layers: int
    """Of the network that the builder was given."""
    kernels: list[Kernel] | None
    """Layers of the engine; known where its GPU is."""

    @property
    def precisions(self) -> dict[str, int] | None:
        """How many of the kernels leave numbers of each type, most first."""
        return None if self.kernels is None else dict(Counter(each.precision for each in self.kernels).most_common())


class Engines(BaseModel):
    """All of a model's engines in one folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    model: str
    standard_sha256: str
    """Of the bundle's standard graph."""
    engines: list[Engine]

    def write(self, folder: Path) -> None:
        write_json(folder / DESCRIPTION, sealed(self.model_dump()))


def for_gpu(built: Sequence[Engine], capability: tuple[int, int]) -> Engine | None:
    """The engine that was built for a GPU, else one that says that it runs on Ampere and on all that came after."""
    exact = (each for each in built if each.compute_capability == "{}.{}".format(*capability))
    compatible = (each for each in built if each.hardware_compatibility == "ampere_plus" and capability >= (8, 0))
    return next(chain(exact, compatible), None)


def read(folder: Path) -> Engines:
    """The description of a folder of engines. Raises: ArtifactError if there is none or it is damaged."""
    path = folder / DESCRIPTION
    try:
        engines = Engines.model_validate(unsealed(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: no engines (no {DESCRIPTION}); a build stage writes them") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {str(error).splitlines()[0]}; build it again") from None
    if engines.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{folder}: schema {engines.schema_version}, this version reads {SCHEMA_VERSION}; build again"
        )
    return engines


def content(folder: Path, engine: Engine) -> bytes:
    """The engine, held to its hash: TensorRT runs whatever code is in one.

    Raises: ArtifactError if the file is missing, outside the folder, or not the one that was built.
    """
    return _held(folder, engine.file, engine.sha256).read_bytes()


def graph(folder: Path, engine: Engine) -> Path:
    """The graph that an engine was built from, held to its hash. Raises: ArtifactError as `content` does."""
    return _held(folder, engine.graph, engine.graph_sha256)


def _held(folder: Path, name: str, sha256: str) -> Path:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise ArtifactError(f"{path} is missing; build it again")
    if digest(path) != sha256:
        raise ArtifactError(f"{path} is damaged: its sha256 is not the manifest's; build it again")
    return path


def profile_for(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int:
    """The first profile that a call lies in; 0 if it lies in none, whose trouble is then said of that one."""

    def holds(profile: Profile) -> bool:
        return all(
            least <= size <= most
            for name, shape in shapes.items()
            for least, size, most in zip(profile[name][0], shape, profile[name][2], strict=True)
        )

    return next((place for place, profile in enumerate(profiles) if holds(profile)), 0)
