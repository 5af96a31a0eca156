"""What a profile times, and what it makes of disturbed timings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fakes
import text_fakes
from compress import models
from compress.errors import RecipeError
from compress.methods.rounding import Rounding
from compress.methods.shapes import LayerShape
from compress.models.bert4rec import Bert4Rec
from compress.models.cross_encoder import CrossEncoder
from compress.models.two_tower import TwoTower
from compress.recipe.pruning import ProfileSection
from compress.stage import Workspace
from deploy import profile
from deploy.clock import undisturbed
from deploy.layer_graphs import EmptyGraph, LayerGraph, ends_at_one_position, positions, shell


def test_a_point_above_a_later_one_was_disturbed() -> None:
    assert profile._rising({1: 3.0, 2: 1.0, 4: 2.0, 8: 1.5}) == {"1": 1.0, "2": 1.0, "4": 1.5, "8": 1.5}


def test_what_else_runs_only_adds() -> None:
    assert undisturbed(np.array([2.0, 1.0, 900.0, 1.0, 1.0, 1.5, 800.0, 1.1])) == 1.0


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", [LayerShape(0, 0), LayerShape(3, 0), LayerShape(0, 7), LayerShape(2, 5)])
def test_layers_of_any_shape_are_graphs(shape: LayerShape, count: int) -> None:
    graph = LayerGraph(16, 4, shape, count, single=False).eval()
    inputs = profile.drawn_inputs(graph.axes, graph.floats, 9, {"length": 6}, 5)
    assert {name: array.shape for name, array in inputs.items()} == {"y": (5, 6, 16), "padding": (5, 6)}
    with torch.no_grad():
        (state,) = graph(*map(torch.from_numpy, inputs.values()))
    assert state.shape == (5, 16)
    weights = {id(module.weight) for module in graph.modules() if module.__class__.__name__ == "Weight"}
    kinds = 2 * (shape.heads > 0) + 2 * (shape.neurons > 0)
    assert len(weights) == count * kinds, "each layer has its own"


def test_a_last_layer_is_timed_at_one_position() -> None:
    graph = LayerGraph(16, 4, LayerShape(2, 5), 1, single=True).eval()
    inputs = profile.drawn_inputs(graph.axes, graph.floats, 9, {"length": 6}, 5)
    assert graph(*map(torch.from_numpy, inputs.values()))[0].shape == (5, 16)
    assert EmptyGraph(16)(torch.zeros(2, 3, 16))[0].shape == (2, 16)


def test_the_shell_is_what_is_served_around_the_layers(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    people = fakes.interactions(items=text_fakes.COUNT)
    for family, model, single in (
        (Bert4Rec(), fakes.tiny_model(text_fakes.COUNT), True),
        (CrossEncoder(), text_fakes.cross_encoder(texts), True),
        (TwoTower(), text_fakes.two_tower(texts), False),
        (TwoTower(), text_fakes.two_tower(texts, pooling="cls", separate=True), True),
    ):
        served = family.serve(model, 5, Rounding()).eval()
        assert ends_at_one_position(served) == single
        sizes = profile.typical_sizes(family, model, served, people, None)
        inputs = profile.drawn_inputs(served.axes, served.floats, profile.known_ids(served), sizes, 3)
        around = shell(family, model)
        assert positions(served, inputs) == positions(around, inputs) > 1
        assert len(around.linear_weights) < len(served.linear_weights)
        length = profile.positions_in(sizes) - 2
        shorter = profile.typical_sizes(family, model, served, people, length)
        assert profile.positions_in(shorter) == pytest.approx(length, abs=1)
        with pytest.raises(RecipeError, match=f"length: 999 positions; the model reads {served.max_length}"):
            profile.typical_sizes(family, model, served, people, 999)


def test_numbers_of_a_profile_do_not_depend_on_chance() -> None:
    one, other = (profile.drawn_inputs({"user": ("batch", "length")}, (), 9, {"length": 4}, 3) for _ in range(2))
    assert np.array_equal(one["user"], other["user"])
    assert one["user"].shape == (3, 4)


def test_layers_that_compute_users_once_are_in_no_table(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    folder = tmp_path / "one"
    (folder / "model").mkdir(parents=True)
    model = text_fakes.cross_encoder(texts, attention="one_way")
    models.FAMILIES["cross_encoder"].save(model, folder / "model")
    section = ProfileSection.model_validate({"kind": "profile", "input": "one"})
    with pytest.raises(RecipeError, match=r"^input: one reads attention: one_way, [^\n]* bytes or flops$"):
        profile.run(section, {"one": text_fakes.stored(folder, "finetune", "one")}, Workspace(tmp_path, seed=0))
