"""A bundle: the folder that people deploy. Graphs, the id map, and a description that holds each file's sha256.

Of static int8 it holds how products are rounded besides (`quantization.json`): engines are built from it.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from compress.artifact import digest, sealed, unsealed, write_json
from compress.errors import ArtifactError

SCHEMA_VERSION = 1
DESCRIPTION = "bundle.json"
ITEMS = "items.parquet"
ROWS = ("batch", "candidates")
"""Axes of served graphs along which histories or candidates stand side by side."""

STANDARD = "model.onnx"


class Bundle(BaseModel):
    """What a server needs to know about a bundle's graphs, and what its files must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    family: str
    precision: str
    """fp32, or int8 if any weight is stored as integers."""
    catalogue_size: int
    pad_id: int
    max_length: int
    """What the graph reads of a request: history items, or tokens of a pair where it reads texts."""
    top_k: int
    needs_vnni: bool
    """Whether integer products were made for processors that add them up without overflow."""
    targets: dict[str, str]
    """Runtime: its lowered graph's file name."""
    sha256: dict[str, str]

    def write(self, folder: Path) -> None:
        write_json(folder / DESCRIPTION, sealed(self.model_dump()))


def read(folder: Path) -> Bundle:
    """The description of a bundle, its files held to their hashes.

    Raises: ArtifactError if there is none, or a file is missing, damaged or outside the folder.
    """
    try:
        content = unsealed(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")))
        bundle = Bundle.model_validate(content)
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: no bundle (no {DESCRIPTION}); export writes one per model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / DESCRIPTION} is damaged: {str(error).splitlines()[0]}") from None
    if bundle.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{folder}: schema {bundle.schema_version}, this version reads {SCHEMA_VERSION}; export again"
        )
    unchecked = {ITEMS, *bundle.targets.values()} - bundle.sha256.keys()
    if unchecked:
        raise ArtifactError(f"{folder / DESCRIPTION} is damaged: no sha256 of {', '.join(sorted(unchecked))}")
    for name, expected in bundle.sha256.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ArtifactError(f"{path} is missing; export the bundle again")
        if digest(path) != expected:
            raise ArtifactError(f"{path} is damaged: its sha256 is not the bundle's; export it again")
    return bundle
