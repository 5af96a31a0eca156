"""What a recipe that prunes must say, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.recipe import Recipe

Accept = Callable[..., Recipe]
Reject = Callable[..., str]

BASE = """\
name: pruning
data: {source: synthetic}
candidates: retrieved
stages:
  texts: {kind: tokenize, tokenizer: {vocab_size: 200}}
  retrieved: {kind: retrieve, by: markov}
  teacher: {kind: finetune, model: {family: cross_encoder, texts: texts, max_length: 48}}
  profile: {kind: profile, input: teacher, batch_sizes: [1, 32]}
  tower: {kind: finetune, model: {family: two_tower, texts: texts, max_length: 48}}
  oneway: {kind: finetune, model: {family: cross_encoder, texts: texts, max_length: 48, attention: one_way}}
  items: {kind: finetune, model: {family: bert4rec}}
  small: {kind: prune, input: teacher, vocabulary: true}
  half: {kind: prune, input: teacher, budget: {latency: 0.5, profile: profile}}
"""


def more(text: str) -> str:
    return f"{BASE}  more: {{{text}}}\n"


HYBRID = BASE.replace("by: markov}", "by: markov, rehearsals: 3}") + (
    "  known: {kind: features, items: {numeric: [popularity]}}\n"
    "  both: {kind: finetune, model: {family: hybrid, encoder: half, features: known}}\n"
)


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        HYBRID,
        more("kind: distill, start: half, teacher: teacher, losses: [{kind: kl}]"),
        more("kind: prune, input: half, budget: {parameters: 0.3}, rescale: null, importance: {kind: magnitude}"),
        more("kind: quantize, input: half"),
        more("kind: export, inputs: [teacher, half, small]"),
        more("kind: distill, start: small, teacher: small, losses: [{kind: kl}]"),
        more("kind: prune, input: small, budget: {latency: 0.5, profile: profile, batch_size: 32}"),
        more("kind: distill, start: half, teacher: teacher, losses: [{kind: hidden, layers: {1: 2}}]"),
        more("kind: distill, start: small, teacher: small, losses: [{kind: attention, layers: {1: 2}}]"),
        more("kind: prune, input: tower, budget: {bytes: 0.5}"),
        more("kind: prune, input: oneway, budget: {bytes: 0.5}, hidden_sizes: [192]"),
        more("kind: prune, input: items, positions: true"),
    ],
)
def test_what_fits_is_accepted(accept: Accept, text: str) -> None:
    accept(text=text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: prune, input: teacher", "budget, vocabulary or positions: name what is cut"),
        ("kind: prune, input: teacher, budget: {}", "name one of them; got none"),
        ("kind: prune, input: teacher, budget: {flops: 0.5, bytes: 0.5}", "name one of them; got bytes, flops"),
        ("kind: prune, input: teacher, budget: {latency: 0.5}", "latency and profile belong together"),
        ("kind: prune, input: teacher, budget: {flops: 0.5, profile: profile}", "latency and profile belong together"),
        ("kind: prune, input: teacher, budget: {flops: 0.5, batch_size: 1}", "batch_size: is a profile's; name one"),
        ("kind: prune, input: teacher, budget: {flops: 1.5}", "less than or equal to 1"),
        ("kind: prune, input: texts, budget: {flops: 0.5}", "'texts' is a tokenize stage"),
        ("kind: prune, input: profile, budget: {flops: 0.5}", "'profile' is a profile stage"),
        ("kind: prune, input: teacher, budget: {latency: 0.5, profile: half}", "'half' is no profile stage"),
        (
            "kind: prune, input: teacher, budget: {latency: 0.5, profile: profile, batch_size: 8}",
            "batch_size: 8 is not profiled; [1, 32] are",
        ),
        ("kind: export, inputs: [profile]", "'profile' is a profile stage; name one that has weights"),
        (
            "kind: distill, start: small, teacher: teacher, losses: [{kind: kl}]",
            "reads small, its teacher texts: it would be taught about other inputs",
        ),
        (
            "kind: prune, input: teacher, budget: {bytes: 0.5}, importance: {kind: learned}, hidden_sizes: [64]",
            "gates stand at heads, neurons and layers",
        ),
        (
            "kind: prune, input: teacher, budget: {bytes: 0.5}, importance: {kind: learned}, rescale: {ridge: 0.1}",
            "the weights have been trained with the gates",
        ),
        ("kind: prune, input: teacher, vocabulary: true, importance: {kind: learned}", "gates learn a budget"),
        (
            "kind: prune, input: teacher, budget: {bytes: 0.5}, importance: {kind: fisher, loss: {kind: gbce}}",
            "stages.more.importance: gbce is no loss for a cross_encoder",
        ),
        (
            "kind: prune, input: tower, budget: {latency: 0.5, profile: profile}",
            "budget.profile: has timed a cross_encoder; 'tower' is a two_tower",
        ),
        (
            "kind: prune, input: teacher, budget: {latency: 0.5, profile: profile}, hidden_sizes: [64]",
            "hidden_sizes: 64 is not among stages.profile.hidden_sizes; add it",
        ),
        ("kind: profile, input: teacher, length: 1", "greater than or equal to 2"),
        (
            "kind: profile, input: oneway",
            "stages.more: 'oneway' reads attention: one_way, so that its layers compute users once, not per candidate, "
            "and a table of layers cannot tell; prune it by parameters, bytes or flops",
        ),
        (
            "kind: prune, input: items, vocabulary: true",
            "stages.more.vocabulary: a bert4rec's tokens are its items; data.min_interactions cuts rare ones",
        ),
        (
            "kind: prune, input: half, budget: {bytes: 0.5}, hidden_sizes: [192, 768]",
            "stages.more.hidden_sizes: 768 is wider than the model, 384",
        ),
        (
            "kind: prune, input: tower, budget: {bytes: 0.5}, importance: {kind: taylor, batch_size: 1}",
            "stages.more.importance.batch_size: 1: with in_batch and no negatives an item is told from those of other "
            "examples; name 2 or more",
        ),
        ("kind: finetune, start: tower, batch_size: 1", "stages.more.batch_size: 1: with in_batch and no negatives"),
        (
            "kind: prune, input: teacher, budget: {bytes: 0.5}, "
            "importance: {kind: learned, losses: [{kind: hidden, layers: {1: 3}}]}",
            "stages.more.importance: hidden names teacher layers [3]; the teacher has 0 to 2",
        ),
        (
            "kind: prune, input: half, budget: {bytes: 0.5}, "
            "importance: {kind: learned, losses: [{kind: relations, layers: {1: 1}}]}",
            "stages.more.importance: relations: compares heads, and a pruned model's layers have others; use hidden",
        ),
        (
            "kind: distill, start: half, teacher: teacher, losses: [{kind: attention, layers: {1: 1}}]",
            "stages.more.losses: attention: compares heads, and a pruned model's layers have others; use hidden",
        ),
        (
            "kind: distill, start: half, teacher: teacher, losses: [{kind: hidden, layers: {3: 1}}]",
            "stages.more.losses: hidden names student layers [3]; the student has 0 to 2",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(reject: Reject, text: str, said: str) -> None:
    assert said in reject(text=more(text))


def test_a_hybrid_is_pruned_by_its_encoder(reject: Reject) -> None:
    said = reject(text=HYBRID + "  less: {kind: prune, input: both, budget: {bytes: 0.5}}\n")
    assert "stages.less: a hybrid is not cut; prune the encoder that it begins as" in said


def test_a_hybrid_over_a_pruned_encoder_is_pruned(reject: Reject) -> None:
    less = "  less: {kind: distill, start: both, teacher: both, losses: [{kind: relations, layers: {1: 1}}]}\n"
    assert "stages.less.losses: relations: compares heads" in reject(text=HYBRID + less)


def test_a_hybrid_over_a_smaller_vocabulary_is_taught_by_one_over_the_same(reject: Reject) -> None:
    text = HYBRID.replace("encoder: half", "encoder: small")
    text += "  whole: {kind: finetune, model: {family: hybrid, encoder: teacher, features: known}}\n"
    text += "  taught: {kind: distill, start: both, teacher: whole, losses: [{kind: kl}]}\n"
    assert "reads small, its teacher texts: it would be taught about other inputs" in reject(text=text)


def test_labels_are_learned_one_at_a_time(reject: Reject, accept: Accept) -> None:
    text = """\
