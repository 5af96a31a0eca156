"""Static scales of whole models: smoothing is exact, harm is found where it is, and the quantize stage says it all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fakes
import text_fakes
from compress import artifact, models, quantize
from compress.artifact import Artifact
from compress.calibration import calibrate, sensitivity
from compress.data.calibration import CalibrationRequests, validation_requests
from compress.data.histories import MASKED, Asked
from compress.data.interactions import Interactions
from compress.evaluation import evaluate, plain, recommend_all, served
from compress.methods import linear_rounding
from compress.methods.rounding import Rounding, Stored
from compress.models.family import ServedGraph
from compress.recipe.serving import CalibrationSection, QuantizeSection
from compress.stage import Workspace

Json = dict[str, Any]
MINMAX = CalibrationSection(method="minmax")


def _people(items: int, **options: Any) -> Interactions:
    return fakes.interactions(users=24, items=items, **options)


def _bert4rec(folder: Path) -> tuple[Any, Interactions]:
    return fakes.tiny_model(max_length=12), _people(20)


def _cross_encoder(folder: Path) -> tuple[Any, Interactions]:
    people = _people(text_fakes.COUNT)
    rank = {"validation": [np.arange(6, 24)] * 24, "test": [np.arange(6, 24)] * 24}
    return text_fakes.cross_encoder(text_fakes.texts(folder)), replace(people, candidates=rank)


def _two_tower(folder: Path) -> tuple[Any, Interactions]:
    return text_fakes.two_tower(text_fakes.texts(folder)), _people(text_fakes.COUNT)


Made = Callable[[Path], tuple[Any, Interactions]]
FAMILIES = [_bert4rec, _cross_encoder, _two_tower]


def _served(model: Any) -> ServedGraph:
    return models.FAMILIES[model.config.recommender["family"]].serve(model, 5, Rounding()).eval()


class _Divided(nn.Module):
    """Smoothing without rounding."""

    def __init__(self, scales_I: torch.Tensor) -> None:
        super().__init__()
        self.scales_I = scales_I

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.scales_I


class _Kept(nn.Module):
    """All that a map reads."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.rows.append(x.flatten(0, -2))
        return x


