"""Of which models a profile foretells anything."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import foretold

TABLE: dict[str, Any] = {
    "linear": "none",
    "family": "bert4rec",
    "head_size": 8,
    "layers": [[2, 64], [2, 64]],
    "sizes": {"length": 30, "excluded": 500},
    "batches": {"32": {"hidden": {"16": {}, "12": {}}}},
}
LAYERS: dict[str, Any] = {
    "family": "bert4rec",
    "uniform": True,
    "hidden_size": 16,
    "head_size": 8,
    "positions": 30,
    "shapes": [[1, 64], [2, 0]],
}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({}, True),
        ({"hidden_size": 12}, True),
        ({"hidden_size": 8}, False),
        ({"head_size": 4}, False),
        ({"positions": 29}, False),
        ({"family": "hybrid"}, False),
        ({"uniform": False}, False),
        ({"shapes": [[3, 64]]}, False),
        ({"shapes": [[2, 65]]}, False),
    ],
)
def test_a_model_that_was_not_profiled_is_not_foretold(other: dict[str, Any], told: bool) -> None:
    assert foretold._is_told(_facts(layers={**LAYERS, **other}), TABLE) == told


def _facts(**other: Any) -> dict[str, Any]:
    return {"bundle": "here", "linear": "none", "layers": LAYERS, **other}


@pytest.mark.parametrize("profiled", ["none", "dynamic"])
@pytest.mark.parametrize("linear", ["none", "weights", "dynamic", "static"])
def test_a_model_that_is_rounded_otherwise_is_not_foretold(profiled: str, linear: str) -> None:
    told = foretold._is_told(_facts(linear=linear, precision="int8"), {**TABLE, "linear": profiled})
    assert told == (linear == profiled)


def test_nothing_is_foretold_of_eager_pytorch() -> None:
    assert not foretold._is_told(_facts(bundle=None), TABLE)
