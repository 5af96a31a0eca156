"""The prune stage by itself: budgets met in every unit, gates that learn one, gradients that are nothing."""

from __future__ import annotations

from dataclasses import replace
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
from compress.learner import Learner, Taught
from compress.methods import cutting, shapes
from compress.methods.cutting import Kept, everything
from compress.models.low_memory import store
from compress.recipe.losses import Hidden, Relations
from compress.recipe.pruning import Learned, PruneSection
from compress.stage import Stage, Workspace

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
    said = {"kind": "prune", "input": "teacher", "neurons_multiple": 4, **fields}
    if said.get("importance", {}).get("kind") != "learned":
        said.setdefault("rescale", {"examples": 8})
    section = PruneSection.model_validate(said)
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


@pytest.mark.parametrize("items", [20, 300])
def test_a_width_is_counted_as_it_will_be(tmp_path: Path, items: int) -> None:
    data = text_fakes.data(tmp_path / "data", text_fakes.table(items), fakes.interactions(users=20, items=items))
    folder = tmp_path / "teacher"
    (folder / "model").mkdir(parents=True)
    models.FAMILIES["bert4rec"].save(fakes.tiny_model(items, intermediate_size=32, max_length=16), folder / "model")
    inputs = {"data": data, "teacher": text_fakes.stored(folder, "finetune", "teacher")}
    whole = models.load(folder / "model")[1].num_parameters()
    model, metrics = _run(inputs, tmp_path / "cut", budget={"parameters": 0.5}, hidden_sizes=[12, 8, 4])
    assert model.config.hidden_size < 16 or items == 20
    assert metrics["predicted_share"] == pytest.approx(model.num_parameters() / whole, abs=1e-4)
    assert model.num_parameters() <= 0.5 * whole


def test_towers_of_different_depths_are_held_to_the_deeper_one(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    model = text_fakes.two_tower(texts, separate=True, num_hidden_layers=3)
    full = everything(model)
    cutting.cut(model, Kept((full.layers[0], None, None, *full.layers[3:])))
    folder = tmp_path / "teacher"
    (folder / "model").mkdir(parents=True)
    models.FAMILIES["two_tower"].save(model, folder / "model")
    inputs = {"data": artifact.read(tmp_path / "data"), "teacher": text_fakes.stored(folder, "finetune", "teacher")}
    fields = {"importance": {"kind": "magnitude"}, "rescale": None}
    whole, metrics = _run(inputs, tmp_path / "all", budget={"parameters": 1.0}, **fields)
    assert metrics["predicted_share"] == 1.0
    assert whole.num_parameters() == model.num_parameters()
    fresh = text_fakes.two_tower(texts, separate=True, num_hidden_layers=2)
    models.FAMILIES["two_tower"].seed_student(fresh, whole, "spread", "random")
    with pytest.raises(RecipeError, match=r"initialize\.layers: \[0, 2\]; the teacher has 0 to 0"):
        models.FAMILIES["two_tower"].seed_student(fresh, whole, [0, 2], "random")


def test_hidden_states_of_a_pruned_model_teach_and_learn() -> None:
    teacher, student = fakes.tiny_model(intermediate_size=32), fakes.tiny_model(intermediate_size=32)
    full = everything(student).layers[0]
    assert full is not None
    for model in (teacher, student):
        cutting.cut(model, Kept((replace(full, heads=()), replace(full, neurons=()))))
    family = models.FAMILIES["bert4rec"]
    people = fakes.interactions()
    batch = text_fakes.batch_of(family.examples(student, people, 0))
    taught = Taught([(family, teacher)])
    losses = Learner(family, student, [Hidden(kind="hidden", layers={1: 2})], 20, taught)(**batch)
    assert float(losses["loss"].detach()) > 0
    with pytest.raises(RecipeError, match="relations: compares heads, and a pruned model's layers have others"):
        Learner(family, student, [Relations(kind="relations", layers={1: 2}, heads=2)], 20, taught)


@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_a_pruned_teacher_is_held_in_few_bits(how: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = fakes.tiny_model(intermediate_size=64, hidden_size=64)
    full = everything(model).layers[0]
    assert full is not None
    cutting.cut(model, Kept((replace(full, heads=()), replace(full, neurons=()))))
    ids = torch.arange(6)[None]
    before = model(ids).logits
    store(model, how)
    assert torch.nn.functional.cosine_similarity(model(ids).logits, before, dim=-1).min() > 0.9


def test_a_width_that_was_not_profiled_is_one_line(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    part = {"layer": 0.1, "heads": {"2": 1.0}, "neurons": {"32": 1.0}}
    widths = {"32": {"rest": 0.1, "inner": part, "last": part}, "24": {}}
    table = {"head_size": 8, "layers": [[2, 32]] * 2, "batches": {"1": {"total": 4.0, "hidden": widths}}}
    folder = tmp_path / "profile"
    folder.mkdir()
    artifact.write_json(folder / prune.TABLE, table)
    timed = inputs | {"profile": text_fakes.stored(folder, "profile", "profile")}
    budget = {"latency": 0.5, "profile": "profile"}
    said = "profile has timed a width of 32, 24; teacher is 16 wide: add it to stages.profile.hidden_sizes"
    with pytest.raises(RecipeError, match=f"^budget.profile: {said}$"):
        _run(timed, tmp_path / "cut", budget=budget)


def test_a_sweep_says_that_there_is_no_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = PruneSection.model_validate({"kind": "prune", "input": "teacher", "positions": True})
    prune.sweep(Stage("small", "prune", section, {}, tmp_path / "small", seed=0), "0.5")
    said = "small (seed 0): no budget whose shares could be swept; name a stage that has one with --stage\n"
    assert capsys.readouterr().out == said
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(RecipeError, match=r"all gradients are zero; raise importance\.examples"):
        _run(inputs, tmp_path / "cut", budget={"parameters": 0.7}, importance={"kind": "taylor", "examples": 1})
    _, metrics = _run(inputs, tmp_path / "more", budget={"parameters": 0.7})  # as a recipe says it, by default
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