@pytest.mark.parametrize("made", FAMILIES)
@torch.no_grad()
def test_smoothing_changes_nothing_in_floating_point(tmp_path: Path, made: Made) -> None:
    model, people = made(tmp_path)
    family = models.FAMILIES[model.config.recommender["family"]]
    requests = CalibrationRequests(people, 24, 0)
    maps = calibrate(family, model, requests, MINMAX, smooth=0.5)
    plain_graph, smoothed = _served(model), _served(model)
    moved = 0.0
    for name, linear in smoothed.linear_maps.items():
        how = maps[name]
        assert how.smoothing is not None
        scales_I = torch.from_numpy(how.smoothing)
        moved = max(moved, float(scales_I.log().abs().max()))
        linear.input = _Divided(scales_I)
        linear.weight = Stored(scales_I[:, None] * linear.weight())
    assert moved > 0.5
    for asked in list(requests)[:5]:
        inputs = family.inputs(model, asked).values()
        for ours, theirs in zip(smoothed(*inputs), plain_graph(*inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("made", FAMILIES)
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("smooth", [None, 0.5])
@torch.no_grad()
def test_every_map_of_every_family_is_calibrated(tmp_path: Path, made: Made, method: str, smooth: float | None) -> None:
    model, people = made(tmp_path)
    family = models.FAMILIES[model.config.recommender["family"]]
    requests = CalibrationRequests(people, 24, 0)
    maps = calibrate(family, model, requests, CalibrationSection.model_validate({"method": method}), smooth)
    graph, rounded = _served(model), _served(model)
    assert list(maps) == graph.linear_weights
    rounded.fake_quantize(maps)
    inputs = [family.inputs(model, asked).values() for asked in requests]
    ours, theirs = (torch.cat([each(*told)[-1].flatten() for told in inputs]) for each in (rounded, graph))
    error = float((ours - theirs).square().mean().sqrt() / theirs[theirs > MASKED / 2].std())
    assert 1e-5 < error < 0.2, "something is rounded, and not much is lost"


@torch.no_grad()
def test_calibration_leaves_the_model_and_later_graphs_as_they_are(tmp_path: Path) -> None:
    model, people = _bert4rec(tmp_path)
    family = models.FAMILIES["bert4rec"]
    requests = CalibrationRequests(people, 8, 0)
    inputs = family.inputs(model, requests[0]).values()
    before = _served(model)(*inputs)
    maps = calibrate(family, model, requests, CalibrationSection(), 0.5)
    sensitivity(family, model, requests, maps)
    for ours, theirs in zip(_served(model)(*inputs), before, strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("made", FAMILIES)
def test_the_map_that_is_rounded_worst_harms_most(tmp_path: Path, made: Made) -> None:
    model, people = made(tmp_path)
    family = models.FAMILIES[model.config.recommender["family"]]
    requests = CalibrationRequests(people, 24, 0)
    maps = calibrate(family, model, requests, MINMAX, None)
    worst = "layers.0.qkv.weight.values"
    how = maps[worst]
    maps[worst] = replace(how, input_scale=30 * how.input_scale)
    harm, work = sensitivity(family, model, requests, maps)
    assert list(harm) == list(work) == list(maps)
    assert max(harm, key=lambda name: harm[name]) == worst
    assert all(loss >= 0 for loss in harm.values())


def test_work_is_the_multiply_adds_of_a_request(tmp_path: Path) -> None:
    model, people = _bert4rec(tmp_path)
    requests = CalibrationRequests(people, 24, 0)
    family = models.FAMILIES["bert4rec"]
    _, work = sensitivity(family, model, requests, calibrate(family, model, requests, MINMAX, None))
    length = np.mean([len(asked.histories[0]) for asked in requests])
    assert work["layers.0.qkv.weight.values"] == pytest.approx(length * 16 * 48)
    assert work["last.feed_forward.up.weight.values"] == 16 * 64
    assert work["transform.weight.values"] == 16 * 16


@pytest.mark.parametrize("made", FAMILIES)
@pytest.mark.parametrize("smooth", [None, 0.5])
@torch.no_grad()
def test_bias_correction_takes_the_mean_error_off_every_map(tmp_path: Path, made: Made, smooth: float | None) -> None:
    """Of each map by itself: what it reads comes from maps in floating point, as when its means were seen."""
    model, people = made(tmp_path)
    family = models.FAMILIES[model.config.recommender["family"]]
    requests = CalibrationRequests(people, 24, 0)
    maps = calibrate(family, model, requests, MINMAX, smooth, weight_bits=4, bias_correction=True)
    for name, how in maps.items():
        graph = _served(model)
        linear = graph.linear_maps[name]
        linear.input = reads = _Kept()
        for asked in requests:
            graph(*family.inputs(model, asked).values())
        x = torch.cat(reads.rows)
        expected = linear(x).mean(dim=0)
        scale = linear(x).std()
        errors = []
        for fewer in (replace(how, means=None), how, how.with_weight_bits(3)):
            alone = _served(model).linear_maps[name]
            alone.fake_quantize(fewer)
            errors.append(float((alone(x).mean(dim=0) - expected).abs().max() / scale))
        without, corrected, of_other_bits = errors
        assert corrected < 1e-4 < without
        assert of_other_bits < 1e-4, "a target with fewer bits has a shift of its own"


@pytest.mark.parametrize("made", FAMILIES)
def test_a_served_graph_recommends_as_the_plain_model_whatever_its_outputs(tmp_path: Path, made: Made) -> None:
    model, people = made(tmp_path)
    family = models.FAMILIES[model.config.recommender["family"]]
    expected = recommend_all(plain(family, model, 6), people, "validation")
    assert recommend_all(served(family, model, Rounding(), 6), people, "validation").tolist() == expected.tolist()


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    """Data, and a model that was trained on nothing."""
    data = text_fakes.data(tmp_path / "data", text_fakes.table(20), _people(20))
    folder = tmp_path / "teacher"
    (folder / "model").mkdir(parents=True)
    models.FAMILIES["bert4rec"].save(fakes.tiny_model(), folder / "model")
    return {"data": data, "teacher": text_fakes.stored(folder, "finetune", "teacher")}


def _quantized(inputs: dict[str, Artifact], folder: Path, **fields: Any) -> Artifact:
    folder.mkdir()
    section = QuantizeSection.model_validate({"kind": "quantize", "input": "teacher", "linear": "static", **fields})
    return text_fakes.stored(folder, "quantize", "int8", quantize.run(section, inputs, Workspace(folder, seed=0)))


def test_the_stage_leaves_a_description_that_comes_back(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    made = _quantized(inputs, tmp_path / "int8", calibration={"histories": 10}, smooth=0.5, keep=2)
    rounding = Rounding.of(artifact.read(made.folder))
    assert (rounding.linear, rounding.item_table) == ("static", "int8-per-row")
    assert made.metrics["calibration_histories"] == 10
    assert 0 < made.metrics["calibration_seconds"] < 60
    assert 0 <= made.metrics["calibration_memory_bytes"] < 2**30
    kept = [name for name, how in rounding.maps.items() if how is None]
    assert sorted(kept) == sorted(made.metrics["kept"])
    harm, work = made.metrics["sensitivity"], made.metrics["multiply_adds"]
    gain = {name: harm[name] / work[name] for name in harm}
    assert min(gain[name] for name in kept) >= max(gain[name] for name in gain if name not in kept)
    _, model = models.load(made.path("model"))
    assert list(rounding.maps) == _served(model).linear_weights
    assert rounding.parts() == ["static products", "item table"]


def test_what_harms_most_for_the_time_it_saves_stays_in_floating_point(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(family: Any, model: Any, requests: Any, maps: Json) -> tuple[dict[str, float], dict[str, float]]:
        asked.extend(requests)
        harm = {name: 1.0 + place for place, name in enumerate(maps)}
        return harm, {name: 1000.0 if place else 1.0 for place, name in enumerate(maps)}

    asked: list[Asked] = []
    monkeypatch.setattr("compress.calibration.sensitivity", told)
    made = _quantized(inputs, tmp_path / "int8", keep=1, calibration={"histories": 3})
    expected = validation_requests(Interactions.of(inputs), 64, 0)
    assert [each.histories[0].tolist() for each in asked] == [each.histories[0].tolist() for each in expected]
    assert made.metrics["sensitivity_requests"] == len(asked) == 24
    assert made.metrics["kept"] == [next(iter(Rounding.of(made).maps))], "the least harm, and next to no time"


@pytest.mark.parametrize("linear", ["static", "weights", "dynamic"])
def test_its_metrics_are_those_of_what_is_rounded(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linear: str
) -> None:
    judged = []

    def look(recommend: Any, people: Interactions, split: Any) -> dict[str, float]:
        judged.append(recommend_all(recommend, people, split))
        return evaluate(recommend, people, split)

    monkeypatch.setattr("compress.evaluation.evaluate", look)
    made = _quantized(inputs, tmp_path / "int8", linear=linear)
    people = Interactions.of(inputs)
    family, model = models.load(made.path("model"))
    k = people.judged_items
    found = recommend_all(served(family, model, Rounding.of(made), k), people, "validation")
    assert judged[0].tolist() == found.tolist()
    assert found.tolist() != recommend_all(plain(family, model, k), people, "validation").tolist()
    targets = people.targets("validation")
    assert made.metrics["recall@10"] == pytest.approx(
        float((found[:, :10] == targets[:, None]).any(axis=1).mean()), abs=1e-6
    )


def test_what_is_held_out_does_not_move_a_scale(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    people = Interactions.of(inputs)
    other = replace(people, items=np.where(people.parts > 0, (people.items + 3) % 20, people.items))
    elsewhere = inputs | {"data": text_fakes.data(tmp_path / "other", text_fakes.table(20), other)}
    ours, theirs = (
        linear_rounding.read(_quantized(each, tmp_path / name).path(linear_rounding.QUANTIZATION))
        for name, each in (("one", inputs), ("two", elsewhere))
    )
    for name, how in ours.items():
        assert how is not None
        assert theirs[name] is not None
        assert how.as_json() == theirs[name].as_json()


def test_other_switches_are_not_calibrated(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    made = _quantized(inputs, tmp_path / "int8", linear="dynamic")
    assert not (made.folder / linear_rounding.QUANTIZATION).exists()
    assert Rounding.of(made) == Rounding("dynamic", "int8-per-row")
    assert Rounding.of(made).rounded_from == "teacher"
    again = _quantized(inputs | {"teacher": made}, tmp_path / "again", linear="dynamic")
    assert Rounding.of(again).rounded_from == "teacher", "its floats, however often it is rounded"
