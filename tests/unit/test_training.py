"""Training: it learns, it distils, and a run killed at any moment ends where an uninterrupted one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, set_seed

import fakes
from compress import callbacks, models, training
from compress.callbacks import WHOLE
from compress.data.interactions import Interactions
from compress.errors import DataError, RecipeError, RecPressError
from compress.evaluation import evaluate, plain
from compress.learner import Learner, Taught
from compress.methods import cutting, losses
from compress.methods.cutting import Kept
from compress.models.bert4rec import Bert4Rec
from compress.models.family import Examples
from compress.recipe.losses import GBCE, KL, Hidden, Loss, SampledSoftmax, Softmax
from compress.recipe.training import EarlyStopping, FinetuneSection
from compress.stage import Workspace
from compress.training import learn, train

ITEMS = 24
ATTENTIONS = ("causal", "masked")
SOFTMAX = Softmax(kind="softmax")
family = Bert4Rec()
State = dict[str, Tensor]


def walks(users: int = 24) -> Interactions:
    """Everybody goes round the catalogue, each from another item on: what comes next is certain."""
    return fakes.interactions_of(
        [[(user + step) % ITEMS for step in range(6 + user % 5)] for user in range(users)], ITEMS
    )


def section(**options: Any) -> FinetuneSection:
    fields = {"epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "warmup_steps": 2, "checkpoint_seconds": 1e9}
    return FinetuneSection.model_validate({"kind": "finetune", "model": fakes.tiny_section(), **fields, **options})


def fresh(seed: int = 0, **options: Any) -> BertForMaskedLM:
    set_seed(seed)
    return family.build(fakes.tiny_section(**options), ITEMS)


def workspace(folder: Path, seed: int = 0) -> Workspace:
    return Workspace(folder, seed)


def no_validation() -> dict[str, float]:
    raise AssertionError("a fixed schedule asks nobody")


def weights(module: nn.Module) -> State:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not one[name].equal(other[name])]
    assert not different


def run(
    folder: Path,
    terms: Sequence[Loss] = (SOFTMAX,),
    seed: int = 0,
    teacher: BertForMaskedLM | None = None,
    wrap: Callable[[Examples], Examples] = lambda examples: examples,
    validate: training.Validate = no_validation,
    model: dict[str, Any] | None = None,
    people: Interactions | None = None,
    cut: Callable[[BertForMaskedLM], None] = lambda model: None,
    **options: Any,
) -> tuple[Learner, dict[str, float]]:
    """Trains a fresh tiny model, on walks if nobody else is named. Args: cut: what it has lost before."""
    student = fresh(seed, **(model or {}))
    cut(student)
    learner = Learner(family, student, terms, ITEMS, Taught([(family, teacher)]) if teacher else None)
    examples = family.examples(student, people or walks(), seed)
    facts = train(learner, wrap(examples), section(**options), workspace(folder, seed), validate)
    return learner, facts


class Killed(Exception):
    """Stands for a kill: nothing gets to clean up."""


class Mortal(Examples):
    """Examples whose process dies when batch number `batches` is asked for."""

    def __init__(self, examples: Examples, batches: int) -> None:
        self.examples = examples
        self.left = batches

    def set_epoch(self, epoch: int) -> None:
        self.examples.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index]

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return self.examples.collate(examples)


def killed(folder: Path, batches: int, **options: Any) -> None:
    with pytest.raises(Killed):
        run(folder, wrap=lambda examples: Mortal(examples, batches), **options)


# --- learning ---


@pytest.mark.parametrize(
    ("attention", "loss", "epochs"),
    [
        ("causal", SOFTMAX, 30),
        ("causal", SampledSoftmax(kind="sampled_softmax", negatives=16), 30),
        ("causal", GBCE(kind="gbce", negatives=16), 30),
        ("masked", SOFTMAX, 60),  # fewer labels an epoch
        ("masked", SampledSoftmax(kind="sampled_softmax", negatives=16), 90),
    ],
    ids=lambda value: str(getattr(value, "kind", value)),
)
def test_every_loss_learns_what_comes_next(tmp_path: Path, attention: str, loss: Loss, epochs: int) -> None:
    people = walks(users=72)
    model = fresh(attention=attention, mask_probability=0.3)
    before = evaluate(plain(family, model), people, "validation")["ndcg@10"]
    learner = Learner(family, model, [loss], ITEMS)
    examples = family.examples(model, people, 0)
    train(learner, examples, section(epochs=epochs), workspace(tmp_path), no_validation)
    after = evaluate(plain(family, model), people, "validation")["ndcg@10"]
    assert before < 0.4 < 0.6 < after


def test_the_loss_goes_down(tmp_path: Path) -> None:
    losses_ = [run(tmp_path / str(epochs), epochs=epochs)[1]["loss"] for epochs in (1, 4, 12)]
    assert losses_[0] > losses_[1] > losses_[2]


def test_a_learned_model_is_a_folder_that_ranks_as_reported(tmp_path: Path) -> None:
    people = walks()
    model = fresh()
    facts = learn(section(), family, model, [SOFTMAX], people, workspace(tmp_path))
    _, loaded = models.load(tmp_path / "model")
    assert_equal(weights(loaded), weights(model))
    found = evaluate(plain(family, loaded), people, "validation")
    assert {name: facts[name] for name in found} == found
    assert facts["parameters"] == model.num_parameters()
    assert facts["steps"] == 9
    assert facts["train_seconds"] > 0


def test_users_with_nothing_to_learn_from_are_one_line(tmp_path: Path) -> None:
    people = fakes.interactions_of([[0, 1, 2], [3, 4, 5]], ITEMS)  # one training item each: nothing follows it
    with pytest.raises(DataError, match="no user has enough interactions"):
        learn(section(), family, fresh(), [SOFTMAX], people, workspace(tmp_path))


def test_two_runs_are_the_same_and_another_seed_is_another_run(tmp_path: Path) -> None:
    sampled = [SampledSoftmax(kind="sampled_softmax", negatives=8)]
    options: dict[str, Any] = {"terms": sampled, "model": {"dropout": 0.2}}
    one, other, third = (run(tmp_path / str(n), seed=seed, **options) for n, seed in enumerate((0, 0, 1)))
    assert_equal(weights(one[0]), weights(other[0]))
    assert one[1]["loss"] == other[1]["loss"]
    assert not weights(one[0])["model.cls.predictions.bias"].equal(weights(third[0])["model.cls.predictions.bias"])


def test_another_seed_of_the_same_start_sees_other_batches(tmp_path: Path) -> None:
    ends = []
    for seed in (0, 1):
        model = fresh(seed=0)
        learner = Learner(family, model, [SOFTMAX], ITEMS)
        train(learner, family.examples(model, walks(), seed), section(), workspace(tmp_path / str(seed), seed), dict)
        ends.append(weights(model)["cls.predictions.bias"])
    assert not ends[0].equal(ends[1])


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """Windows of equal length, so that the mean of means is the mean; plain gradients, so that their size shows."""
    people = fakes.interactions_of([[(user + step) % ITEMS for step in range(8)] for user in range(24)], ITEMS)
    ends, reported = [], []
    for batch_size, steps in ((8, 1), (4, 2), (2, 4)):
        model = fresh()
        learner = Learner(family, model, [SOFTMAX], ITEMS)
        fields = section(batch_size=batch_size, gradient_accumulation_steps=steps, max_grad_norm=1e-3)
        facts = train(
            learner, family.examples(model, people, 0), fields, workspace(tmp_path / str(steps)), no_validation
        )
        assert facts["steps"] == 9
        ends.append(weights(model))
        reported.append(facts["loss"])
    for end in ends[1:]:
        for name, value in ends[0].items():
            torch.testing.assert_close(end[name], value, atol=1e-4, rtol=1e-3, msg=name)
    assert reported[1:] == pytest.approx(reported[:1] * 2, rel=1e-3)


def test_a_remainder_is_a_step_of_its_own(tmp_path: Path) -> None:
    _, facts = run(tmp_path, batch_size=7, gradient_accumulation_steps=3)  # 4 batches an epoch, the last of 3
    assert facts["steps"] == 3 * 2


# --- losses on a batch ---


def step_of(terms: Sequence[Loss], teacher: BertForMaskedLM | None = None, **options: Any) -> tuple[Learner, State]:
    model = fakes.tiny_model(items=ITEMS, **options)
    learner = Learner(family, model, terms, ITEMS, Taught([(family, teacher)]) if teacher else None)
    examples = family.examples(model, walks(), 0)
    return learner, examples.collate([examples[index] for index in range(6)])


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    teacher = fakes.tiny_model(items=ITEMS, seed=1)
    half, double = KL(kind="kl", weight=0.5, temperature=2), Softmax(kind="softmax", weight=2)
    parts = [KL(kind="kl", temperature=2), SOFTMAX]
    alone = [step_of([part], teacher)[0](**step_of([part], teacher)[1])["loss"].item() for part in parts]
    learner, batch = step_of([half, double], teacher)
    assert learner(**batch)["loss"].item() == pytest.approx(0.5 * alone[0] + 2 * alone[1], rel=1e-5)


def test_sampled_scores_are_those_of_the_whole_catalogue() -> None:
    loss = SampledSoftmax(kind="sampled_softmax", negatives=50)  # more than there are items: with repeats
    learner, batch = step_of([loss])
    torch.manual_seed(3)
    found = learner(**batch)["loss"]
    torch.manual_seed(3)
    drawn = torch.randint(ITEMS, (50,))
    supervision = family.supervise(learner.model, batch)
    scores, labels = supervision.scores(), supervision.labels_N
    positives = scores[torch.arange(len(labels)), labels]
    negatives = losses.collisions_masked(scores[:, drawn], drawn, labels)
    torch.testing.assert_close(found, losses.sampled_softmax(positives, negatives))


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    teacher = fakes.tiny_model(items=ITEMS)
    learner, batch = step_of([KL(kind="kl", temperature=2), Hidden(kind="hidden", layers={0: 0, 2: 2})], teacher)
    with torch.no_grad():
        for projection in learner.projections.values():
            assert isinstance(projection, nn.Linear)
            projection.weight.copy_(torch.eye(16))
            projection.bias.zero_()
    assert learner(**batch)["loss"].item() == pytest.approx(0, abs=1e-5)


def test_a_loss_on_a_teacher_without_one_says_so() -> None:
    learner, batch = step_of([KL(kind="kl")])
    with pytest.raises(ValueError, match="this loss needs a teacher"):
        learner(**batch)


# --- distillation ---

DISTIL: tuple[Loss, ...] = (
    KL(kind="kl", weight=0.7, temperature=2),
    Hidden(kind="hidden", weight=0.1, layers={0: 0, 1: 2}),
    Softmax(kind="softmax", weight=0.3),
)


def test_every_part_of_a_student_learns_and_the_teacher_does_not() -> None:
    teacher = fakes.tiny_model(items=ITEMS, hidden_size=32, seed=1)
    learner, batch = step_of(DISTIL, teacher, num_hidden_layers=1)
    learner(**batch)["loss"].backward()
    assert set(learner.projections) == {"0", "1"}
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        if "attention.self.key.bias" not in name:  # it adds the same to all scores: no gradient by nature
            assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_a_student_comes_near_its_teacher(tmp_path: Path) -> None:
    people = walks()
    teacher = fresh(hidden_size=32, seed=1)
    learn(section(epochs=12), family, teacher, [SOFTMAX], people, workspace(tmp_path / "teacher"))
    before = weights(teacher)
    student = fresh(num_hidden_layers=1, dropout=0.1)
    shown = Learner(family, student, [KL(kind="kl")], ITEMS, Taught([(family, teacher)])).eval()
    examples = family.examples(student, people, 0)
    batch = examples.collate([examples[index] for index in range(len(examples))])
    first = shown(**batch)["loss"].item()
    learn(
        section(epochs=24),
        family,
        student,
        DISTIL,
        people,
        workspace(tmp_path / "student"),
        Taught([(family, teacher)]),
    )
    last = shown.eval()(**batch)["loss"].item()
    assert last < 0.3 * first
    assert_equal(weights(teacher), before)


def test_no_checkpoint_holds_the_teacher(tmp_path: Path) -> None:
    teacher = fakes.tiny_model(items=ITEMS, hidden_size=32, seed=1)
    learner, _ = run(tmp_path, DISTIL, teacher=teacher, model={"num_hidden_layers": 1}, checkpoint_seconds=0)
    folders = sorted((tmp_path / ".resume" / "checkpoints").glob("checkpoint-*"))
    assert folders
    for folder in folders:
        with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
            saved = set(file.keys())
            assert saved <= set(learner.state_dict())
            assert not any(32 in file.get_slice(name).get_shape() for name in saved if "projections" not in name)


# --- killed and resumed ---

BATCHES = 3
"""Of an epoch; three epochs of them."""


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("batches", [2, BATCHES, BATCHES + 1, BATCHES + 2, 2 * BATCHES + 2])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path: Path, attention: str, batches: int) -> None:
    options: dict[str, Any] = {
        "terms": [SampledSoftmax(kind="sampled_softmax", negatives=8)],
        "model": {"attention": attention, "dropout": 0.3},
        "checkpoint_seconds": 0,
    }
    whole, facts = run(tmp_path / "whole", **options)
    killed(tmp_path / "killed", batches, **options)
    resumed, resumed_facts = run(tmp_path / "killed", **options)
    assert_equal(weights(resumed), weights(whole))
    for name in ("steps", "loss"):
        assert resumed_facts[name] == facts[name], name


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_orders_and_windows_of_an_epoch_are_the_same_after_a_kill(tmp_path: Path, attention: str) -> None:
    people = fakes.interactions_of([[(5 * user + step) % ITEMS for step in range(24)] for user in range(6)], ITEMS)
    people = replace(people, timestamps=people.timestamps // 4)  # ties in time, and several windows a user
    options: dict[str, Any] = {"people": people, "model": {"attention": attention}, "checkpoint_seconds": 0}
    whole, _ = run(tmp_path / "whole", **options)
    killed(tmp_path / "killed", 5, **options)
    resumed, _ = run(tmp_path / "killed", **options)
    assert_equal(weights(resumed), weights(whole))


def test_a_run_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": {"attention": "masked", "dropout": 0.3}, "checkpoint_seconds": 0}
    whole, facts = run(tmp_path / "whole", **options)
    for _ in range(2):
        killed(tmp_path / "killed", 4, **options)
    resumed, resumed_facts = run(tmp_path / "killed", **options)
    assert_equal(weights(resumed), weights(whole))
    assert resumed_facts["loss"] == facts["loss"]


def half_gone(model: BertForMaskedLM) -> None:
    """One head and some neurons stay of its layer."""
    (layer,) = cutting.everything(model).layers
    assert layer is not None
    cutting.cut(model, Kept((replace(layer, heads=(1,), neurons=layer.neurons[::3]),)))


@pytest.mark.parametrize("cut", [lambda model: None, half_gone], ids=["fresh", "recovery"])
def test_a_resumed_distillation_with_accumulation_is_an_uninterrupted_one(
    tmp_path: Path, cut: Callable[[BertForMaskedLM], None]
) -> None:
    def options() -> dict[str, Any]:
        teacher = fakes.tiny_model(items=ITEMS, hidden_size=32, seed=1)
        model = {"num_hidden_layers": 1, "dropout": 0.3}
        return {
            "terms": DISTIL,
            "teacher": teacher,
            "model": model,
            "cut": cut,
            "checkpoint_seconds": 0,
            "batch_size": 4,
            "gradient_accumulation_steps": 2,
        }

    whole, facts = run(tmp_path / "whole", **options())
    killed(tmp_path / "killed", 11, **options())
    resumed, resumed_facts = run(tmp_path / "killed", **options())
    assert_equal(weights(resumed), weights(whole))
    assert resumed_facts["loss"] == facts["loss"]


def test_checkpoints_change_nothing(tmp_path: Path) -> None:
    without, _ = run(tmp_path / "without", model={"dropout": 0.3})
    often, _ = run(tmp_path / "often", model={"dropout": 0.3}, checkpoint_seconds=0)
    assert not list((tmp_path / "without").rglob("checkpoint-*"))
    assert_equal(weights(often), weights(without))


def test_a_checkpoint_without_its_mark_is_taken_away(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": {"dropout": 0.3}, "checkpoint_seconds": 0}
    whole, _ = run(tmp_path / "whole", **options)
    killed(tmp_path / "killed", 5, **options)
    checkpoints = tmp_path / "killed" / ".resume" / "checkpoints"
    newest = max(checkpoints.iterdir(), key=lambda folder: int(folder.name.split("-")[1]))
    half = checkpoints / "checkpoint-5"
    shutil.copytree(newest, half)
    (half / WHOLE).unlink()
    (half / "model.safetensors").write_bytes(b"half of i")
    torn = checkpoints / "checkpoint-6"
    torn.mkdir()
    (torn / WHOLE).write_text('{"st')
    assert callbacks.last_whole(checkpoints) == str(newest)
    assert not half.exists()
    assert not torn.exists()
    resumed, _ = run(tmp_path / "killed", **options)
    assert_equal(weights(resumed), weights(whole))


def test_the_newest_checkpoint_is_by_number_and_none_is_none(tmp_path: Path) -> None:
    assert callbacks.last_whole(tmp_path / "nowhere") is None
    for step in (9, 100, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / WHOLE).write_text(json.dumps({"step": step, "sizes": {}, "seconds": 1.0}))
        (folder / "trainer_state.json").write_text("{}")
    assert callbacks.last_whole(tmp_path) == str(tmp_path / "checkpoint-100")


def test_checkpoints_come_by_the_clock_and_two_are_kept(tmp_path: Path) -> None:
    run(tmp_path, checkpoint_seconds=0)
    kept = sorted(folder.name for folder in (tmp_path / ".resume" / "checkpoints").iterdir())
    assert kept == ["checkpoint-7", "checkpoint-8"]  # of 9 steps; the end is no checkpoint


def test_a_checkpoint_holds_what_is_resumed_and_no_pickled_settings(tmp_path: Path) -> None:
    run(tmp_path, checkpoint_seconds=0)
    tensors = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"}  # read with weights_only=True
    files = {file.name for file in (tmp_path / ".resume" / "checkpoints" / "checkpoint-8").iterdir()}
    assert files == tensors | {"trainer_state.json", WHOLE}


# --- early stopping ---


class Judge:
    """Says what it is told to, epoch by epoch, and remembers the weights it was shown."""

    def __init__(self, learner: Callable[[], Learner], *scores: float) -> None:
        self.learner = learner
        self.scores = scores
        self.shown: list[State] = []

    def __call__(self) -> dict[str, float]:
        self.shown.append(weights(self.learner()))
        return {"ndcg@10": self.scores[len(self.shown) - 1]}


def judged(
    folder: Path, scores: Sequence[float], patience: int, said: int = 0, batches: int | None = None
) -> tuple[Learner, dict[str, float], Judge]:
    """Trains under a judge who has `said` some of the scores already; dies after `batches`."""
    model = fresh(dropout=0.3)
    learner = Learner(family, model, [SOFTMAX], ITEMS)
    judge = Judge(lambda: learner, *scores[said:])
    examples = family.examples(model, walks(), 0)
    fields = section(epochs=len(scores), early_stopping=EarlyStopping(patience=patience))
    if batches is not None:
        examples = Mortal(examples, batches)
    facts = train(learner, examples, fields, workspace(folder), judge)
    return learner, facts, judge


def test_early_stopping_ends_with_the_best_epoch(tmp_path: Path) -> None:
    learner, facts, judge = judged(tmp_path, [0.1, 0.5, 0.2, 0.3, 0.9, 0.9], patience=2)
    assert len(judge.shown) == 4  # two epochs without improvement after the second
    assert facts["steps"] == 4 * BATCHES
    assert_equal(weights(learner), judge.shown[1])


def test_an_improvement_renews_the_patience(tmp_path: Path) -> None:
    learner, _, judge = judged(tmp_path, [0.1, 0.05, 0.2, 0.1, 0.3, 0.2], patience=2)
    assert len(judge.shown) == 6
    assert_equal(weights(learner), judge.shown[4])


def test_a_learning_curve_is_kept_through_a_kill_and_changes_no_weights(tmp_path: Path) -> None:
    def curve_of(name: str, **options: Any) -> tuple[Learner, dict[str, Any]]:
        people, model = walks(), fresh(dropout=0.3)
        learner = Learner(family, model, [SOFTMAX], ITEMS)
        examples = family.examples(model, people, 0)
        wrapped = Mortal(examples, options.pop("batches")) if "batches" in options else examples

        def judge() -> dict[str, float]:
            return evaluate(plain(family, model), people, "validation")

        return learner, train(learner, wrapped, section(epochs=4, **options), workspace(tmp_path / name), judge)

    plainly, _ = curve_of("plainly")
    whole, facts = curve_of("whole", learning_curve=True)
    assert [step for step, _ in facts["curve"]] == [BATCHES, 2 * BATCHES, 3 * BATCHES, 4 * BATCHES]
    assert_equal(weights(whole), weights(plainly))
    with pytest.raises(Killed):
        curve_of("killed", learning_curve=True, batches=2 * BATCHES + 1, checkpoint_seconds=0)
    resumed, resumed_facts = curve_of("killed", learning_curve=True)
    assert resumed_facts["curve"] == facts["curve"]
    assert_equal(weights(resumed), weights(whole))


def test_without_early_stopping_the_last_epoch_stays(tmp_path: Path) -> None:
    learner, facts = run(tmp_path, epochs=4)
    shorter, _ = run(tmp_path / "shorter", epochs=4, checkpoint_seconds=0)
    assert facts["steps"] == 4 * BATCHES
    assert_equal(weights(learner), weights(shorter))


def test_a_resumed_run_is_as_patient_as_an_uninterrupted_one(tmp_path: Path) -> None:
    scores = [0.1, 0.5, 0.4, 0.3, 0.9, 0.9]
    whole, facts, _ = judged(tmp_path / "whole", scores, patience=2)
    with pytest.raises(Killed):
        judged(tmp_path / "killed", scores, patience=2, batches=3 * BATCHES + 1)  # in the fourth epoch
    resumed, resumed_facts, judge = judged(tmp_path / "killed", scores, patience=2, said=3)
    assert len(judge.shown) == 1
    assert resumed_facts["steps"] == facts["steps"] == 4 * BATCHES
    assert_equal(weights(resumed), weights(whole))


def test_a_run_that_had_lost_its_patience_learns_no_more(tmp_path: Path) -> None:
    """Killed after training, before its model was saved."""
    scores = [0.1, 0.5, 0.4, 0.3, 0.9, 0.9]
    whole, facts, _ = judged(tmp_path, scores, patience=2)
    again, facts_again, judge = judged(tmp_path, scores, patience=2, said=4)
    assert not judge.shown
    assert_equal(weights(again), weights(whole))
    assert {name: facts_again[name] for name in ("steps", "loss")} == {name: facts[name] for name in ("steps", "loss")}
    assert facts_again["train_seconds"] >= 0.5 * facts["train_seconds"] > 0


def test_a_loss_that_is_no_number_ends_training_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecPressError, match=r"^training: the loss is (nan|inf) by step \d+; lower learning_rate"):
        run(tmp_path, learning_rate=1e30, warmup_steps=0)


def test_a_run_killed_while_a_checkpoint_is_taken_away_goes_on_from_the_other(tmp_path: Path) -> None:
    """The best is kept, so the last marked one goes, before the one that replaces it is marked."""
    scores = [0.1, 0.5, 0.4, 0.3, 0.9, 0.9]
    whole, _, _ = judged(tmp_path / "whole", scores, patience=2)
    with pytest.raises(Killed):
        judged(tmp_path / "killed", scores, patience=2, batches=3 * BATCHES + 1)
    marks = sorted((tmp_path / "killed").rglob(WHOLE), key=lambda mark: json.loads(mark.read_text())["step"])
    best, last = (mark.parent for mark in marks)
    (last / "optimizer.pt").unlink()
    assert callbacks.last_whole(best.parent) == str(best)
    resumed, _, _ = judged(tmp_path / "killed", scores, patience=2, said=2)
    assert_equal(weights(resumed), weights(whole))


def test_without_the_best_epoch_so_far_a_run_starts_anew(tmp_path: Path) -> None:
    """The Trainer would take the last epoch's weights for it, and say nothing."""
    scores = [0.1, 0.5, 0.4, 0.3, 0.9, 0.9]
    whole, _, _ = judged(tmp_path, scores, patience=2)
    best = min(tmp_path.rglob(WHOLE), key=lambda mark: json.loads(mark.read_text())["step"]).parent
    (best / "model.safetensors").write_bytes(b"half")
    again, _, judge = judged(tmp_path, scores, patience=2)
    assert len(judge.shown) == 4
    assert_equal(weights(again), weights(whole))


def test_validation_is_by_ranking(tmp_path: Path) -> None:
    people = walks()
    model = fresh()
    facts = learn(
        section(epochs=4, early_stopping={"patience": 4}), family, model, [SOFTMAX], people, workspace(tmp_path)
    )
    assert facts["ndcg@10"] == evaluate(plain(family, model), people, "validation")["ndcg@10"]
    assert np.isfinite(facts["loss"])


def test_a_tracker_that_is_not_installed_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    people, model = walks(), fresh()
    learner = Learner(family, model, [SOFTMAX], ITEMS)
    tracked = section(report_to=("wandb",))
    with pytest.raises(RecipeError, match=r"wandb is not installed; pip install 'recpress\[tracking\]'"):
        train(learner, family.examples(model, people, 0), tracked, workspace(tmp_path), no_validation)
