"""A step's losses: what they weigh as training goes on, of one teacher or several, over scores or layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

import fakes
from compress.errors import RecipeError
from compress.learner import Learner, Taught
from compress.methods import losses, rankings, schedules
from compress.models.bert4rec import Bert4Rec
from compress.recipe.losses import (
    KL,
    Attention,
    Hidden,
    LambdaLoss,
    Loss,
    MarginMSE,
    Ramp,
    RankNet,
    Relations,
    RelaxedRanking,
    Softmax,
)
from compress.recipe.training import DistillSection

ITEMS = 22
family = Bert4Rec()
NEW: list[Loss] = [
    KL(kind="kl", top=5, others=4),
    RelaxedRanking(kind="relaxed_ranking", top=5, others=4),
    RankNet(kind="ranknet", top=5, others=4),
    LambdaLoss(kind="lambda_loss", top=5, others=4),
    MarginMSE(kind="margin_mse", scaled=True),
    Attention(kind="attention", layers={1: 2}),
    Relations(kind="relations", layers={1: 2}, heads=4),
    Relations(kind="relations", layers={1: 1}, heads=2, of=("query-key", "value-value")),
]


def people() -> Any:
    return fakes.interactions_of([[(user + step) % ITEMS for step in range(5 + user % 4)] for user in range(12)], ITEMS)


def step_of(terms: Sequence[Loss], *teachers: Any, combine: str = "mean", **options: Any) -> tuple[Learner, Any]:
    model = fakes.tiny_model(items=ITEMS, **options)
    taught = Taught([(family, teacher) for teacher in teachers], combine) if teachers else None
    examples = family.examples(model, people(), 0)
    return Learner(family, model, terms, ITEMS, taught), examples.collate([examples[index] for index in range(6)])


def teacher(seed: int = 1, **options: Any) -> Any:
    return fakes.tiny_model(items=ITEMS, seed=seed, **options)


@pytest.mark.parametrize("attention", ["causal", "masked"])
@pytest.mark.parametrize("loss", NEW, ids=lambda loss: loss.kind)
def test_a_student_gets_nearer_by_every_loss(loss: Loss, attention: str) -> None:
    learner, batch = step_of([loss], teacher(attention=attention), attention=attention, num_hidden_layers=1)
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    learner.eval()  # the same draws and no dropout: nothing but the student changes

    def value() -> torch.Tensor:
        torch.manual_seed(0)
        found: torch.Tensor = learner(**batch)["loss"]
        return found

    before = value().item()
    for _ in range(30):
        optimizer.zero_grad()
        value().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert math.isfinite(before)
    assert value().item() < 0.9 * before


@pytest.mark.parametrize("loss", [each for each in NEW if each.kind in ("kl", "margin_mse", "attention", "relations")])
def test_a_student_that_is_its_teacher_has_lost_nothing(loss: Loss) -> None:
    same = loss.model_copy(update={"layers": {1: 1, 2: 2}}) if loss.reads_layers else loss
    learner, batch = step_of([same], teacher(seed=0))
    assert learner(**batch)["loss"].item() == pytest.approx(0, abs=1e-5)


def test_over_all_items_the_best_are_the_whole_catalogue() -> None:
    beside = teacher()
    whole, batch = step_of([KL(kind="kl", temperature=2)], beside)
    parts, _ = step_of([KL(kind="kl", temperature=2, top=ITEMS)], beside)
    assert parts(**batch)["loss"].item() == pytest.approx(whole(**batch)["loss"].item(), rel=1e-5)


def test_relaxed_ranking_is_of_the_teachers_order() -> None:
    beside = teacher()
    learner, batch = step_of([RelaxedRanking(kind="relaxed_ranking", top=3, others=0)], beside)
    student, theirs = (family.supervise(model, batch).scores() for model in (learner.model, beside))
    expected = rankings.relaxed_ranking(student.gather(1, theirs.topk(3, dim=1).indices), student[:, :0])
    torch.testing.assert_close(learner(**batch)["loss"], expected)


# --- schedules ---


@pytest.mark.parametrize(
    ("ramp", "values"),
    [
        (Ramp(to=3), {0: 1, 0.25: 1.5, 1: 3}),
        (Ramp(to=3, begin=0.5), {0.2: 1, 0.5: 1, 0.75: 2, 1: 3}),
        (Ramp(to=0, end=0.5), {0: 1, 0.25: 0.5, 0.5: 0, 0.9: 0}),
        (Ramp(to=3, shape="cosine"), {0: 1, 0.5: 2, 0.25: 1 + (1 - math.cos(math.pi / 4)), 1: 3}),
        (Ramp(to=3, shape="step", begin=0.4), {0.39: 1, 0.4: 3, 1: 3}),
    ],
)
def test_a_ramp_goes_from_one_number_to_another(ramp: Ramp, values: dict[float, float]) -> None:
    assert {at: schedules.at(ramp, 1, at) for at in values} == {
        at: pytest.approx(value) for at, value in values.items()
    }


def test_weight_and_temperature_change_as_training_goes_on() -> None:
    moving = KL(kind="kl", weight=2, temperature=4, schedule={"weight": Ramp(to=0), "temperature": Ramp(to=1)})
    beside, coming = teacher(), Softmax(kind="softmax", weight=0, schedule={"weight": Ramp(to=3)})
    learner, batch = step_of([moving, coming], beside)
    student, theirs = (family.supervise(model, batch).scores() for model in (learner.model, beside))
    labels = losses.softmax(student, family.supervise(learner.model, batch).labels_N)
    for progress, weight, temperature in ((0.0, 2.0, 4.0), (0.5, 1.0, 2.5), (1.0, 0.0, 1.0)):
        learner.progress = progress
        expected = weight * losses.kl(student, theirs, temperature) + 3 * progress * labels
        torch.testing.assert_close(learner(**batch)["loss"], expected)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "softmax", "schedule": {"temperature": {"to": 2}}}, "softmax has no temperature"),
        ({"kind": "kl", "schedule": {"temperature": {"to": 0}}}, "a temperature is above 0"),
        ({"kind": "kl", "schedule": {"weight": {"to": 1, "begin": 0.5, "end": 0.5}}}, "0.5 is not after begin"),
        ({"kind": "kl", "schedule": {"weight": {"to": -1}}}, "greater than or equal to 0"),
        ({"kind": "kl", "others": 4}, "without top, all items are compared already"),
        ({"kind": "kl", "weight": 0}, "weight: kl never counts; leave it out, or let schedule.weight raise it"),
        ({"kind": "kl", "weight": 0, "schedule": {"weight": {"to": 0}}}, "weight: kl never counts"),
        ({"kind": "relations", "layers": {1: 1}, "of": []}, "at least 1"),
    ],
)
def test_what_no_loss_can_be_is_said(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        DistillSection.model_validate({"kind": "distill", "teacher": "teacher", "start": "cut", "losses": [fields]})
    assert said in str(raised.value)


# --- several teachers ---


def test_several_teachers_scores_are_averaged() -> None:
    one, other = teacher(1), teacher(2, hidden_size=32)
    learner, batch = step_of([KL(kind="kl")], one, other)
    student, *theirs = (family.supervise(model, batch).scores() for model in (learner.model, one, other))
    expected = losses.kl(student, torch.stack(theirs).mean(dim=0), 1)
    torch.testing.assert_close(learner(**batch)["loss"], expected)


def test_who_knows_the_label_better_counts_for_more() -> None:
    one, other = teacher(1), teacher(2)
    learner, batch = step_of([KL(kind="kl")], one, other, combine="by_loss")
    student, first, second = (family.supervise(model, batch) for model in (learner.model, one, other))
    labels = student.labels_N
    probabilities = torch.stack(
        [(-functional.cross_entropy(each.scores(), labels, reduction="none")).exp() for each in (first, second)]
    )
    weights = probabilities / probabilities.sum(dim=0)
    mixed = weights[0][:, None] * first.scores() + weights[1][:, None] * second.scores()
    torch.testing.assert_close(learner(**batch)["loss"], losses.kl(student.scores(), mixed, 1))
    taught = learner.ask(batch)
    assert taught is not None
    torch.testing.assert_close(taught.label_scores(), mixed.gather(1, labels[:, None])[:, 0])


def test_a_teacher_twice_is_one_teacher() -> None:
    one = teacher(1)
    for combine in ("mean", "by_loss"):
        twice, batch = step_of([KL(kind="kl")], one, one, combine=combine)
        once, _ = step_of([KL(kind="kl")], one)
        torch.testing.assert_close(twice(**batch)["loss"], once(**batch)["loss"])


# --- layers that are there ---


@pytest.mark.parametrize(
    ("loss", "options", "said"),
    [
        (Hidden(kind="hidden", layers={0: 7}), {}, "losses: hidden names teacher layers [7]; the teacher has 0 to 2"),
        (Attention(kind="attention", layers={5: 1}), {}, "attention names student layers [5]; the student has 1 to 2"),
        (
            Attention(kind="attention", layers={1: 1}),
            {"num_attention_heads": 4},
            "attention: the student has 2 heads, the teacher 4; use relations",
        ),
        (
            Relations(kind="relations", layers={1: 1}, heads=3),
            {},
            "relations.heads: 3 do not divide the student's width",
        ),
    ],
)
def test_what_two_models_cannot_compare_is_one_line(loss: Loss, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        step_of([loss], teacher(**options))
    assert said in str(raised.value)


def test_relations_compare_different_widths_and_heads() -> None:
    learner, batch = step_of(
        [Relations(kind="relations", layers={2: 2}, heads=4)], teacher(hidden_size=32, num_attention_heads=1)
    )
    assert math.isfinite(learner(**batch)["loss"].item())


def test_a_loss_that_has_come_to_nothing_still_has_gradients() -> None:
    """Several processes wait for the gradient of every parameter."""
    gone = Hidden(kind="hidden", layers={1: 2}, schedule={"weight": Ramp(to=0)})
    learner, batch = step_of([KL(kind="kl"), gone], teacher())
    learner.progress = 1.0
    learner(**batch)["loss"].backward()
    assert all(parameter.grad is not None for parameter in learner.projections.parameters())
    assert all(not parameter.grad.any() for parameter in learner.projections.parameters())  # type: ignore[union-attr]
