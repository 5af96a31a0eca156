"""What must hold between the sections of a recipe over texts: said in one line before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.recipe import Recipe

Accept = Callable[..., Recipe]
Reject = Callable[..., str]

BASE = """\
name: texts
data: {source: synthetic}
candidates: retrieved
stages:
  texts: {kind: tokenize, tokenizer: {vocab_size: 200}}
  other: {kind: tokenize, tokenizer: {vocab_size: 300}}
  retrieved: {kind: retrieve, by: markov}
  teacher: {kind: finetune, model: {family: cross_encoder, texts: texts, max_length: 48}}
  tower: {kind: finetune, model: {family: two_tower, texts: texts, max_length: 48}}
"""
REHEARSED = BASE.replace("by: markov}", "by: markov, rehearsals: 3}") + (
    "  known: {kind: features, items: {numeric: [popularity]}}\n"
    "  reader: {kind: finetune, model: {family: cross_encoder, texts: other, max_length: 48}}\n"
    "  both: {kind: finetune, model: {family: hybrid, encoder: teacher, features: known}}\n"
)
KNOWN = "  known: {kind: features, items: {numeric: [popularity]}}\n"
CROSS = "family: cross_encoder, texts: texts, num_hidden_layers: 1, max_length: 48"
TOWERS = "family: two_tower, texts: texts, num_hidden_layers: 1, max_length: 48"


def student(model: str, teacher: str = "teacher", losses: str = "{kind: kl}") -> str:
    return f"{BASE}  student: {{kind: distill, teacher: {teacher}, model: {{{model}}}, losses: [{losses}]}}\n"


def stage(text: str) -> str:
    return f"{BASE}  more: {{{text}}}\n"


@pytest.mark.parametrize(
    "text",
    [
        BASE,
        student(CROSS),
        student(CROSS, losses="{kind: mse}").replace("losses: [", "cache: {top: 8}, losses: ["),
        student(f"{CROSS}, negatives: 3", losses="{kind: margin_mse}, {kind: hidden, layers: {1: 2}}, {kind: bce}"),
        student(f"{TOWERS}, in_batch: false, negatives: 3", losses="{kind: mse}"),
        student(TOWERS, teacher="tower"),
        stage("kind: finetune, start: teacher, loss: {kind: bce}"),
        stage("kind: adopt, path: ., model: {family: cross_encoder, texts: texts}"),
        stage("kind: retrieve, by: tower"),
    ],
)
def test_what_fits_is_accepted(accept: Accept, text: str) -> None:
    assert accept(text).name == "texts"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (student(TOWERS), "stages.student.model.in_batch: a cross-encoder teaches about each example's own items"),
        (student(f"{TOWERS}, negatives: 3"), "stages.student.model.in_batch: a cross-encoder teaches"),
        (student(f"{TOWERS}, in_batch: false"), "in_batch: false: there is nothing that an item is told from"),
        (student(CROSS, teacher="tower"), "stages.student.model.family: cross_encoder differs from its teacher's"),
        (student(CROSS.replace("texts: texts", "texts: other")), "stages.student.model.texts: other are not its"),
        (student(f"{TOWERS}, in_batch: false, negatives: 2".replace("texts: texts", "texts: other")), "model.texts: "),
        (student(CROSS, losses="{kind: gbce}"), "stages.student: gbce is no loss for a cross_encoder"),
        (
            stage("kind: finetune, start: tower, loss: {kind: sampled_softmax}"),
            "stages.more: sampled_softmax is no loss for a two_tower",
        ),
        (stage("kind: finetune, model: {family: two_tower, texts: retrieved}"), "'retrieved' is no tokenize stage"),
        (stage("kind: finetune, model: {family: two_tower, texts: nowhere}"), "'nowhere' is no earlier stage"),
        (stage("kind: retrieve, by: nowhere"), "'nowhere' is no earlier stage"),
        (stage("kind: retrieve, by: markov, candidates: 10"), "stages.more.candidates: "),
        (BASE.replace("candidates: retrieved", "candidates: texts"), "candidates: 'texts' is no retrieve stage"),
        (stage("kind: finetune, model: {family: cross_encoder, texts: texts, negatives: 0}"), "negatives: "),
        (stage("kind: finetune, model: {family: two_tower, texts: texts, hidden_size: 30}"), "hidden_size 30 is no"),
    ],
)
def test_what_does_not_fit_is_one_line(reject: Reject, text: str, said: str) -> None:
    assert said in reject(text)


def test_a_student_reads_no_longer_texts_than_its_teacher(reject: Reject) -> None:
    """It would hand the teacher batches with positions that the teacher does not have."""
    assert "stages.student.model.max_length: " in reject(student(CROSS.replace("48", "64")))
    towers = f"{TOWERS}, in_batch: false, negatives: 2".replace("48", "64")
    assert "stages.student.model.max_length: " in reject(student(towers))


@pytest.mark.parametrize("ours", ["in_batch: false, negatives: 3", "in_batch: true"])
def test_towers_and_the_towers_that_teach_them_score_the_same_items(reject: Reject, ours: str) -> None:
    theirs = "in_batch: true" if "false" in ours else "in_batch: false, negatives: 3"
    text = student(f"{TOWERS}, {ours}", teacher="tower")
    text = text.replace("max_length: 48}}\n  student", f"max_length: 48, {theirs}}}}}\n  student")
    assert theirs in text
    assert "stages.student.model.in_batch: " in reject(text)


@pytest.mark.parametrize("teacher", ["teacher", "tower"])
def test_hidden_states_of_towers_are_compared_with_nothing(reject: Reject, teacher: str) -> None:
    ours = f"{TOWERS}, in_batch: false, negatives: 2" if teacher == "teacher" else TOWERS
    assert "stages.student" in reject(student(ours, teacher, "{kind: kl}, {kind: hidden, layers: {1: 1}}"))


@pytest.mark.parametrize("family", ["cross_encoder", "two_tower"])
def test_the_texts_of_an_adopted_model_are_a_tokenize_stage(reject: Reject, family: str) -> None:
    text = stage(f"kind: adopt, path: ., model: {{family: {family}, texts: retrieved}}")
    assert "'retrieved' is no tokenize stage" in reject(text)


@pytest.mark.parametrize("by", ["texts", "retrieved"])
def test_what_retrieves_has_a_model(reject: Reject, by: str) -> None:
    assert "stages.more" in reject(stage(f"kind: retrieve, by: {by}"))


@pytest.mark.parametrize("source", ["teacher", "tower"])
def test_models_over_texts_are_not_refreshed(reject: Reject, source: str) -> None:
    assert "stages.more" in reject(stage(f"kind: refresh, input: {source}, remove: gone.csv"))


def hybrid(model: str, losses: str = "{kind: kl}", base: str = REHEARSED) -> str:
    return f"{base}  small: {{kind: distill, teacher: both, model: {{family: hybrid, {model}}}, losses: [{losses}]}}\n"


def test_a_hybrid_teaches_a_hybrid(accept: Accept) -> None:
    text = hybrid("encoder: teacher, features: known, join: attention", losses="{kind: kl}, {kind: mse}")
    assert accept(text).stages["small"].inputs() == ("both", "teacher", "known")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (hybrid("encoder: tower, features: known"), "stages.small.model.encoder: 'tower' is no cross_encoder stage"),
        (hybrid("encoder: texts, features: known"), "stages.small.model.encoder: 'texts' is no cross_encoder stage"),
        (hybrid("encoder: teacher, features: texts"), "stages.small.model.features: 'texts' is no features stage"),
        (
            hybrid("encoder: reader, features: known"),
            "stages.small.model: reads other, its teacher texts: it would be taught about other inputs",
        ),
        (hybrid("encoder: teacher, features: known", losses="{kind: gbce}"), "gbce"),
        (
            REHEARSED.replace("  known:", "  later:").replace("  retrieved:", f"{KNOWN}  retrieved:"),
            "stages.known: would count what is rehearsed; move it behind the retrieve stage",
        ),
        (
            hybrid(
                "encoder: long, features: known",
                base=REHEARSED
                + "  long: {kind: finetune, model: {family: cross_encoder, texts: texts, max_length: 64}}\n",
            ),
            "stages.small.model: reads 64 tokens; its teacher's encoder 48 at most",
        ),
        (
            REHEARSED.replace("numeric: [popularity]", "numeric: [popularity], categorical: [popularity]"),
            "popularity: numeric or categorical, not both",
        ),
        (
            REHEARSED.replace(", rehearsals: 3", ""),
            "stages.both: a hybrid learns from rehearsals: set them in the retrieve stage",
        ),
        (
            REHEARSED.replace("by: markov", "by: tower").replace("  tower:", "  later:"),
            "rehearsals: tower was trained on those items; only markov can be counted without",
        ),
        (REHEARSED.replace("{numeric: [popularity]}", "{}"), "features: names no column and no vectors"),
        (
            stage("kind: export, inputs: [known]").replace(
                "  more", "  known: {kind: features, vectors: v.npz}\n  more"
            ),
            "stages.more: 'known' is a features stage; name one that has weights",
        ),
    ],
)
def test_what_a_hybrid_lacks_is_said(reject: Reject, text: str, said: str) -> None:
    assert said in reject(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            student(CROSS).replace("losses: [", "cache: {}, losses: [{kind: relations, layers: {1: 1}}, "),
            "relations reads heads",
        ),
        (
            student(CROSS, losses="{kind: ranknet, top: 30}").replace("losses: [", "cache: {top: 20}, losses: ["),
            "cache.top: 20 items are kept, and ranknet reads 30",
        ),
        (
            student(CROSS).replace("losses: [", "cache: {}, losses: [{kind: hidden, layers: {1: 1}}, "),
            "stages.student.cache: keeps hidden states of examples, and a cross_encoder reads several pairs of each",
        ),
        (
            hybrid("encoder: teacher, features: known").replace(
                "losses: [", "cache: {}, losses: [{kind: hidden, layers: {1: 1}}, "
            ),
            "stages.small.cache: keeps hidden states of examples, and a hybrid reads several pairs of each",
        ),
        (
            student(CROSS, losses="{kind: margin_mse}").replace("losses: [", "cache: {top: 7}, losses: ["),
            "stages.student.cache: margin_mse compares every score with the teacher's, of which the best 7 are kept",
        ),
        (
            stage("kind: distill, teacher: items, start: items, cache: {top: 5000}, losses: [{kind: mse}]").replace(
                "  more", "  items: {kind: finetune, model: {family: bert4rec}}\n  more"
            ),
            "stages.more.cache: mse compares every score with the teacher's, of which the best 5000 are kept",
        ),
        (
            student(f"{CROSS}, checkpoint: bert-base-uncased").replace(
                "losses: [", "initialize: {layers: last}, losses: ["
            ),
            "stages.student: initialize: is of a fresh model, and this one begins trained; leave it out",
        ),
        (student(TOWERS, teacher="tower").replace("losses: [", "cache: {}, losses: ["), "in_batch"),
        (
            stage("kind: distill, teacher: tower, start: tower, cache: {}, losses: [{kind: kl}]"),
            "stages.more.cache: with in_batch an example's scores depend on the batch it is in",
        ),
        (student(CROSS).replace("teacher: teacher", "teacher: []"), "teacher"),
        (student(CROSS).replace("teacher: teacher", "teacher: [teacher, teacher]"), "teacher"),
        (
            student(CROSS).replace("teacher: teacher", "teacher: [teacher, tower]"),
            "stages.student.model.family: cross_encoder differs from its teacher's two_tower",
        ),
    ],
)
def test_what_cannot_be_remembered_or_taught_together_is_said(reject: Reject, text: str, said: str) -> None:
    assert said in reject(text)
