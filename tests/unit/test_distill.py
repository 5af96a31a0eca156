"""When a cache of what teachers say pays."""

from __future__ import annotations

from typing import Any

import pytest

import fakes
from compress import distill
from compress.recipe.training import DistillSection, TeacherCacheSection


def _section(**fields: Any) -> DistillSection:
    said = {"kind": "distill", "teacher": "teacher", "losses": [{"kind": "kl"}], "epochs": 12, "start": "cut"}
    return DistillSection.model_validate({**said, "cache": "auto", **fields})


def _cache(section: DistillSection, **teacher: Any) -> tuple[TeacherCacheSection | None, str | None]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, **teacher}
    return distill._cache(section, fakes.tiny_model(), [fakes.tiny_model(**sizes)])


def test_a_cache_pays_where_epochs_read_it_often() -> None:
    cache, why = _cache(_section())
    assert cache == TeacherCacheSection()
    assert why is not None
    assert why.startswith("yes: 12 epochs read 4 variants")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"epochs": 11}, "no: 11 epochs would read 4 variants less than 3 times"),
        ({"losses": [{"kind": "hidden", "layers": {1: 1}}]}, "no: hidden reads layers"),
        ({"losses": [{"kind": "mse"}]}, "no: mse compares every score, and the best 100 are kept"),
        ({"losses": [{"kind": "ranknet", "top": 200, "others": 5}]}, "no: a loss reads 200 items, and 100 are kept"),
    ],
)
def test_it_says_why_it_does_not(fields: dict[str, Any], said: str) -> None:
    cache, why = _cache(_section(**fields))
    assert cache is None
    assert why is not None
    assert why.startswith(said)


def test_a_small_teacher_is_asked_again() -> None:
    cache, why = _cache(_section(), hidden_size=16, num_hidden_layers=1)
    assert cache is None
    assert why == "no: the teachers' layers have 0.5 times the student's weights: asking costs little"


def test_what_a_recipe_says_is_done() -> None:
    own = TeacherCacheSection(variants=2)
    assert _cache(_section(cache={"variants": 2})) == (own, None)
    assert _cache(_section(cache=None)) == (None, None)
