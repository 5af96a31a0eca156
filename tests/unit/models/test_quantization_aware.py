"""What trains rounded is what is served rounded: the same scores at every position, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fakes
import text_fakes
from compress import models
from compress.calibration import calibrate
from compress.data.calibration import CalibrationRequests
from compress.data.histories import MASKED, Asked
from compress.methods.cutting import Kept, KeptLayer, cut
from compress.methods.fake_quantization import FakeQuantized, fake_quantized_weight
from compress.methods.linear_rounding import LinearRounding, Maps
from compress.methods.rounding import Rounding
from compress.models.last_layer import only_at, picked
from compress.models.quantization_aware import QuantizationAware
from compress.recipe.serving import CalibrationSection

Made = Callable[[Path], Any]
Aware = Callable[..., tuple[Any, QuantizationAware]]


def _causal(folder: Path) -> Any:
    return fakes.tiny_model(items=text_fakes.COUNT, max_length=12)


def _one_layer(folder: Path) -> Any:
    return fakes.tiny_model(items=text_fakes.COUNT, max_length=12, num_hidden_layers=1)


def _masked_with_many_heads(folder: Path) -> Any:
    return fakes.tiny_model(items=text_fakes.COUNT, attention="masked", num_attention_heads=8, max_length=12)


def _pruned(folder: Path) -> Any:
    """No heads in the first layer, one in the second, no neurons in the last."""
    model = _causal(folder)
    cut(model, Kept((KeptLayer((), (1, 4, 7)), KeptLayer((0,), ())), tuple(range(0, 16, 2))))
    return model


def _without_heads_at_the_end(folder: Path) -> Any:
    model = _causal(folder)
    cut(model, Kept((KeptLayer((0,), (1, 4, 7)), KeptLayer((), (1, 2))), tuple(range(16))))
    return model


def _cross_encoder(folder: Path) -> Any:
    return text_fakes.cross_encoder(text_fakes.texts(folder))


def _one_way(folder: Path) -> Any:
    return text_fakes.cross_encoder(text_fakes.texts(folder), attention="one_way")


def _two_tower(folder: Path) -> Any:
    return text_fakes.two_tower(text_fakes.texts(folder))


def _cls_tower(folder: Path) -> Any:
    return text_fakes.two_tower(text_fakes.texts(folder), pooling="cls")


MODELS = [
    _causal,
    _one_layer,
    _masked_with_many_heads,
    _pruned,
    _without_heads_at_the_end,
    _cross_encoder,
    _one_way,
    _two_tower,
    _cls_tower,
]


def _family(model: Any) -> Any:
    return models.FAMILIES[model.config.recommender["family"]]


@pytest.fixture
def aware(tmp_path: Path) -> Aware:
    """A model and how it is rounded while it trains."""

    def make(made: Made, smooth: float | None = None, *, rounded: bool = True, **grid: Any) -> Any:
        model = made(tmp_path)
        people = fakes.interactions(users=24, items=text_fakes.COUNT)
        maps: Maps = calibrate(
            _family(model), model, CalibrationRequests(people, 24, 0), CalibrationSection(), smooth, **grid
        )
        if not rounded:
            maps = dict.fromkeys(maps)
        return model, QuantizationAware(_family(model), model, Rounding("static", maps=maps))

    return make


@torch.no_grad()
def _served(model: Any, rounding: Rounding, asked: Asked) -> Tensor:
    """Scores of the graph: by item, (B, I), MASKED where it has no answer."""
    graph = _family(model).serve(model, text_fakes.COUNT, Rounding()).eval()
    graph.fake_quantize(rounding.maps)
    scores_BI = torch.full((len(asked), text_fakes.COUNT + 2), MASKED)
    for row in range(len(asked)):
        one = asked.of([row])
        answer = dict(zip(graph.outputs, graph(*_family(model).inputs(model, one).values()), strict=True))
        items = answer["items"][0] if "items" in answer else torch.from_numpy(_left(one.excluded[0]))
        scores_BI[row, items] = answer["scores"].flatten()
    return scores_BI[:, : text_fakes.COUNT]


def _left(excluded: Any) -> Any:
    return np.setdiff1d(np.arange(text_fakes.COUNT), excluded)


def _asked() -> Asked:
    histories = fakes.histories(1, 3, 8, 12, items=text_fakes.COUNT)
    return Asked(histories, histories)


@pytest.mark.parametrize("made", MODELS)
@pytest.mark.parametrize(("smooth", "grid"), [(None, {}), (0.5, {}), (None, {"weight_bits": 4, "per_channel": False})])
def test_what_trains_answers_as_what_is_served(
    aware: Aware, made: Made, smooth: float | None, grid: dict[str, Any]
) -> None:
    model, rounds = aware(made, smooth, **grid)
    model.requires_grad_(False)
    for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
        layer.weight *= 1 + 0.2 * torch.randn_like(layer.weight)  # trained since it was calibrated
    score = _family(model).scorer(model)  # outside: items' vectors of towers are in floating point
    in_floats = score(_asked()).clamp(min=MASKED)
    with rounds.running():
        trained = score(_asked()).clamp(min=MASKED)
    served = _served(model, rounds.rounding(), _asked())
    assert (trained - in_floats).abs().max() > 1e-3, "integers are seen"
    # A step on the other side of a half now and then is less than what rounding does itself.
    errors = (trained - served).abs()
    assert errors.median() < 1e-5
    assert errors.max() < 0.5 * (trained - in_floats).abs().max()
    torch.testing.assert_close(score(_asked()).clamp(min=MASKED), in_floats)  # nothing is left of it outside


@pytest.mark.parametrize("made", MODELS)
def test_in_floating_point_it_is_the_model_and_so_are_its_gradients(aware: Aware, made: Made, tmp_path: Path) -> None:
    model, rounds = aware(made, rounded=False)
    people = fakes.interactions(users=6, items=text_fakes.COUNT)
    examples = _family(model).examples(model, people, 0)
    batch = examples.collate([examples[place] for place in range(4)])
    parameters = [each for each in model.parameters() if each.requires_grad]

    def scores_and_gradients() -> list[Tensor | None]:
        scores = _family(model).supervise(model, batch).scores()
        kept = scores.masked_fill(scores < MASKED / 2, 0)
        toward = torch.linspace(-1, 1, kept.numel()).view_as(kept)
        return [kept.detach(), *torch.autograd.grad((kept * toward).sum(), parameters, allow_unused=True)]

    expected = scores_and_gradients()
    with rounds.running():
        found = scores_and_gradients()
    for ours, theirs in zip(found, expected, strict=True):
        zeros = torch.zeros_like(theirs if theirs is not None else torch.empty(0)) if ours is None else ours
        if theirs is not None:  # absorbed, a key's bias has no gradient; else it has one of rounding errors
            torch.testing.assert_close(zeros, theirs, atol=2e-3, rtol=1e-3)


def test_hidden_states_and_masks_of_no_padding_are_the_models(aware: Aware) -> None:
    """Transformers hands no mask over where nothing is padded."""
    model, rounds = aware(_causal, rounded=False)
    ids = torch.randint(text_fakes.COUNT, (2, 7), generator=torch.Generator().manual_seed(0))
    expected = model.bert(ids, output_hidden_states=True).hidden_states
    with rounds.running():
        found = model.bert(ids, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 3
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_some_positions_alone_are_rounded_as_all_are(aware: Aware) -> None:
    model, rounds = aware(_cross_encoder)
    ids = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(ids)
    real[1, 5:] = 0
    at_BQ = torch.tensor([[0, 4], [0, 2], [3, 0]])
    with rounds.running():
        everywhere = picked(model.bert(ids, real).last_hidden_state, at_BQ)
        with only_at(model.bert, at_BQ):
            alone = picked(model.bert(ids, real).last_hidden_state, at_BQ)
        torch.testing.assert_close(picked(model.bert(ids, real).last_hidden_state, at_BQ), everywhere)
    torch.testing.assert_close(alone, everywhere, atol=1e-5, rtol=1e-4)


def test_nothing_is_dropped_out_inside(aware: Aware) -> None:
    model, rounds = aware(lambda folder: fakes.tiny_model(items=text_fakes.COUNT, max_length=12, dropout=0.5))
    model.train()
    ids = torch.randint(text_fakes.COUNT, (2, 7), generator=torch.Generator().manual_seed(0))
    with rounds.running():
        assert model.bert(ids).last_hidden_state.equal(model.bert(ids).last_hidden_state)
    assert not model.bert(ids).last_hidden_state.equal(model.bert(ids).last_hidden_state)


def test_rounding_passes_its_gradient_on_and_clipping_none() -> None:
    fake = FakeQuantized(LinearRounding.of(np.ones((1, 1), dtype=np.float32), -1.0, 1.55))
    x = torch.tensor([-3.0, -0.994, 0.123, 1.5, 2.0], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0, 1, 1, 1, 0])
    weight = torch.tensor([[0.3], [-0.7]], requires_grad=True)
    how = LinearRounding.of(weight.detach().numpy(), -1, 1, np.array([2.0, 0.5], dtype=np.float32), weight_bits=4)
    fake_quantized_weight(weight, how).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[2.0], [0.5]]


def test_weights_have_the_integers_of_the_description() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    smoothing = np.random.default_rng(1).uniform(0.3, 3, size=16).astype(np.float32)
    for how in (LinearRounding.of(weight, -1, 1, smoothing), LinearRounding.of(weight, -1, 1, weight_bits=4)):
        expected = how.weight_integers(weight) * how.weight_scales
        np.testing.assert_array_equal(fake_quantized_weight(torch.from_numpy(weight), how).numpy(), expected)


def test_inputs_keep_their_scales_and_weights_theirs_follow(aware: Aware) -> None:
    model, rounds = aware(_causal, 0.5, weight_bits=4)
    before = rounds.rounding().maps
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.weight *= 3
    for name, after in rounds.rounding().maps.items():
        was = before[name]
        assert after is not None
        assert was is not None
        assert replace(after, weight_scales=was.weight_scales).as_json() == was.as_json()
        times = 3 if ".up." in name else 1
        np.testing.assert_allclose(after.weight_scales, times * was.weight_scales, rtol=1e-6)


def test_a_layer_that_was_calibrated_is_rounded_and_one_that_was_kept_is_not(aware: Aware) -> None:
    model, rounds = aware(_causal)
    name = "layers.0.qkv.weight.values"
    kept = QuantizationAware(
        _family(model), model, Rounding("static", maps={**dict.fromkeys(rounds.rounding().maps), name: None})
    )
    one = QuantizationAware(
        _family(model),
        model,
        Rounding("static", maps={**dict.fromkeys(rounds.rounding().maps), name: rounds.rounding().maps[name]}),
    )
    x = torch.randn(1, 3, 16)
    attention = model.bert.encoder.layer[0].attention.self
    for projection in (attention.query, attention.key, attention.value):
        plain = projection(x)
        with kept.running():
            torch.testing.assert_close(projection(x), plain)
        with one.running():
            assert 1e-5 < float((projection(x) - plain).detach().abs().max()) < 0.5
