"""What a recipe may say of engines, and what one line it is told otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.recipe import Recipe
from compress.recipe.serving import BuildSection

Accept = Callable[..., Recipe]
Reject = Callable[..., str]

LAST = "measure: {export"


def with_stage(base: str, line: str) -> str:
    return base.replace(LAST, f"  engines: {{kind: build, {line}}}\n{LAST}")


def test_an_engine_is_fp16_and_for_all_that_is_exported_unless_told(base: str, accept: Accept) -> None:
    stage = accept(with_stage(base, "input: served")).stages["engines"]
    assert isinstance(stage, BuildSection)
    assert (stage.precisions, stage.models, stage.compute_capabilities) == (("fp16",), None, None)
    assert stage.inputs() == ("served",)


def test_a_capability_may_be_written_as_a_number(base: str, accept: Accept) -> None:
    stage = accept(with_stage(base, "input: served, compute_capabilities: [8.0, 12.0]")).stages["engines"]
    assert isinstance(stage, BuildSection)
    assert stage.compute_capabilities == ("8.0", "12.0")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("input: student", "stages.engines.input: 'student' is a distill stage; name an export stage"),
        ("input: served, models: [other]", "stages.engines.models: 'other' is not exported; stages.served.inputs"),
        ("input: none", "stages.engines: 'none' is no earlier stage"),
        ("input: served, batch_sizes: [8, 4, 32]", "batch_sizes: fewest, what is tuned for, most; got [8, 4, 32]"),
        ("input: served, lengths: [1, 2]", "lengths"),
        ("input: served, precisions: [int4]", "precisions"),
        (
            "input: served, precisions: [fp16, int8]",
            "stages.engines.precisions: int8 needs static scales, which 'teacher' has none of; name models from a "
            "quantize stage with linear: static, or trained from one (start:)",
        ),
        ("input: served, models: [int8], precisions: [fp8]", "fp8 needs static scales, which 'int8' has none of"),
        (
            'input: served, precisions: [fp8], compute_capabilities: ["8.6", "8.9", "8.0"]',
            "precisions: fp8 needs compute capability 8.9, not 8.6, 8.0; build it in a stage of its own",
        ),
        ("input: served, precisions: [fp16, fp16]", "each once"),
        ("input: served, compute_capabilities: [sm86]", "compute_capabilities"),
        ("input: served, builder: onnx", "builder"),
        ("input: served, buckets: 2, lengths: [1, 2, 3]", "buckets: several are planned from the data's lengths"),
        ("input: served, hardware_compatibility: all", "hardware_compatibility"),
        ("input: served, triton: {device: tpu}", "triton.device"),
    ],
)
def test_what_cannot_be_built_is_one_line(base: str, reject: Reject, line: str, said: str) -> None:
    assert said in reject(with_stage(base, line))


AFTER = {
    "int8": "",
    "aware": "  aware: {kind: distill, teacher: student, start: int8, losses: [{kind: kl}]}\n",
    "longer": "  aware: {kind: finetune, start: int8}\n  longer: {kind: finetune, start: aware}\n",
    "refreshed": "  aware: {kind: finetune, start: int8}\n  refreshed: {kind: refresh, input: aware, remove: x.csv}\n",
}
"""Models whose products are rounded, by the stages that make them behind `int8`."""


def with_rounded(base: str, model: str, linear: str) -> str:
    made = base.replace("input: student}", f"input: student, linear: {linear}}}").replace("control, int8]", f"{model}]")
    made = made.replace("  served:", f"{AFTER[model]}  served:").replace("[student, int8]", f"[student, {model}]")
    return made.replace("control: control, ", "")


@pytest.mark.parametrize("model", AFTER)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_static_models_are_built_with_rounded_products(base: str, accept: Accept, model: str, precision: str) -> None:
    line = f"input: served, models: [{model}], precisions: [fp16, {precision}]"
    stage = accept(with_stage(with_rounded(base, model, "static"), line)).stages["engines"]
    assert isinstance(stage, BuildSection)
    assert stage.precisions == ("fp16", precision)


def test_what_trains_in_floating_point_has_no_scales(base: str, reject: Reject) -> None:
    trained = base.replace("  served:", "  more: {kind: finetune, start: student}\n  served:")
    text = with_stage(
        trained.replace("control, int8]", "more]").replace("[student, int8]", "[more]"),
        "input: served, models: [more], precisions: [int8]",
    )
    assert "int8 needs static scales, which 'more' has none of" in reject(text.replace("control: control, ", ""))


def test_engines_are_no_input(base: str, reject: Reject) -> None:
    text = with_stage(base, "input: served").replace(LAST, f"  again: {{kind: export, inputs: [engines]}}\n{LAST}")
    assert "stages.again: 'engines' is a build stage, which leaves engines; name its input's" in reject(text)
