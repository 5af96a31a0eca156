"""An artifact is what its manifest says, to the byte; anything else is an error that names the file and the remedy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from compress import artifact
from compress.errors import ArtifactError

FIELDS: dict[str, Any] = {
    "name": "teacher",
    "kind": "finetune",
    "seed": 0,
    "fingerprint": "f00d",
    "ingredients": {"section": {"epochs": 2, "layers": [1, 2]}, "seed": 0},
    "metrics": {"ndcg@10": 0.25, "best": None, "by_group": {"few": 0.125}},
    "seconds": 1.5,
    "environment": {"python": "3.11"},
}
FILES = {"model/config.json": b"{}", "model/weights.safetensors": bytes(range(256)), "notes.txt": b"caf\xc3\xa9\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished artifact of three files."""
    folder = tmp_path / "teacher"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    artifact.write(folder, **FIELDS)
    return folder


def rewrite(folder: Path, **changes: Any) -> None:
    """Changes fields of the manifest behind the artifact's back."""
    path = folder / artifact.MANIFEST
    content = json.loads(path.read_text()) | changes
    del content[artifact.CHECKSUM]
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content | {artifact.CHECKSUM: checksum}))


def complaint(folder: Path) -> str:
    with pytest.raises(ArtifactError) as raised:
        artifact.read(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    written = artifact.write(tmp_path, **FIELDS)
    assert artifact.read(tmp_path) == artifact.read(tmp_path, verify=False) == written


def test_the_manifest_lists_every_file_with_its_size_and_sha256(folder: Path) -> None:
    files = artifact.read(folder).manifest.files
    assert {name: file.size_bytes for name, file in files.items()} == {name: len(FILES[name]) for name in FILES}
    assert files["model/config.json"].sha256 == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_writing_again_lists_no_manifest_and_changes_nothing(folder: Path) -> None:
    before = (folder / artifact.MANIFEST).read_bytes()
    artifact.write(folder, **FIELDS)
    assert (folder / artifact.MANIFEST).read_bytes() == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", [0, -1])
def test_a_flipped_bit_is_an_error_that_names_the_file(folder: Path, name: str, at: int) -> None:
    content = bytearray(FILES[name])
    content[at] ^= 1
    (folder / name).write_bytes(content)
    assert complaint(folder) == (
        f"{folder / name} is damaged: its sha256 is not the manifest's; delete {folder} and run again"
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"\0"])
def test_a_file_cut_short_or_grown_is_an_error_that_names_it(folder: Path, name: str, change: Any) -> None:
    (folder / name).write_bytes(change(FILES[name]))
    assert complaint(folder).startswith(f"{folder / name} is damaged: ")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_an_error_that_names_it(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert complaint(folder) == f"{folder / name} is missing; delete {folder} and run again"


def test_a_folder_in_place_of_a_file_is_a_missing_file(folder: Path) -> None:
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").mkdir()
    assert complaint(folder).startswith(f"{folder / 'notes.txt'} is missing")


def test_files_are_not_read_where_only_the_manifest_is_wanted(folder: Path) -> None:
    (folder / "notes.txt").unlink()
    assert artifact.read(folder, verify=False).fingerprint == "f00d"


def test_private_files_are_no_part_of_it(folder: Path) -> None:
    for name in (".lock", ".resume/step", "model/.cache"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private")
    before = artifact.read(folder)
    assert artifact.write(folder, **FIELDS) == before


def test_no_manifest_is_no_artifact(folder: Path) -> None:
    (folder / artifact.MANIFEST).unlink()
    assert complaint(folder) == f"{folder}: there is no finished artifact (no manifest.json)"
    assert complaint(folder / "nowhere") == f"{folder / 'nowhere'}: there is no finished artifact (no manifest.json)"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"schema_version": 2}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema_version": 2, "x": 2}',
    ],
)
def test_a_damaged_manifest_is_an_error_that_names_it(folder: Path, content: bytes) -> None:
    (folder / artifact.MANIFEST).write_bytes(content)
    said = complaint(folder)
    assert said.startswith(str(folder / artifact.MANIFEST))
    assert said.endswith(f"; delete {folder} and run again")


def test_a_flipped_bit_in_the_manifest_is_an_error_that_names_it(folder: Path) -> None:
    manifest = (folder / artifact.MANIFEST).read_bytes()
    for at in range(len(manifest)):
        content = bytearray(manifest)
        content[at] ^= 1 << at % 8
        (folder / artifact.MANIFEST).write_bytes(content)
        assert complaint(folder).startswith(str(folder / artifact.MANIFEST))


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_another_schema_is_an_error_that_says_which(folder: Path, version: Any) -> None:
    rewrite(folder, schema_version=version)
    assert complaint(folder) == (
        f"{folder / artifact.MANIFEST}: schema {version}, this version reads 2; delete {folder} and run again"
    )


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "model/../../outside.txt"])
def test_a_manifest_cannot_name_a_file_outside_its_folder(folder: Path, name: str) -> None:
    (folder.parent / "outside.txt").write_bytes(b"{}")
    rewrite(folder, files={name: {"sha256": artifact.digest(folder.parent / "outside.txt"), "size_bytes": 2}})
    assert complaint(folder).endswith(f"lies outside its artifact; delete {folder} and run again")


def test_a_link_cannot_lead_outside_either(folder: Path) -> None:
    (folder / "notes.txt").rename(folder.parent / "notes.txt")
    (folder / "notes.txt").symlink_to(folder.parent / "notes.txt")
    assert "notes.txt lies outside its artifact" in complaint(folder)


def test_a_file_name_that_no_file_can_have_is_a_damaged_manifest(folder: Path) -> None:
    rewrite(folder, files={"a\0b": {"sha256": "", "size_bytes": 0}})
    assert complaint(folder).startswith(f"{folder / artifact.MANIFEST} is damaged: not a manifest")


def test_a_part_is_asked_for_by_file_or_by_folder(folder: Path) -> None:
    teacher = artifact.read(folder)
    assert teacher.path("model") == folder / "model"
    assert teacher.path("model/config.json") == folder / "model" / "config.json"
    for absent in ("mod", "model/", "model.onnx", "config.json", "manifest.json"):
        with pytest.raises(ArtifactError, match=f"the finetune artifact has no {absent}"):
            teacher.path(absent)


def test_a_write_that_fails_half_way_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    artifact.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        artifact.write_atomically(path, "new" * 100_000 + "\ud800")
    assert path.read_text() == "old"
    artifact.write_atomically(path, "new")
    assert path.read_text() == "new"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written does not reach the disk."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        artifact.write_atomically(path, "new")
    assert path.read_text() == "old"


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="No space left"):
        artifact.write(tmp_path, **FIELDS)
    assert "no finished artifact" in complaint(tmp_path)


def test_json_that_other_programs_cannot_read_is_not_written(tmp_path: Path) -> None:
    artifact.write_json(tmp_path / "x.json", {"ndcg": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifact.write_json(tmp_path / "x.json", {"ndcg": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"ndcg": 0.5}
