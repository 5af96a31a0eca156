"""Raw user ids never leave `prepare`: everything that a run leaves, unpacked, is searched for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from conftest import TINY, recpress

USERS = 200


def raw_id(user: int) -> str:
    """Telling, and like nothing else that a run may write."""
    return f"person-{hashlib.sha256(str(user).encode()).hexdigest()[:12]}@example.org"


@pytest.fixture(scope="module")
def log(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's interactions under names that can be searched for."""
    folder = tmp_path_factory.mktemp("log")
    prepared = pl.read_parquet(tiny_run / "tiny" / "data" / "interactions.parquet")
    named = prepared.select(
        user_id=pl.col("user").map_elements(raw_id, pl.String),
        item_id=pl.format("sku{}", "item"),
        timestamp="timestamp",
    )
    named.write_csv(folder / "log.csv")
    return folder / "log.csv"


def contents(runs: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file of a run, as it lies there and with what is packed in it unpacked."""
    for path in runs.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()
            if path.suffix == ".parquet":
                for column in pl.read_parquet(path).select(pl.col(pl.String)):
                    yield path, "\n".join(column.drop_nulls()).encode()
            if path.suffix == ".npz":
                with np.load(path, allow_pickle=False) as arrays:
                    for key in arrays.files:
                        yield path, key.encode() + arrays[key].tobytes()


def naming(runs: Path) -> set[Path]:
    """Files with a raw id in them."""
    wanted = [raw_id(user).encode() for user in range(USERS)]
    return {path for path, content in contents(runs) if any(each in content for each in wanted)}


def run(log: Path, runs: Path, *overrides: str) -> tuple[Path, str]:
    data = f"data={{source: csv, path: {log}, min_interactions: 3}}"
    line = [part for override in (data, *overrides) for part in ("--set", override)]
    ended = recpress(TINY, "--runs", runs, "--one-process", *line)
    assert ended.returncode == 0, ended.stderr
    return runs, ended.stdout + ended.stderr


def test_nothing_that_a_run_leaves_or_says_names_a_user(log: Path, tmp_path: Path) -> None:
    runs, said = run(log, tmp_path / "runs", "measure.rounds=20", "measure.seconds=0.1")
    assert len(list(contents(runs))) > 60
    assert {path.name for path, _ in contents(runs)} >= {"report.json", "items.parquet", "quality.npz", "model.onnx"}
    assert not naming(runs)
    assert not any(raw_id(user) in said for user in range(USERS))


@pytest.mark.parametrize("user_map", ["plain", "keyed"])
def test_a_map_stays_in_prepare_and_a_keyed_one_names_nobody(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_map: str
) -> None:
    monkeypatch.setenv("RECPRESS_USER_KEY", "secret")
    line = ["--only", "data,teacher", "--set", "stages.teacher.epochs=1"]
    data = f"data={{source: csv, path: {log}, min_interactions: 3, user_map: {user_map}}}"
    ended = recpress(TINY, "--runs", tmp_path, "--one-process", "--set", data, *line)
    assert ended.returncode == 0, ended.stderr
    users = tmp_path / "tiny" / "data" / "users.parquet"
    assert pl.read_parquet(users).height == USERS
    assert naming(tmp_path) == ({users} if user_map == "plain" else set())
    assert not any(b"secret" in content for _, content in contents(tmp_path))
