"""A cut model says what the masked one says, is smaller, and comes back from its folder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fakes
import text_fakes
from compress import models
from compress.data.histories import Asked
from compress.errors import DataError
from compress.methods import shapes
from compress.methods.cutting import Kept, KeptLayer, cut, everything
from compress.methods.masks import Masks, masked
from compress.methods.rounding import Rounding
from compress.methods.shapes import LayerShape

HEADS, NEURONS, WIDTH = 2, 24, 16
ALL = KeptLayer(tuple(range(HEADS)), tuple(range(NEURONS)))
SOME = tuple(range(1, NEURONS, 3))

CUTS = {
    "heads": Kept((KeptLayer((1,), ALL.neurons), ALL)),
    "neurons": Kept((KeptLayer(ALL.heads, SOME), KeptLayer(ALL.heads, SOME[:3]))),
    "all heads of a layer": Kept((KeptLayer((), ALL.neurons), ALL)),
    "all heads of the last layer": Kept((ALL, KeptLayer((), ALL.neurons))),
    "all neurons of a layer": Kept((KeptLayer(ALL.heads, ()), ALL)),
    "all neurons of the last layer": Kept((ALL, KeptLayer(ALL.heads, ()))),
    "the first layer": Kept((None, ALL)),
    "the last layer": Kept((ALL, None)),
    "width": Kept((ALL, ALL), tuple(range(2, 13))),
    "everything at once": Kept((KeptLayer((), SOME), KeptLayer((0,), SOME)), tuple(range(0, 16, 2))),
}


def _bert4rec(folder: Path) -> tuple[Any, Any]:
    model = fakes.tiny_model(intermediate_size=NEURONS)
    histories = fakes.histories(3, 8, 5)
    return model, Asked(histories, fakes.nothing(histories))


def _masked_bert4rec(folder: Path) -> tuple[Any, Any]:
    model = fakes.tiny_model(intermediate_size=NEURONS, attention="masked")
    histories = fakes.histories(3, 7, 5)
    return model, Asked(histories, fakes.nothing(histories))


def _cross_encoder(folder: Path) -> tuple[Any, Any]:
    model = text_fakes.cross_encoder(text_fakes.texts(folder))
    histories = fakes.histories(4, 2, items=text_fakes.COUNT)
    return model, Asked(histories, text_fakes.without(model.texts, [1, 5, 7], [2, 3]))


def _two_tower(folder: Path, **options: Any) -> tuple[Any, Any]:
    model = text_fakes.two_tower(text_fakes.texts(folder), **options)
    histories = fakes.histories(4, 2, items=text_fakes.COUNT)
    return model, Asked(histories, fakes.nothing(histories))


def _cls_tower(folder: Path) -> tuple[Any, Any]:
    return _two_tower(folder, pooling="cls")


FAMILIES = [_bert4rec, _masked_bert4rec, _cross_encoder, _two_tower, _cls_tower]


def _scores(model: Any, asked: Asked) -> Tensor:
    family = models.FAMILIES[model.config.recommender["family"]]
    if hasattr(model, "item_vectors"):
        del model.item_vectors
    scores = family.scorer(model)(asked)
    return torch.as_tensor(scores).masked_fill(torch.as_tensor(scores) == -torch.inf, 0)


def masks_of(model: Any, kept: Kept) -> Masks:
    """0 for what is not kept."""
    masks = Masks.ones(model)
    for place, left in enumerate(kept.layers):
        if left is None:
            masks.layers_N[place] = 0
            continue
        masks.heads[place].zero_()[list(left.heads)] = 1
        masks.neurons[place].zero_()[list(left.neurons)] = 1
    if kept.hidden is not None:
        masks.hidden_H.zero_()[list(kept.hidden)] = 1
    return masks


@pytest.mark.parametrize("kept", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_cut_model_equals_the_masked_one(
    tmp_path: Path, family: Callable[[Path], tuple[Any, Any]], kept: Kept
) -> None:
    model, asked = family(tmp_path)
    before = _scores(model, asked)
    with masked(model, masks_of(model, kept)):
        expected = _scores(model, asked)
    parameters = model.num_parameters()
    with torch.enable_grad():
        cut(model, kept)
    scores = _scores(model, asked)
    assert not torch.allclose(before, expected, atol=1e-3), "the cut is of something that does nothing"
    torch.testing.assert_close(scores, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    assert model.num_parameters() < parameters


@pytest.mark.parametrize("kept", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_comes_back_from_its_folder_bit_for_bit(
    tmp_path: Path, family: Callable[[Path], tuple[Any, Any]], kept: Kept
) -> None:
    model, asked = family(tmp_path)
    cut(model, kept)
    folder = tmp_path / "model"
    folder.mkdir()
    models.FAMILIES[model.config.recommender["family"]].save(model, folder)
    _, loaded = models.load(folder)
    with torch.no_grad():
        assert _scores(loaded, asked).equal(_scores(model, asked))
    assert [shapes.shape(layer) for layer in shapes.layers(loaded)] == [
        left.shape for left in kept.layers if left is not None
    ]
    again = copy.deepcopy(loaded)
    left = everything(again)
    cut(again, Kept((KeptLayer(left.layers[0].heads, ()), *left.layers[1:])))  # what was cut can be cut further
    assert shapes.shape(shapes.layers(again)[0]).neurons == 0


@pytest.mark.parametrize("kept", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_served_graph_of_a_cut_model_says_what_the_model_says(
    tmp_path: Path, family: Callable[[Path], tuple[Any, Any]], kept: Kept
) -> None:
    model, asked = family(tmp_path)
    with torch.enable_grad():
        cut(model, kept)
    by = models.FAMILIES[model.config.recommender["family"]]
    served = by.serve(model, 5, Rounding()).eval()
    one = Asked(asked.histories[:1], asked.excluded[:1])
    inputs = by.inputs(model, one)
    for ours, theirs in zip(served(*inputs.values()), by.plain(model, 5, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_towers_of_their_own_are_cut_alike(tmp_path: Path) -> None:
    model, asked = _two_tower(tmp_path, separate=True)
    kept = Kept((KeptLayer((0,), SOME), ALL, ALL, KeptLayer((1,), SOME)), tuple(range(3, 15)))
    with masked(model, masks_of(model, kept)):
        expected = _scores(model, asked)
    with torch.enable_grad():
        cut(model, kept)
    torch.testing.assert_close(_scores(model, asked), expected, atol=1e-4, rtol=1e-4)
    folder = tmp_path / "model"
    folder.mkdir()
    models.FAMILIES["two_tower"].save(model, folder)
    assert _scores(models.load(folder)[1], asked).equal(_scores(model, asked))


def test_a_pruned_model_learns(tmp_path: Path) -> None:
    model = fakes.tiny_model(intermediate_size=NEURONS)
    cut(model, CUTS["everything at once"])
    output = model(torch.arange(6)[None]).logits.square().mean()
    output.backward()
    assert all(
        parameter.grad is not None
        for name, parameter in model.named_parameters()
        if parameter.numel() and "key" not in name
    )
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_a_record_of_another_version_is_one_line(tmp_path: Path) -> None:
    model = fakes.tiny_model(intermediate_size=NEURONS)
    cut(model, CUTS["heads"])
    model.config.pruned["version"] = 9
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"pruned.version: 9; this RecPress reads 1"):
        models.load(tmp_path)


def test_an_encoder_keeps_a_layer() -> None:
    with pytest.raises(ValueError, match="one layer at least"):
        cut(fakes.tiny_model(intermediate_size=NEURONS), Kept((None, None)))


def test_a_mask_of_ones_changes_nothing() -> None:
    model = fakes.tiny_model(intermediate_size=NEURONS)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        before = model(ids).logits
        with masked(model, Masks.ones(model, requires_grad=True)):
            torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-5)
        assert model(ids).logits.equal(before)


def test_shapes_are_read_and_given() -> None:
    model = fakes.tiny_model(intermediate_size=NEURONS)
    layer = shapes.layers(model)[0]
    assert shapes.shape(layer) == LayerShape(HEADS, NEURONS)
    shapes.resize(layer, LayerShape(1, 5))
    assert shapes.shape(layer) == LayerShape(1, 5)
    assert layer.attention.self.query.weight.shape == (WIDTH // HEADS, WIDTH)
    assert np.isfinite(layer(torch.zeros(1, 2, WIDTH)).detach().numpy()).all()
