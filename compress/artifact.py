"""A stage's folder: files, and a manifest that is written last and says what every one of them must be.

No manifest, no artifact: a stage killed at any moment leaves a folder that nothing reads. Names that start with a dot
(the lock, resume state) are private to the stage that writes them and never part of the artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from compress.errors import ArtifactError

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
CHECKSUM = "checksum"


class File(BaseModel):
    """What a file must be."""

    sha256: str
    size_bytes: int


class Manifest(BaseModel):
    """Everything needed to recognise an artifact, and to repeat it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    name: str
    kind: str
    seed: int | None
    fingerprint: str
    ingredients: dict[str, Any]
    """What the fingerprint is the hash of: section, seed, inputs' fingerprints, sources, packages, hardware."""
    metrics: dict[str, Any]
    seconds: float
    environment: dict[str, str]
    files: dict[str, File]


@dataclass(frozen=True)
class Artifact:
    """A finished stage on disk."""

    folder: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest.metrics

    def path(self, relative: str) -> Path:
        """A file or folder of the artifact. Raises ArtifactError if the manifest does not have it."""
        if not any(name == relative or name.startswith(relative + "/") for name in self.manifest.files):
            raise ArtifactError(f"{self.folder}: the {self.manifest.kind} artifact has no {relative}")
        return self.folder / relative


def write(folder: Path, **fields: Any) -> Artifact:
    """Describes every file in `folder` and writes the manifest, atomically and last."""
    files = {
        path.relative_to(folder).as_posix(): File(sha256=digest(path), size_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _is_private(path, folder) and path != folder / MANIFEST
    }
    manifest = Manifest(files=files, **fields)
    content = manifest.model_dump(mode="json")
    write_json(folder / MANIFEST, sealed(content))
    return Artifact(folder, manifest)


def read(folder: Path, *, verify: bool = True) -> Artifact:
    """The artifact in `folder`, each file held to its sha256.

    Raises: ArtifactError if there is none, it is of another schema, or a file is missing or damaged (the message
        says which).
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"{folder}: there is no finished artifact (no {MANIFEST})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; {_remedy(folder)}") from None
    try:
        content = json.loads(text)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtifactError(f"{path}: schema {version}, this version reads {SCHEMA_VERSION}; {_remedy(folder)}")
        artifact = Artifact(folder, Manifest.model_validate(unsealed(content)))
        if verify:
            _verify(artifact)
    except (ValueError, RecursionError):  # no JSON, not its fields or checksum, or a file name with a NUL in it
        raise ArtifactError(f"{path} is damaged: not a manifest; {_remedy(folder)}") from None
    return artifact


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """JSON content with a checksum of its own beside it."""
    return content | {CHECKSUM: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def unsealed(content: Any) -> dict[str, Any]:
    """What was sealed. Raises ValueError if it is not as it was then."""
    plain = {key: value for key, value in dict(content).items() if key != CHECKSUM}
    if content != sealed(plain):
        raise ValueError("its checksum is not its content's")
    return plain


def _verify(artifact: Artifact) -> None:
    for name, expected in artifact.manifest.files.items():
        path = artifact.folder / name
        if not path.resolve().is_relative_to(artifact.folder.resolve()):
            raise ArtifactError(f"{path} lies outside its artifact; {_remedy(artifact.folder)}")
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; {_remedy(artifact.folder)}")
        try:
            damaged = path.stat().st_size != expected.size_bytes or digest(path) != expected.sha256
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}; {_remedy(artifact.folder)}") from None
        if damaged:
            raise ArtifactError(f"{path} is damaged: its sha256 is not the manifest's; {_remedy(artifact.folder)}")


def _remedy(folder: Path) -> str:
    return f"delete {folder} and run again"


def _is_private(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def digest(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes all of it or nothing: a reader, or a run killed here, never sees half a file."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def write_json(path: Path, content: Any) -> None:
    """JSON the way people read it."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
