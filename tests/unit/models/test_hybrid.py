"""Hybrid: begins as the sum of two stages, reads what it says it reads, and is served as it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import fakes
import text_fakes
from compress import models, retrieve
from compress.data.features import FILES, Encoding, Features, write_features
from compress.data.interactions import Interactions
from compress.data.texts import FILES as TEXT_FILES
from compress.data.texts import Texts
from compress.errors import RecipeError, RecPressError
from compress.methods.rounding import Rounding
from compress.metrics import ranking_metrics
from compress.models import hybrid
from compress.models.cross_encoder import CrossEncoder
from compress.models.hybrid import Hybrid, JointHead
from compress.recipe.model import HybridModel
from compress.recipe.texts import RetrieveSection
from compress.stage import Workspace

ITEMS, LISTED = text_fakes.COUNT, 11
family = Hybrid()
JOINS = pytest.mark.parametrize("join", ["concat", "attention"])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return text_fakes.texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Features:
    folder, random = tmp_path_factory.mktemp("features"), np.random.default_rng(0)
    items, vectors = (random.normal(size=(ITEMS, width)).astype(np.float32) for width in (3, 4))
    write_features(folder, ["a", "b", "c"], items, vectors, Encoding({"age": (30, 10)}, {"job": ["cook"]}), recent=2)
    return Features.load(folder)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Interactions:
    """Whom a Markov chain finds something for, in training as well."""
    folder = tmp_path_factory.mktemp("people")
    random = np.random.default_rng(1)
    steps = [np.cumsum(random.choice([1, 1, 2], size=random.integers(5, 11))) for _ in range(40)]
    people = fakes.interactions_of([((user + path) % ITEMS).tolist() for user, path in enumerate(steps)], ITEMS)
    data = text_fakes.data(folder / "data", text_fakes.table(), people)
    section = RetrieveSection(kind="retrieve", by="markov", candidates=LISTED, rehearsals=2)
    retrieve.run(section, {"data": data}, Workspace(folder, seed=0))
    known = [{"age": str(20 + user), "job": "cook" if user % 2 else ""} for user in range(people.user_count)]
    return replace(people.judged_on(folder), attributes=known)


def section(**options: Any) -> HybridModel:
    fields = {"family": "hybrid", "encoder": "encoder", "features": "features", "width": 8, "dropout": 0.0}
    return HybridModel.model_validate({**fields, "negatives": 3, **options})


def fresh(texts: Texts, features: Features, **options: Any) -> Any:
    torch.manual_seed(0)
    return family.build(section(**options), ITEMS, text_fakes.cross_encoder(texts), features).eval()


def shaken(texts: Texts, features: Features, **options: Any) -> Any:
    return text_fakes.shaken(fresh(texts, features, **options))


@torch.no_grad()
def test_a_fresh_head_is_the_sum_of_both_stages(texts: Texts, features: Features, people: Interactions) -> None:
    model = fresh(texts, features)
    asked = people.asked("validation", people.users("validation")[:3])
    encoder = text_fakes.cross_encoder(texts)
    ours, theirs = family.score(model, asked), CrossEncoder().score(encoder, asked)
    _, bias = encoder.classifier.weight, encoder.classifier.bias
    for row in range(3):
        items = np.flatnonzero(theirs[row].isfinite())
        first = features.of(asked, row, items)[:, 0]
        assert ours[row, items] - (theirs[row, items] - bias) == pytest.approx(first, abs=1e-5)


@JOINS
@torch.no_grad()
def test_every_group_of_features_matters(texts: Texts, features: Features, people: Interactions, join: str) -> None:
    model = shaken(texts, features, join=join)
    asked = people.asked("validation", people.users("validation")[:2])
    before = family.score(model, asked)
    assert asked.first_stage is not None
    turned = [{item: -score for item, score in found.items()} for found in asked.first_stage]
    for other in (replace(asked, first_stage=turned), replace(asked, attributes=[{"age": "90"}] * 2)):
        after = family.score(model, other)
        assert (after - before)[before.isfinite()].abs().max() > 1e-3


@JOINS
@torch.no_grad()
def test_the_served_graph_says_what_pytorch_says(
    texts: Texts, features: Features, people: Interactions, join: str
) -> None:
    model = shaken(texts, features, join=join)
    graph = family.serve(model, 10, Rounding()).eval()
    for user in people.users("validation")[:4]:
        asked = people.asked("validation", np.array([user]))
        inputs = family.inputs(model, asked)
        assert list(inputs) == list(graph.axes)
        scores = family.score(model, asked)[0]
        assert graph(*inputs.values())[0] == pytest.approx(scores[scores.isfinite()], abs=1e-5)
        assert family.plain(model, 10, inputs)[0] == pytest.approx(scores[scores.isfinite()], abs=1e-5)


@torch.no_grad()
def test_a_saved_model_comes_back_with_its_texts_and_features(
    tmp_path: Path, texts: Texts, features: Features, people: Interactions
) -> None:
    model = shaken(texts, features, join="attention")
    family.save(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", *FILES, *TEXT_FILES}
    loaded_family, loaded = models.load(tmp_path)
    asked = people.asked("test", people.users("test")[:2])
    assert isinstance(loaded_family, Hybrid)
    assert family.score(loaded, asked) == pytest.approx(family.score(model, asked), abs=1e-5)


def examples(texts: Texts, features: Features, people: Interactions) -> Any:
    return family.examples(fresh(texts, features), people, seed=0)


def test_an_example_is_what_was_found_when_its_item_was_not_known(
    texts: Texts, features: Features, people: Interactions
) -> None:
    learned = examples(texts, features, people)
    assert people.rehearsals is not None
    assert len(learned) == len(people.rehearsals.users) > people.user_count
    for index in range(len(learned)):
        example, found = learned[index], people.rehearsals.found[index]
        train = people.train(example.user)
        place = len(example.history)
        assert train[:place].tolist() == example.history.tolist()
        assert example.items[0] == train[place]
        assert example.wanted.tolist() == [1, 0, 0, 0]
        assert set(example.items.tolist()) <= set(found)
        assert not set(example.items[1:].tolist()) & set(train.tolist())
        attributes = people.attributes[example.user]  # type: ignore[index]
        assert np.array_equal(example.features, features.pairs(found, example.history, attributes, example.items))


def test_examples_are_the_same_whenever_they_are_asked_for(
    texts: Texts, features: Features, people: Interactions
) -> None:
    one, other = examples(texts, features, people), examples(texts, features, people)
    assert all(np.array_equal(one[index].items, other[index].items) for index in range(20))
    other.set_epoch(1)
    assert any(not np.array_equal(one[index].items, other[index].items) for index in range(20))


def test_a_batch_has_the_same_scores_as_its_examples(texts: Texts, features: Features, people: Interactions) -> None:
    model, learned = shaken(texts, features), examples(texts, features, people)
    some = [learned[index] for index in (0, 7, 3)]
    with torch.no_grad():
        together = family.supervise(model, learned.collate(some)).scores()
        alone = [family.supervise(model, learned.collate([each])).scores()[0] for each in some]
    assert together == pytest.approx(torch.stack(alone), abs=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_learns_nothing(texts: Texts, features: Features, people: Interactions, frozen: bool) -> None:
    model, learned = fresh(texts, features, frozen=frozen), examples(texts, features, people)
    for _ in range(2):  # a fresh deep part is nothing, and gives what is before it no gradient
        family.supervise(model, learned.collate([learned[0], learned[1]])).scores()[:, 0].sum().backward()
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.add_(0.1)
    moved = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == ({"head"} if frozen else {"head", "bert"})
    assert all(parameter.grad is not None for parameter in model.head.groups.parameters())


def test_the_encoder_is_not_told_what_is_rehearsed(texts: Texts, people: Interactions) -> None:
    model = text_fakes.cross_encoder(texts)
    learned = CrossEncoder().examples(model, people, seed=0)
    assert people.rehearsals is not None
    asked = set(zip(people.rehearsals.users.tolist(), people.rehearsals.places.tolist(), strict=True))
    shown = {(learned[index].user, len(learned[index].history)) for index in range(len(learned))}
    assert shown
    assert not shown & asked
    others = CrossEncoder().examples(model, replace(people, rehearsals=None), seed=0)
    assert len(others) > len(learned)
    drawn = [(learned[index].user, learned[index].items[1:].tolist()) for index in range(len(learned))]
    assert not any(set(items) & set(people.train(user).tolist()) for user, items in drawn), (
        "no later item is a negative"
    )


@JOINS
def test_every_weight_of_the_head_learns(texts: Texts, features: Features, people: Interactions, join: str) -> None:
    """Several processes wait for the gradient of each."""
    model, learned = shaken(texts, features, join=join), examples(texts, features, people)
    family.supervise(model, learned.collate([learned[0], learned[1]])).scores().sum().backward()
    assert all(weight.grad is not None for weight in model.head.parameters())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_stays_frozen(tmp_path: Path, texts: Texts, features: Features, frozen: bool) -> None:
    family.save(fresh(texts, features, frozen=frozen), tmp_path)
    loaded = family.load(tmp_path)
    assert all(parameter.requires_grad != frozen for parameter in loaded.bert.parameters())
    assert all(parameter.requires_grad for parameter in loaded.head.parameters())


def test_without_rehearsals_there_is_nothing_to_learn(texts: Texts, features: Features, people: Interactions) -> None:
    with pytest.raises(RecipeError, match="learns from rehearsals: set them in the retrieve stage"):
        examples(texts, features, replace(people, rehearsals=None))


def test_the_first_stage_and_the_head_alone_are_baselines(
    texts: Texts, features: Features, people: Interactions
) -> None:
    found = family.baselines(fresh(texts, features), people, 10)
    users = people.users("validation")
    asked = people.asked("validation", users)
    assert set(found) == {"tfidf", "first-stage", "head"}
    assert asked.first_stage is not None
    for row, top in enumerate(found["first-stage"](asked)):
        scores = asked.first_stage[row]
        assert [scores[item] for item in top] == sorted(scores.values(), reverse=True)[:10]
    torch.manual_seed(5)
    again = family.baselines(fresh(texts, features), people, 10)["head"](asked)
    assert np.array_equal(found["head"](asked), again), "whatever the generator's state"


def test_a_head_learns_what_the_first_stage_does_not_know(
    monkeypatch: pytest.MonkeyPatch, texts: Texts, features: Features, people: Interactions
) -> None:
    """Everybody takes what the first stage puts last."""
    monkeypatch.setattr(hybrid, "ALONE_EPOCHS", 150)
    assert people.rehearsals is not None
    assert people.first_stage is not None

    def told(found: Mapping[int, float], target: int) -> dict[int, float]:
        return {item: 0.0 if item == target else 1.0 for item in found}

    users = people.users("validation")
    targets = dict(zip(users.tolist(), people.targets("validation").tolist(), strict=True))
    rehearsed = zip(people.rehearsals.users, people.rehearsals.places, people.rehearsals.found, strict=True)
    contrary = replace(
        people,
        rehearsals=replace(
            people.rehearsals,
            found=[told(found, int(people.train(int(user))[place])) for user, place, found in rehearsed],
        ),
        first_stage={
            **people.first_stage,
            "validation": [told(found, targets[user]) for user, found in enumerate(people.first_stage["validation"])],
        },
    )
    found = family.baselines(fresh(texts, features), contrary, 10)
    asked = contrary.asked("validation", users)
    reachable = contrary.within_reach("validation")
    first, head = (
        ranking_metrics(found[name](asked), contrary.targets("validation"))["ndcg@10"][reachable].mean()
        for name in ("first-stage", "head")
    )
    assert first < 0.1 < 0.9 < head


def test_attention_weighs_groups_and_concatenation_keeps_their_places() -> None:
    torch.manual_seed(0)
    features = torch.randn(5, 9)
    for join in ("concat", "attention"):
        head = JointHead([4, 3, 2], width=6, join=join)
        groups = [
            torch.nn.functional.gelu(group(part))
            for group, part in zip(head.groups, features.split([4, 3, 2], 1), strict=True)
        ]
        if join == "attention":
            stacked = torch.stack(groups, 1)
            joined = (torch.softmax(stacked @ head.asked.weight[0], 1)[:, :, None] * stacked).sum(1)
        else:
            joined = torch.cat(groups, 1)
        expected = head.linear(features) + head.out(torch.nn.functional.gelu(head.mixed(joined)))
        assert head(features).detach() == pytest.approx(expected[:, 0].detach(), abs=1e-6)


def test_a_recommender_reads_the_scores_of_what_is_allowed(
    tmp_path: Path, texts: Texts, features: Features, people: Interactions
) -> None:
    from compress.recipe.serving import ExportSection
    from deploy import export
    from deploy.recommender import Recommender, Request

    model = shaken(texts, features)
    family.save(model, tmp_path / "trained" / "model")
    data = text_fakes.data(tmp_path / "data", text_fakes.table(), people)
    inputs = {
        "data": data,
        "trained": text_fakes.stored(tmp_path / "trained", "finetune", "trained"),
        "lists": lists_of(tmp_path / "lists", data),
    }
    (tmp_path / "served").mkdir()
    exported = ExportSection.model_validate({"kind": "export", "inputs": ["trained"], "top_k": 11})
    export.run(exported, inputs, Workspace(tmp_path / "served", seed=0))
    recommender = Recommender.load(tmp_path / "served" / "trained")
    asked = people.asked("test", people.users("test")[:1])
    assert asked.first_stage is not None
    history = [f"id-{item}" for item in asked.histories[0]]
    allow: dict[str | int, float] = {f"id-{item}": score for item, score in asked.first_stage[0].items()}
    (answer,) = recommender.answer([Request(history, 10, allow | {"nobody": 3.0}, attributes={"age": 20})])
    told = replace(asked, attributes=[{"age": "20"}])
    with torch.no_grad():
        expected = family.score(model, told)[0].topk(10)
    assert [item for item, _ in answer] == [f"id-{item}" for item in expected.indices.tolist()]
    assert [score for _, score in answer] == pytest.approx(expected.values.tolist(), abs=1e-4)
    had = {f"id-{item}": 50.0 for item in asked.histories[0]}
    assert recommender.answer([Request(history, 10, allow | had, attributes={"age": 20})]) == [answer]
    assert len(recommender.answer([Request(history, 10, {next(iter(allow)): 1.0})])[0]) == 1
    with pytest.raises(RecPressError, match="scores are finite numbers"):
        recommender.answer([Request(history, 10, allow | {"id-0": float("nan")})])
    with pytest.raises(RecPressError, match="give a mapping from item to score"):
        recommender.answer([Request(history, 10, list(allow))])


def lists_of(folder: Path, data: Any) -> Any:
    folder.mkdir()
    section = RetrieveSection(kind="retrieve", by="markov", candidates=LISTED)
    retrieve.run(section, {"data": data}, Workspace(folder, seed=0))
    assert "score" in pl.read_parquet(folder / "candidates.parquet").columns
    return text_fakes.stored(folder, "retrieve", "lists")
