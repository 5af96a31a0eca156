"""Training from calibrated products: what four bits lose comes back, and what is left is what was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fakes
from compress.calibration import calibrate
from compress.data.calibration import CalibrationRequests
from compress.data.histories import Asked
from compress.data.interactions import Interactions
from compress.evaluation import served, validated
from compress.learner import Learner, Taught
from compress.methods import linear_rounding
from compress.methods.linear_rounding import QUANTIZATION, Maps
from compress.methods.rounding import Rounding, quantize_rows
from compress.models.bert4rec import Bert4Rec
from compress.models.quantization_aware import QuantizationAware
from compress.recipe.losses import KL
from compress.recipe.serving import CalibrationSection
from compress.recipe.training import DistillSection
from compress.stage import Workspace
from compress.training import learn

ITEMS = 24
family = Bert4Rec()
Trained = tuple[Any, Interactions]


@pytest.fixture
def trained() -> Trained:
    """A model that is sure of what it says, and people."""
    return fakes.tiny_model(items=ITEMS, max_length=12), fakes.interactions(users=96, items=ITEMS)


def _by(teacher: Any) -> Taught:
    return Taught([(family, teacher)])


def _hard(trained: Trained) -> Rounding:
    """Weights of four bits, one scale for each."""
    model, people = trained
    requests = CalibrationRequests(people, 48, 0)
    maps: Maps = calibrate(
        family, model, requests, CalibrationSection(method="minmax"), None, weight_bits=4, per_channel=False
    )
    return Rounding("static", "int8-per-row", maps, rounded_from="teacher")


@torch.no_grad()
def _divergence(model: Any, rounding: Rounding, teacher: Any, people: Interactions) -> float:
    """Mean KL of what validation users are answered from what the teacher answers."""
    graph = family.serve(model.eval(), ITEMS, rounding).eval()
    graph.fake_quantize(rounding.maps)
    found = []
    for user in people.users("validation"):
        asked = people.asked("validation", np.array([user]))
        none = Asked(asked.histories, fakes.nothing(asked.histories))
        expected = torch.log_softmax(family.score(teacher, none).double(), dim=1)
        items, scores = graph(*family.inputs(model, none).values())
        by_item = torch.zeros(1, ITEMS + 2).scatter_(1, items, scores)[:, :ITEMS]
        ours = torch.log_softmax(by_item.double(), dim=1)
        found.append(torch.nn.functional.kl_div(ours, expected, reduction="batchmean", log_target=True))
    return float(torch.stack(found).mean())


def test_training_recovers_most_of_what_rounding_loses(trained: Trained, tmp_path: Path) -> None:
    teacher, people = trained
    hard = _hard(trained)
    student = copy.deepcopy(teacher)
    lost = _divergence(student, hard, teacher, people)
    in_floats = _divergence(student, Rounding(), teacher, people)
    section = DistillSection.model_validate(
        {
            "kind": "distill",
            "teacher": "teacher",
            "start": "hard",
            "losses": [{"kind": "kl"}],
            "epochs": 12,
            "learning_rate": 2e-3,
            "warmup_steps": 4,
        }
    )
    facts = learn(
        section,
        family,
        student,
        section.losses,
        people,
        Workspace(tmp_path, 0),
        Taught([(family, teacher)]),
        None,
        hard,
    )
    assert facts["rounded_from"] == "teacher"
    maps = linear_rounding.read(tmp_path / QUANTIZATION)
    after = Rounding(**facts["rounding"], maps=maps)
    left = _divergence(student, after, teacher, people)
    assert in_floats < 1e-6 < 0.02 < lost
    assert left < 0.5 * lost

    for name, how in maps.items():
        before = hard.maps[name]
        assert how is not None
        assert before is not None
        assert (how.input_scale, how.input_zero_point) == (before.input_scale, before.input_zero_point)
        assert (how.weight_bits, how.per_channel) == (4, False)
    loaded = family.load(tmp_path / "model")
    table = loaded.get_input_embeddings().weight.detach()
    integers, scales = quantize_rows(table)
    torch.testing.assert_close(integers * scales, table)  # back on its grid
    again = served(family, loaded, after, people.judged_items)(people.asked("validation", people.users("validation")))
    np.testing.assert_array_equal(validated(tmp_path)[:, :5], again[:, :5])


def test_teachers_are_not_rounded(trained: Trained) -> None:
    teacher, people = trained
    aware = QuantizationAware(family, teacher, _hard(trained))
    examples = family.examples(teacher, people, 0)
    batch = examples.collate([examples[place] for place in range(8)])
    terms = [KL(kind="kl", weight=1, temperature=1)]
    with torch.no_grad():
        rounded = Learner(family, teacher, terms, ITEMS, _by(teacher), aware.running).eval()(**batch)["loss"]
        alike = Learner(family, teacher, terms, ITEMS, _by(teacher)).eval()(**batch)["loss"]
    assert abs(float(alike)) < 1e-5 < 0.01 < float(rounded), "the student is, and its teacher, the same model, is not"