name: labels
data: {source: csv, path: clicks.csv, columns: {rating: label}, positive_rating: 1, split: time}
stages:
  texts: {kind: tokenize, tokenizer: {vocab_size: 200}, item: "{item_id}"}
  teacher: {kind: finetune, model: {family: cross_encoder, texts: texts, max_length: 48}, loss: {kind: bce}}
"""
    half = "  half: {kind: prune, input: teacher, budget: {bytes: 0.5}"
    assert "stages.half: importance: softmax compares items" in reject(text=text + half + "}\n")
    assert "stages.half: importance: kl compares items" in reject(text=text + half + ", importance: {kind: learned}}\n")
    accept(text=text + half + ", importance: {kind: fisher, loss: {kind: bce}}}\n")
    accept(text=text + half + ", importance: {kind: learned, losses: [{kind: mse}]}}\n")
    fitted = "losses: [{kind: hidden, layers: {1: 1}}, {kind: mse}]"  # an example is one pair, with one score
    accept(text=f"{text}  other: {{kind: distill, start: teacher, teacher: teacher, cache: {{top: 2}}, {fitted}}}\n")


def test_no_other_tool_reads_a_pruned_teacher(reject: Reject) -> None:
    text = BASE + "  served: {kind: export, inputs: [half]}\n"
    text += "measure: {export: served, teacher: half, candidates: [half], peers: [st-onnx]}\n"
    assert "measure.peers: no other tool reads 'half', which was pruned" in reject(text=text)


def test_models_are_held_to_the_profile_that_they_were_cut_by(accept: Accept) -> None:
    text = BASE + "  other: {kind: profile, input: teacher}\n"
    text += "  eighth: {kind: prune, input: teacher, budget: {latency: 0.125, profile: other}}\n"
    text += "  recovered: {kind: finetune, start: half}\n"
    text += "  int8: {kind: quantize, input: recovered}\n"
    text += "  taught: {kind: distill, start: teacher, teacher: half, losses: [{kind: kl}]}\n"
    text += "  served: {kind: export, inputs: [teacher, LISTED]}\n"
    text += "measure: {export: served, teacher: teacher, candidates: [teacher]}\n"

    def profile(listed: str, *overrides: str) -> str | None:
        measure = accept(text.replace("LISTED", listed), *overrides).measured
        assert measure
        assert measure.profile is None or measure.profile in measure.inputs()
        return measure.profile

    assert profile("half") == profile("int8") == profile("half, int8") == "profile"
    assert profile("half, eighth") is None, "it could be either"
    assert profile("small, taught") is None, "nothing was cut by one"
    assert profile("half, eighth", "measure.profile=other") == "other"
    assert profile("half", "measure.profile=") is None


def test_measured_predictions_are_a_profiles(reject: Reject) -> None:
    text = BASE + "  served: {kind: export, inputs: [teacher, half]}\n"
    text += "measure: {export: served, teacher: teacher, candidates: [half], profile: half}\n"
    assert "measure.profile: 'half' is no profile stage" in reject(text=text)
