"""What the measure stage asks of a bundle, on the bundle of a real run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measure, sizing
from benchmarks.variants import Variant, cold_start
from compress.data.interactions import Interactions
from compress.recipe.judging import MeasureSection
from deploy.recommender import Recommender


def test_the_eager_teacher_and_each_candidate_are_sized_if_the_recipe_asks(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "REQUESTS", 50)
    interactions = Interactions.load(tiny_run / "tiny" / "data")
    folder = tiny_run / "tiny" / "seed-0" / "served" / "control"
    loaded: list[int] = []

    def load(threads: int) -> Recommender:
        loaded.append(threads)
        return Recommender.load(folder, threads=threads)

    recommender = Recommender.load(folder)
    variants = {
        name: Variant({}, load, recommender, partial(cold_start, folder)) for name in ("t-eager", "t", "a", "b")
    }
    asked = {"limits_ms": [200], "threads": [1], "concurrency": [1, 2], "seconds": 0.02}
    fields = {"export": "served", "teacher": "t", "candidates": ["a"]}
    section = MeasureSection.model_validate(fields | {"sizing": asked})
    rates = measure.sustained_rates(section, variants, interactions)
    assert list(rates) == ["t-eager", "a"]
    assert len(loaded) == 2 * (1 + 2), "every worker has a runtime of its own"
    for rows in rates.values():
        assert [(row["limit_ms"], row["threads"], row["concurrency"]) for row in rows] == [(200, 1, 1), (200, 1, 2)]
        assert all(row["requests_per_second"] > 20 and row["p50"] <= row["p99"] < 200 for row in rows)
    assert measure.sustained_rates(MeasureSection.model_validate(fields), variants, interactions) == {}


def test_the_eager_teacher_is_asked_about_test_users_alone(tiny_run: Path) -> None:
    folder = tiny_run / "tiny" / "seed-0" / "measure"
    variants = json.loads((folder / "measure.json").read_text())["variants"]
    with np.load(folder / "quality.npz") as quality:
        asked = {tuple(key.split("/")) for key in quality}
    for name in (variant["name"] for variant in variants):
        assert (name, "test") in asked
        assert ((name, "validation") in asked) == (name != "teacher-eager")


def test_padding_is_of_batches_and_the_same_for_every_variant(tiny_run: Path) -> None:
    measured = json.loads((tiny_run / "tiny" / "seed-0" / "measure" / "measure.json").read_text())
    first, *others = [variant["padding"] for variant in measured["variants"]]
    alone, *together = first.values()
    assert alone == 0
    assert all(0 < share < 1 for share in together)
    assert all(padding == first for padding in others)


def test_lists_that_were_made_are_not_made_again(tmp_path: Path) -> None:
    """A run killed in the middle of a list makes that one anew."""
    asked: list[int] = []

    def make() -> np.ndarray:
        asked.append(len(asked))
        if len(asked) == 1:
            raise KeyboardInterrupt
        return np.array([[3, -1]])

    path = tmp_path / "lists" / "student-test.npy"
    with pytest.raises(KeyboardInterrupt):
        measure.kept(path, make)
    for _ in range(2):
        found = measure.kept(path, make)
        assert found.dtype == np.int32
        assert found.tolist() == [[3, -1]]
    assert len(asked) == 2
