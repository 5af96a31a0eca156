"""What must hold between the sections of a recipe, each told with the line of the section that breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from compress.recipe import Recipe

Accept = Callable[..., Recipe]
Reject = Callable[..., str]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("input: student}", "input: studnet}", "18: stages.int8: 'studnet' is no earlier stage"),
        ("input: student}", "input: served}", "18: stages.int8: 'served' is no earlier stage"),
        ("input: student}", "input: int8}", "18: stages.int8: 'int8' is no earlier stage"),
        ("input: student}", "input: data}", "18: stages.int8: 'data' is no earlier stage"),
    ],
)
def test_a_stage_names_only_earlier_stages(reject_change: Reject, old: str, new: str, said: str) -> None:
    assert reject_change(old, new) == f"recipe.yaml:{said}; earlier stages: teacher, student, control"


def test_the_first_stage_has_no_earlier_ones(reject: Reject) -> None:
    said = reject("name: a\ndata: {source: synthetic}\nstages:\n  b: {kind: quantize, input: c}\n")
    assert said == "recipe.yaml:4: stages.b: 'c' is no earlier stage; earlier stages: none"


def test_where_embeddings_start_is_asked_of_fresh_models(reject: Reject, base: str) -> None:
    late = "  late: {kind: finetune, start: student, item_embeddings: random}\nmeasure:"
    assert "item_embeddings: beside start, whose model has its own" in reject(base.replace("measure:", late, 1))


def test_a_gate_asks_for_batches_that_are_timed(accept: Accept, reject: Reject, base: str) -> None:
    asked = base.replace("min_speedup: {1: 2}", "min_speedup: {1: 2, 8: 4}")
    assert reject(asked).endswith(": gate.latency: batch 8 is not timed; measure.batch_sizes: [1, 32]")
    accept(asked.replace("measure: {", "measure: {batch_sizes: [1, 8], "))


@pytest.mark.parametrize("name", ["data", "measure", "report"])
def test_a_stage_cannot_take_a_name_every_recipe_has(reject_change: Reject, name: str) -> None:
    assert reject_change("  control:", f"  {name}:") == (
        f"recipe.yaml:17: stages.{name}: the name is taken by a stage every recipe has; choose another"
    )


@pytest.mark.parametrize("kind", ["quantize, input", "distill, model: *student, losses: [{kind: kl}], teacher"])
def test_an_export_has_no_weights_to_start_from(reject: Reject, base: str, kind: str) -> None:
    late = "  late: {kind: " + kind + ": served}\nmeasure:"
    said = reject(base.replace("measure:", late, 1))
    assert said.startswith("recipe.yaml:20: stages.late")
    assert "'served' is a" in said
    assert "export stage; name one that" in said


REFRESH = "  tonight: {kind: refresh, input: int8, add: new.csv}\n"


def test_a_refresh_is_exported_and_measured(accept: Accept, base: str) -> None:
    served = base.replace("  served:", REFRESH + "  served:").replace("control, int8]", "control, int8, tonight]")
    recipe = accept(served, "measure.candidates=[int8, tonight]")
    assert recipe.stages["served"].inputs()[-1] == "tonight"
    assert recipe.stages["tonight"].inputs() == ("int8",)


@pytest.mark.parametrize("kind", ["quantize", "refresh, add: later.csv"])
def test_only_export_reads_a_refresh(reject: Reject, base: str, kind: str) -> None:
    late = REFRESH + "  late: {kind: " + kind + ", input: tonight}\nmeasure:"
    assert reject(base.replace("measure:", late, 1)) == (
        "recipe.yaml:21: stages.late: 'tonight' is a refresh stage, which only export reads; name its input, 'int8'"
    )


def test_a_refresh_starts_from_weights(reject: Reject, base: str) -> None:
    late = "  late: {kind: refresh, input: served, add: new.csv}\nmeasure:"
    assert reject(base.replace("measure:", late, 1)) == (
        "recipe.yaml:20: stages.late: 'served' is an export stage; name one that has weights"
    )


def test_a_refresh_changes_something(reject: Reject, base: str) -> None:
    late = "  late: {kind: refresh, input: int8, rows: text}\nmeasure:"
    assert reject(base.replace("measure:", late, 1)) == (
        "recipe.yaml:20: stages.late: name a file of items to add, or one of items to remove"
    )


def test_a_teacher_is_a_stage_that_trains_or_adopts(reject: Reject, base: str) -> None:
    late = "  late: {kind: distill, model: *student, losses: [{kind: kl}], teacher: int8}\nmeasure:"
    assert reject(base.replace("measure:", late, 1)) == (
        "recipe.yaml:20: stages.late.teacher: 'int8' is a quantize stage; name one that trains, prunes or adopts"
    )


CHECKPOINT = "{family: bert4rec, attention: masked, alignment: left, max_length: 50, pad_token: 0, mask_token: 1}"


def test_an_adopted_teacher_says_how_it_was_trained(accept: Accept, reject: Reject, base: str) -> None:
    adopt = f"stages:\n  own: {{kind: adopt, path: own, model: {CHECKPOINT}}}\n"
    text = base.replace("stages:\n", adopt, 1)
    student = "  late: {kind: distill, model: *student, losses: [{kind: kl}], teacher: own}\nmeasure:"
    assert "stages.late.model.attention: causal differs from its teacher's masked" in reject(
        text.replace("measure:", student, 1)
    )
    begun = "  late: {kind: distill, start: own, losses: [{kind: kl}], teacher: own}\nmeasure:"
    assert accept(text.replace("measure:", begun, 1)).stages["late"].inputs() == ("own",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("mask_token: null", "mask_token goes with attention: masked"),
        ("attention: causal", "mask_token goes with attention: masked"),
        ("tokens: a.csv, token_offset: 1", "tokens and token_offset both say"),
    ],
)
def test_a_checkpoint_is_described_once_and_wholly(reject: Reject, base: str, change: str, said: str) -> None:
    checkpoint = CHECKPOINT
    for part in change.split(", "):
        key = part.partition(":")[0]
        checkpoint = re.sub(rf"{key}: \w+", part, checkpoint) if key in checkpoint else f"{checkpoint[:-1]}, {part}}}"
    assert said in reject(
        base.replace("stages:\n", f"stages:\n  own: {{kind: adopt, path: own, model: {checkpoint}}}\n", 1)
    )


@pytest.mark.parametrize("start", ["model: *student, start: student", ""])
def test_training_starts_from_a_fresh_model_or_from_a_stage(reject: Reject, base: str, start: str) -> None:
    late = f"  late: {{kind: finetune, {start}}}\nmeasure:"
    assert reject(base.replace("measure:", late, 1)).endswith(
        "stages.late: model or start: a fresh model, or an earlier stage's; name one of them"
    )


def test_training_starts_from_a_stage_that_trains_or_adopts(accept: Accept, reject: Reject, base: str) -> None:
    late = "  late: {kind: finetune, start: student}\nmeasure:"
    assert accept(base.replace("measure:", late, 1)).stages["late"].inputs() == ("student",)
    said = reject(base.replace("measure:", late.replace("start: student", "start: int8"), 1))
    assert said == (
        "recipe.yaml:20: stages.late.start: 'int8' has linear: dynamic; training learns to live with integers of "
        "linear: static alone"
    )
    said = reject(base.replace("measure:", late.replace("start: student", "start: served"), 1))
    assert said == "recipe.yaml:20: stages.late: 'served' is an export stage; name one that has weights"


def test_a_student_can_be_a_teacher(accept: Accept, base: str) -> None:
    late = "  late: {kind: distill, model: *student, losses: [{kind: kl}], teacher: student}\nmeasure:"
    assert accept(base.replace("measure:", late, 1)).stages["late"].inputs() == ("student",)


def test_student_and_teacher_attend_alike(reject_change: Reject) -> None:
    assert reject_change("hidden_size: 4", "attention: masked") == (
        "recipe.yaml:13: stages.student.model.attention: masked differs from its teacher's causal"
    )


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("hidden, layers: {2: 2}", "hidden names student layers [2]; the student has 0 to 1"),
        ("hidden, layers: {-1: 2}", "hidden names student layers [-1]; the student has 0 to 1"),
        ("hidden, layers: {1: 3}", "hidden names teacher layers [3]; the teacher has 0 to 2"),
        ("hidden, layers: {0: 0, 1: -1}", "hidden names teacher layers [0, -1]; the teacher has 0 to 2"),
        ("attention, layers: {0: 1}", "attention names student layers [0]; the student has 1 to 1"),
        ("relations, layers: {1: 1}, heads: 8", "relations.heads: 8 do not divide the student's width, 4"),
    ],
)
def test_matched_layers_exist_and_can_be_compared(reject: Reject, base: str, loss: str, said: str) -> None:
    old = "hidden, layers: {1: 2}"
    assert reject(base.replace(old, loss)) == f"recipe.yaml:14: stages.student.losses: {said}"
    later = f"  late: {{kind: distill, teacher: teacher, start: student, losses: [{{kind: {loss}}}]}}\nmeasure:"
    assert reject(base.replace("measure:", later, 1)) == f"recipe.yaml:20: stages.late.losses: {said}"


def test_attention_is_that_of_as_many_heads(reject: Reject, base: str) -> None:
    text = base.replace("hidden, layers", "attention, layers").replace("hidden_size: 4", "hidden_size: 4, {}")
    said = "recipe.yaml:14: stages.student.losses: attention: the student has 1 heads, the teacher 2; use relations"
    assert reject(text.replace("{}", "num_attention_heads: 1")) == said


@pytest.mark.parametrize(
    "loss", ["hidden, layers: {0: 0, 1: 2}", "attention, layers: {1: 1}", "relations, layers: {1: 2}, heads: 4"]
)
def test_embeddings_and_last_layers_can_be_matched(accept: Accept, base: str, loss: str) -> None:
    assert accept(base.replace("hidden, layers: {1: 2}", loss))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            "[0, 1]",
            "10: stages.student: initialize.layers lists 2 teacher layers for 1 student layers (with --set "
            "stages.student.initialize.layers=[0, 1])",
        ),
        ("[2]", "10: stages.student.initialize.layers: [2]; the teacher has 0 to 1"),
        ("[-1]", "10: stages.student.initialize.layers: [-1]; the teacher has 0 to 1"),
        (
            "last",
            "10: stages.student.initialize.layers: the student is 4 wide, its teacher 8: layers seed a student as "
            "wide, or a narrower one with width: important-units; leave layers out",
        ),
    ],
)
def test_seeding_layers_exist_and_go_over(reject: Reject, base: str, layers: str, said: str) -> None:
    assert reject(base, f"stages.student.initialize.layers={layers}") == f"recipe.yaml:{said}"


@pytest.mark.parametrize(
    "change",
    [
        "initialize: {layers: last, width: important-units}",
        "initialize: {width: random}",
        "model: {family: bert4rec, hidden_size: 8, num_hidden_layers: 1}, initialize: {layers: [1]}",
    ],
)
def test_layers_seed_who_is_as_wide_or_takes_units(accept: Accept, base: str, change: str) -> None:
    made = change if "model" in change else f"model: *student, {change}"
    late = f"  late: {{kind: distill, teacher: teacher, {made}, losses: [{{kind: kl}}]}}\nmeasure:"
    assert accept(base.replace("measure:", late, 1))


def test_who_begins_trained_is_not_seeded(accept: Accept, reject: Reject, base: str) -> None:
    late = "  late: {kind: distill, teacher: teacher, start: student, losses: [{kind: kl}], initialize: null}\nmeasure:"
    assert accept(base.replace("measure:", late, 1))
    assert reject(base.replace("measure:", late.replace("null", "{layers: last}"), 1)) == (
        "recipe.yaml:20: stages.late: initialize: is of a fresh model, and this one begins trained; leave it out"
    )


def test_heads_divide_the_width(reject_change: Reject) -> None:
    assert reject_change("hidden_size: 8", "num_attention_heads: 3, hidden_size: 8") == (
        "recipe.yaml:7: stages.teacher.model: hidden_size 8 is no multiple of num_attention_heads 3"
    )


def test_a_smallest_rating_needs_a_column_of_ratings(reject_change: Reject, accept: Accept, base: str) -> None:
    assert reject_change("source: csv", "source: csv, min_rating: 4") == (
        "recipe.yaml:3: data: min_rating and positive_rating need columns.rating, which they are compared with"
    )
    assert accept(base.replace("user: who", "rating: stars"), "data.min_rating=4")


@pytest.mark.parametrize("name", ["markov", "popularity", "targets", "history_length", "teacher-eager"])
def test_no_stage_takes_the_name_of_a_row_of_the_report(reject: Reject, base: str, name: str) -> None:
    assert f"stages.{name}: the name is taken by a row" in reject(base.replace("int8", name))


@pytest.mark.parametrize("seeds", ["-1", "[]", "[0, 0]", "[1, -1]", "4294967296"])
def test_seeds_are_different_numbers_from_0(reject_change: Reject, seeds: str) -> None:
    listed = seeds if seeds.startswith("[") else f"[{seeds}]"
    assert reject_change("seed: 0", f"seed: {seeds}") == (
        f"recipe.yaml:2: seed: {listed}: one or several different numbers from 0 to 4294967295"
    )


def test_one_seed_is_several_of_one(accept: Accept, base: str) -> None:
    assert accept(base).seeds == accept(base, "seed=[0]").seeds == (0,)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("measure.export=servd", "20: measure.export: 'servd' is no export stage; export stages: ['served']"),
        ("measure.export=int8", "20: measure.export: 'int8' is no export stage; export stages: ['served']"),
        (
            "stages.served.top_k=9",
            "20: measure.export: stages.served.top_k is 9; metrics at 10 need at least 10",
        ),
        (
            "stages.served.inputs=[teacher, student, control]",
            "20: measure.candidates: 'int8' is not exported; stages.served.inputs: ['teacher', 'student', 'control']",
        ),
        (
            "stages.served.inputs=[teacher, student, int8]",
            "20: measure.control: 'control' is not exported; stages.served.inputs: ['teacher', 'student', 'int8']",
        ),
        (
            "measure.control=[control, nobody]",
            "20: measure.control: 'nobody' is not exported; "
            "stages.served.inputs: ['teacher', 'student', 'control', 'int8']",
        ),
        (
            "measure.teacher=nobody",
            "20: measure.teacher: 'nobody' is not exported; "
            "stages.served.inputs: ['teacher', 'student', 'control', 'int8']",
        ),
        (
            "measure.teacher=int8",
            "20: measure.teacher: 'int8' is a quantize stage; name one that trains, prunes or adopts",
        ),
        ("measure=", "21: gate: there is no measure section whose numbers it could judge"),
    ],
)
def test_what_is_measured_is_exported_first(reject: Reject, base: str, override: str, said: str) -> None:
    assert reject(base, override) == f"recipe.yaml:{said}"


def test_measuring_needs_no_gate_and_no_control(accept: Accept, base: str) -> None:
    recipe = accept(base, "gate=", "measure.control=")
    assert recipe.measure
    assert (recipe.gate, recipe.measure.control, recipe.measure.controls) == (None, None, ())


def test_a_control_is_one_of_several_trials(accept: Accept, base: str) -> None:
    for said, meant in (
        ("control", ("control",)),
        ("[control]", ("control",)),
        ("[control, int8]", ("control", "int8")),
    ):
        measure = accept(base, f"measure.control={said}").measure
        assert measure
        assert measure.controls == meant


def test_training_alone_is_a_recipe(accept: Accept) -> None:
    recipe = accept("name: a\ndata: {source: synthetic}\nstages: {b: {kind: finetune, model: {family: bert4rec}}}")
    assert (recipe.measure, recipe.gate, list(recipe.stages)) == (None, None, ["b"])


def test_a_student_reads_no_more_items_than_its_teacher(reject_change: Reject) -> None:
    assert reject_change("hidden_size: 4", "max_length: 300") == (
        "recipe.yaml:13: stages.student.model.max_length: 300 items; its teacher reads 100 at most"
    )


LABELLED = """\
name: a
data: {source: synthetic, positive_rating: 4, split: time, refused: 0.3}
stages:
  texts: {kind: tokenize, tokenizer: {vocab_size: 200}}
  teacher: {kind: finetune, model: {family: cross_encoder, texts: texts}, epochs: 1, loss: {kind: bce}}
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "family: cross_encoder, texts: texts",
            "family: bert4rec",
            "a bert4rec ranks a catalogue and predicts no labels",
        ),
        ("family: cross_encoder", "family: two_tower", "a two_tower ranks a catalogue and predicts no labels"),
        (", loss: {kind: bce}", "", "stages.teacher: softmax compares items; labels are learned by bce"),
        (
            "split: time",
            "split: leave-one-out",
            "positive_rating: labels are predicted of what came later; split: time",
        ),
        ("positive_rating: 4, ", "", "split: time is for data with labels; name positive_rating"),
        ("refused: 0.3", "min_rating: 2", "positive_rating and min_rating: what is rated below is a no"),
        ("  teacher:", "  found: {kind: retrieve, by: markov}\n  teacher:", "stages.found: with data.positive_rating"),
    ],
)
def test_labels_are_predicted_of_pairs_one_at_a_time(
    accept: Accept, reject: Reject, old: str, new: str, said: str
) -> None:
    accept(LABELLED)
    assert said in reject(LABELLED.replace(old, new, 1))
