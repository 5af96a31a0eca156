"""A variant in a process of its own: any length of history, and a failure that says what it was."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import polars as pl
import pytest

import fakes
from benchmarks import cold_start, variants
from compress import artifact
from compress.errors import ArtifactError
from compress.models.bert4rec import Bert4Rec
from deploy import bundle

ITEMS = 20


def test_a_model_that_reads_little_answers_its_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = tmp_path / "model", tmp_path / "bundle"
    Bert4Rec().save(fakes.tiny_model(items=ITEMS, max_length=3), model)
    folder.mkdir()
    items = {"item": range(ITEMS), "item_id": [str(item) for item in range(ITEMS)], "popularity": [1] * ITEMS}
    pl.DataFrame(items).write_parquet(folder / bundle.ITEMS)
    bundle.Bundle(
        family="bert4rec",
        precision="fp32",
        catalogue_size=ITEMS,
        pad_id=ITEMS,
        max_length=3,
        top_k=10,
        needs_vnni=False,
        targets={},
        sha256={bundle.ITEMS: artifact.digest(folder / bundle.ITEMS)},
    ).write(folder)
    begun = time.monotonic_ns() - 5_000_000_000
    monkeypatch.setattr(sys, "argv", ["cold_start", str(begun), "1", str(folder), str(model)])
    assert cold_start.main() == 0
    facts = json.loads(capsys.readouterr().out)
    assert all(facts[name] > 0 for name in ("first_request_ms", "peak_memory_bytes"))
    assert 5_000 < facts["load_ms"] < 65_000, "a start counts from when it was asked for"


def test_a_variant_that_does_not_load_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run / "tiny" / "seed-0" / "served" / "control", tmp_path / "bundle"))
    assert variants.cold_start(folder, threads=1)["load_ms"] > 0
    (folder / "items.parquet").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"process of its own: .*items.parquet is damaged"):
        variants.cold_start(folder, threads=1)
