"""The prune stage by itself: budgets met in every unit, gates that learn one, gradients that are nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fakes
import text_fakes
from compress import artifact, models, prune
from compress.artifact import Artifact
from compress.errors import RecipeError
from compress.gating import GatedLearner
from compress.methods import shapes
from compress.recipe.pruning import Learned, PruneSection
from compress.stage import Workspace

Json = dict[str, Any]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    """Data, and a model that was trained on nothing."""
    data = text_fakes.data(tmp_path / "data", text_fakes.table(20), fakes.interactions(users=20))
    folder = tmp_path / "teacher"
    (folder / "model").mkdir(parents=True)
    models.FAMILIES["bert4rec"].save(fakes.tiny_model(intermediate_size=32, max_length=16), folder / "model")
    return {"data": data, "teacher": text_fakes.stored(folder, "finetune", "teacher")}


def _run(inputs: dict[str, Artifact], folder: Path, **fields: Any) -> tuple[Any, Json]:
    folder.mkdir(exist_ok=True)
    section = PruneSection.model_validate(
        {"kind": "prune", "input": "teacher", "neurons_multiple": 4, "rescale": {"examples": 8}, **fields}
    )
    metrics = prune.run(section, inputs, Workspace(folder, seed=0))
    return models.load(folder / "model")[1], metrics


@pytest.mark.parametrize("kind", ["parameters", "bytes", "flops"])
@pytest.mark.parametrize("importance", ["magnitude", "random", "taylor", "fisher"])
def test_a_counted_budget_is_met(inputs: dict[str, Artifact], tmp_path: Path, kind: str, importance: str) -> None:
    whole = models.load(inputs["teacher"].path("model"))[1].num_parameters()
    model, metrics = _run(inputs, tmp_path / "cut", budget={kind: 0.7}, importance={"kind": importance})
    assert 0.4 < metrics["predicted_share"] <= 0.7
    if kind != "flops":
        assert metrics["predicted_share"] == pytest.approx(model.num_parameters() / whole, abs=1e-4)
    assert metrics["layers"] == [[each.heads, each.neurons] for each in map(shapes.shape, shapes.layers(model))]
    assert 0 <= metrics["importance_lost"] <= 1


def test_a_width_is_chosen_where_it_costs_least(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    model, metrics = _run(inputs, tmp_path / "cut", budget={"parameters": 0.6}, hidden_sizes=[12, 8])
    assert metrics["hidden_size"] == model.config.hidden_size
    assert metrics["predicted_share"] <= 0.6
    with pytest.raises(RecipeError, match="hidden_sizes: 24 is wider than the model, 16"):
        _run(inputs, tmp_path / "wide", budget={"parameters": 0.6}, hidden_sizes=[24])


def test_the_same_seed_cuts_the_same(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    one, other = (_run(inputs, tmp_path / name, budget={"parameters": 0.7})[0] for name in ("one", "other"))
    assert all(a.equal(b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_gates_learn_a_budget(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    torch.manual_seed(0)
    learned = {"kind": "learned", "epochs": 200, "batch_size": 4, "learning_rate": 1e-3, "gate_learning_rate": 0.3}
    model, metrics = _run(inputs, tmp_path / "cut", budget={"parameters": 0.8}, importance=learned, whole_layers=False)
    budget = 0.8 * models.load(inputs["teacher"].path("model"))[1].num_parameters()
    assert metrics["expected_cost"] == pytest.approx(budget, rel=0.05)
    assert model.num_parameters() <= budget
    assert metrics["steps"] > 100


def test_gradients_that_are_nothing_are_one_line(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    model = text_fakes.two_tower(texts, negatives=0)
    folder = tmp_path / "teacher"
    (folder / "model").mkdir(parents=True)
    models.FAMILIES["two_tower"].save(model, folder / "model")
    inputs = {"data": artifact.read(tmp_path / "data"), "teacher": text_fakes.stored(folder, "finetune", "teacher")}
    with pytest.raises(RecipeError, match=r"raise importance\.batch_size"):
        _run(inputs, tmp_path / "cut", budget={"parameters": 0.7})
    _, metrics = _run(
        inputs, tmp_path / "more", budget={"parameters": 0.7}, importance={"kind": "fisher", "batch_size": 8}
    )
    assert metrics["predicted_share"] <= 0.7


def test_gates_that_were_killed_learn_on_to_the_same_model(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {
        "budget": {"parameters": 0.8},
        "importance": {"kind": "learned", "epochs": 6, "batch_size": 4, "learning_rate": 1e-3},
    }
    training = Learned.training
    monkeypatch.setattr(
        Learned, "training", lambda section: training(section).model_copy(update={"checkpoint_seconds": 0})
    )
    whole, _ = _run(inputs, tmp_path / "whole", **fields)
    forward, calls = GatedLearner.forward, iter(range(1000))

    def dies(learner: GatedLearner, **batch: Any) -> Any:
        if next(calls) == 13:
            raise KeyboardInterrupt
        return forward(learner, **batch)

    with monkeypatch.context() as patched:
        patched.setattr(GatedLearner, "forward", dies)
        with pytest.raises(KeyboardInterrupt):
            _run(inputs, tmp_path / "killed", **fields)
    assert list((tmp_path / "killed" / ".resume").rglob("whole.json"))
    resumed, metrics = _run(inputs, tmp_path / "killed", **fields)
    assert metrics["steps"] == 30
    for (name, ours), theirs in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert ours.equal(theirs), name
