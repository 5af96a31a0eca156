"""A bundle: the folder that people deploy. Graphs, the id map, and a description that holds each file's sha256."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from compress.artifact import digest, write_atomically
from compress.errors import ArtifactError

DESCRIPTION = "bundle.json"
ITEMS = "items.parquet"
STANDARD = "model.onnx"


class Bundle(BaseModel):
    """What a server needs to know about a bundle's graphs, and what its files must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    family: str
    precision: str
    """fp32, or int8 if any weight is stored as integers."""
    catalogue_size: int
    pad_id: int
    max_length: int
    """History items that the graph reads."""
    top_k: int
    targets: dict[str, str]
    """Runtime: its lowered graph's file name."""
    sha256: dict[str, str]

    def write(self, folder: Path) -> None:
        write_atomically(folder / DESCRIPTION, json.dumps(self.model_dump(), indent=2) + "\n")


def read(folder: Path) -> Bundle:
    """The description of a bundle, its files held to their hashes.

    Raises: ArtifactError if there is none, or a file is missing, damaged or outside the folder.
    """
    try:
        bundle = Bundle.model_validate_json((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: no bundle (no {DESCRIPTION}); export writes one per model") from None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ArtifactError(f"{folder / DESCRIPTION} is damaged: {str(error).splitlines()[0]}") from None
    for name, expected in bundle.sha256.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ArtifactError(f"{path} is missing; export the bundle again")
        if digest(path) != expected:
            raise ArtifactError(f"{path} is damaged: its sha256 is not the bundle's; export it again")
    return bundle
