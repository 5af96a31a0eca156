"""A variant in a process of its own: any length of history, and a failure that says what it was."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import fakes
from benchmarks import cold_start, measure
from compress.errors import ArtifactError
from deploy.recommender import Recommender


def test_a_model_that_reads_little_answers_its_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes.tiny_model(max_length=3).save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cold_start", str(tmp_path), "1", "3"])
    assert cold_start.main() == 0
    facts = json.loads(capsys.readouterr().out)
    assert all(facts[name] > 0 for name in ("load_ms", "first_request_ms", "peak_memory_bytes"))


def test_a_variant_that_does_not_load_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run / "tiny" / "seed-0" / "served" / "control", tmp_path / "bundle"))
    recommender = Recommender.load(folder)
    variant = measure.Variant({"loaded_from": str(folder)}, lambda _: recommender, recommender)
    assert measure.cold_start(variant, threads=1)["load_ms"] > 0
    (folder / "items.parquet").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"process of its own: .*items.parquet is damaged"):
        measure.cold_start(variant, threads=1)
