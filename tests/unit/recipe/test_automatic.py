"""`linear: auto`: one word, three stages, everywhere that it is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.recipe import Recipe
from compress.recipe.automatic import expand
from compress.recipe.serving import CalibrationSection, ExportSection, QuantizeSection

Accept = Callable[..., Recipe]
Said = Callable[[str, str], str]

INT8 = "int8: {kind: quantize, input: student}"
AUTO = "int8: {kind: quantize, input: student, linear: auto, smooth: 0.5, calibration: {histories: 9}}"
ALL = ("int8-weights", "int8-dynamic", "int8-static")


def test_it_is_a_stage_for_each_way_with_the_keys_that_it_reads(accept: Accept, base: str) -> None:
    recipe = accept(base.replace(INT8, AUTO))
    made = {name: stage for name, stage in recipe.stages.items() if isinstance(stage, QuantizeSection)}
    assert {name: stage.linear for name, stage in made.items()} == dict(
        zip(ALL, ("weights", "dynamic", "static"), strict=True)
    )
    assert {stage.input for stage in made.values()} == {"student"}
    static = made["int8-static"]
    assert (static.smooth, static.calibration) == (0.5, CalibrationSection(histories=9))
    assert list(recipe.stages) == ["teacher", "student", "control", *ALL, "served"]


@pytest.mark.parametrize(
    ("said", "smooth"), [("", 0.5), (", smooth: 0.7", 0.7), (", smooth: 0", 0.0), (", smooth: null", None)]
)
def test_static_products_are_smoothed_unless_it_says_otherwise(
    accept: Accept, base: str, said: str, smooth: float | None
) -> None:
    recipe = accept(base.replace(INT8, f"int8: {{kind: quantize, input: student, linear: auto{said}}}"))
    assert [getattr(recipe.stages[name], "smooth", None) for name in ALL] == [None, None, smooth]


def test_what_names_it_names_them_and_the_model_in_floating_point(accept: Accept, base: str) -> None:
    recipe = accept(
        base.replace(INT8, AUTO)
        .replace("control, int8]}", "int8]}")
        .replace("[student, int8]", "[int8]")
        .replace("control: control, ", "")
    )
    served = recipe.stages["served"]
    assert isinstance(served, ExportSection)
    assert served.inputs_ == ("teacher", "student", *ALL)
    assert recipe.measure is not None
    assert recipe.measure.candidates == ("student", *ALL)


def test_a_candidate_keeps_the_place_that_a_recipe_gives_it(accept: Accept, base: str) -> None:
    recipe = accept(base.replace(INT8, AUTO).replace("[student, int8]", "[int8, control, student]"))
    assert recipe.measure is not None
    assert recipe.measure.candidates == (*ALL, "control", "student")


def test_an_override_comes_first(accept: Accept, base: str) -> None:
    recipe = accept(base, "stages.int8.linear=auto", "stages.int8.keep=2")
    assert [getattr(recipe.stages[name], "keep", None) for name in ALL] == [0, 0, 2]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("linear: auto, smoth: 0.5", "smoth: unknown key; did you mean smooth?"),
        ("linear: auto, smooth: 2", "stages.int8-static.smooth: "),
        ("linear: auto, input: nobody", "the key is there twice"),
        ("linear: auto}\n  int8-static: {kind: quantize, input: student", "int8-static: the name is taken by a stage"),
        ("linear: auto}\n  more: {kind: finetune, start: int8", "'int8' is no earlier stage; earlier stages:"),
    ],
)
def test_what_does_not_fit_is_one_line_at_its_place(reject_change: Said, said: str, why: str) -> None:
    line = reject_change(INT8, f"int8: {{kind: quantize, input: student, {said}}}")
    assert line.startswith(("recipe.yaml:18: ", "recipe.yaml:19: "))
    assert why in line


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"stages": None},
        {"stages": {"a": 1, "b": {"kind": "quantize"}}, "measure": 3},
        {"stages": {"served": {"kind": "export", "inputs": "b"}}, "measure": {"candidates": [1, {}]}},
    ],
)
def test_what_is_no_recipe_is_left_to_validation(content: dict[str, object]) -> None:
    assert expand(content) == (content, {})
    auto = {"kind": "quantize", "linear": "auto"}
    stages = content.get("stages")
    expand({**content, "stages": {**(stages if isinstance(stages, dict) else {}), "int8": auto}})
