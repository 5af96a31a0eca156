"""What a quantize stage may say of static products, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.recipe import Recipe
from compress.recipe.serving import CalibrationSection, QuantizeSection

Accept = Callable[..., Recipe]
Said = Callable[[str, str], str]

INT8 = "int8: {kind: quantize, input: student}"


def _section(accept: Accept, base: str, said: str) -> QuantizeSection:
    section = accept(base.replace(INT8, f"int8: {{kind: quantize, input: student, {said}}}")).stages["int8"]
    assert isinstance(section, QuantizeSection)
    return section


def test_static_products_are_calibrated_by_default(accept: Accept, base: str) -> None:
    section = _section(accept, base, "linear: static")
    assert section.calibration == CalibrationSection()
    assert (section.calibration.histories, section.calibration.percentile) == (1024, 99.99)
    assert (section.smooth, section.keep) == (None, 0)
    assert section.resolved()["calibration"]["histories"] == 1024


def test_no_other_switch_has_a_calibration(accept: Accept, base: str) -> None:
    for linear in ("dynamic", "weights", "none"):
        assert _section(accept, base, f"linear: {linear}").calibration is None


def test_all_that_is_said_is_read(accept: Accept, base: str) -> None:
    section = _section(
        accept,
        base,
        "linear: static, calibration: {histories: 10, method: percentile, percentile: 99}, smooth: 0.5, keep: 2, "
        "weight_bits: 4, per_channel: false, bias_correction: true",
    )
    assert (section.weight_bits, section.per_channel, section.bias_correction) == (4, False, True)
    assert section.calibration == CalibrationSection(histories=10, method="percentile", percentile=99)
    assert (section.smooth, section.keep) == (0.5, 2)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("calibration: {histories: 10}", "calibration: linear: dynamic has no static scales; say linear: static"),
        ("linear: none, smooth: 0.5", "smooth: linear: none has no static scales; say linear: static"),
        ("linear: weights, smooth: 0", "smooth: linear: weights has no static scales; say linear: static"),
        ("keep: 2", "keep: linear: dynamic has no static scales; say linear: static"),
        ("weight_bits: 4", "weight_bits: linear: dynamic has no static scales; say linear: static"),
        ("linear: none, per_channel: false", "per_channel: linear: none has no static scales; say linear: static"),
        ("bias_correction: true", "bias_correction: linear: dynamic has no static scales; say linear: static"),
        ("linear: static, weight_bits: 2", "weight_bits: "),
        ("linear: static, smooth: 1.5", "smooth: "),
        ("linear: static, keep: -1", "keep: "),
        ("linear: static, calibration: {histories: 0}", "calibration.histories: "),
        ("linear: static, calibration: {method: entropy}", "calibration.method: "),
        ("linear: static, calibration: {percentile: 101}", "calibration.percentile: "),
        ("linear: static, calibration: {method: mse, percentile: 99}", "percentile: method mse reads none"),
        ("linear: static, calibration: {users: 10}", "unknown key"),
        ("linear: statik", "static"),
    ],
)
def test_what_does_not_fit_is_one_line(reject_change: Said, said: str, why: str) -> None:
    line = reject_change(INT8, f"int8: {{kind: quantize, input: student, {said}}}")
    assert line.startswith("recipe.yaml:18: stages.int8")
    assert why in line


STATIC = "int8: {kind: quantize, input: student, linear: static}"
AWARE = "aware: {kind: distill, teacher: student, start: int8, losses: [{kind: kl}]}"


def test_training_starts_from_calibrated_products(accept: Accept, base: str) -> None:
    recipe = accept(base.replace(INT8, f"{STATIC}\n  {AWARE}"))
    assert recipe.stages["aware"].inputs() == ("student", "int8")
    chain = f"{STATIC}\n  {AWARE}\n  more: {{kind: finetune, start: aware}}\n  other: {{kind: finetune, start: int8}}"
    assert accept(base.replace(INT8, chain)).stages["more"].inputs() == ("aware",)


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        (f"{INT8}\n  {AWARE}", "stages.aware.start: 'int8' has linear: dynamic; training learns to live with integers"),
        (
            STATIC + "\n  " + AWARE.replace("kind: kl", "kind: attention, layers: {1: 1}"),
            "stages.aware.losses: attention compares keys and values, which 'int8' has absorbed",
        ),
        (
            f"{STATIC}\n  " + AWARE.replace("teacher: student", "teacher: int8"),
            "'int8' is a quantize stage; name one that trains, prunes or adopts",
        ),
    ],
)
def test_training_that_integers_do_not_fit_is_one_line(reject_change: Said, stages: str, why: str) -> None:
    line = reject_change(INT8, stages)
    assert line.startswith("recipe.yaml:19: stages.aware")
    assert why in line
