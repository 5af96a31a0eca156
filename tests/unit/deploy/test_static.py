"""Static int8 graphs: the integers of PyTorch's fake quantization, and the same answer in whatever company."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import fakes
import text_fakes
from compress import models
from compress.calibration import calibrate
from compress.data.calibration import CalibrationRequests
from compress.data.histories import Asked
from compress.methods.cutting import Kept, KeptLayer, cut
from compress.methods.linear_rounding import LinearRounding, Maps
from compress.methods.rounding import Rounding
from compress.models.family import ServedGraph
from compress.provenance import hardware
from compress.recipe.serving import CalibrationSection
from deploy.export import write_graph
from deploy.lowering import fake_quantization, onnxruntime_cpu, quantize_dequantize, rounded, tensorrt
from deploy.runtimes.as_written import AsWritten
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu

Made = Callable[[Path], Any]

BITS = [7, 8] if hardware().get("vnni") == "true" else [7]
"""Of weights; eight saturate without VNNI."""


def _bert4rec(folder: Path) -> Any:
    return fakes.tiny_model(items=text_fakes.COUNT, intermediate_size=24, max_length=12)


def _many_heads(folder: Path) -> Any:
    return fakes.tiny_model(items=text_fakes.COUNT, attention="masked", num_attention_heads=8, max_length=12)


def _pruned(folder: Path) -> Any:
    """No heads in the first layer, one in the second; fewer neurons; a narrower model."""
    model = _bert4rec(folder)
    some = tuple(range(1, 24, 3))
    cut(model, Kept((KeptLayer((), some), KeptLayer((0,), some)), tuple(range(0, 16, 2))))
    return model


def _cross_encoder(folder: Path) -> Any:
    return text_fakes.cross_encoder(text_fakes.texts(folder))


def _two_tower(folder: Path) -> Any:
    return text_fakes.two_tower(text_fakes.texts(folder))


def _cls_tower(folder: Path) -> Any:
    return text_fakes.two_tower(text_fakes.texts(folder), pooling="cls")


MODELS = [_bert4rec, _many_heads, _pruned, _cross_encoder, _two_tower, _cls_tower]


class Lowered:
    """A model calibrated on made-up people, fake-quantised in PyTorch and lowered.

    Args:
        standard: its standard graph.
        folder: the lowered one's.

    """

    def __init__(
        self,
        model: Any,
        standard: Path,
        folder: Path,
        bits: int,
        smooth: float | None = None,
        keep: int = 0,
        **grid: Any,
    ) -> None:
        self.model = model
        self.standard = standard
        self.family = models.FAMILIES[self.model.config.recommender["family"]]
        people = fakes.interactions(users=40, items=text_fakes.COUNT)
        requests = CalibrationRequests(people, 40, 0)
        maps: Maps = calibrate(self.family, self.model, requests, CalibrationSection(), smooth, **grid)
        self.maps = {name: None if place < keep else how for place, (name, how) in enumerate(maps.items())}
        rounding, vnni = Rounding("static", maps=self.maps), bits == 8
        onnxruntime_cpu.lower(standard, folder / "cpu.onnx", rounding, list(maps), vnni=vnni)
        self.graph = onnx.load(folder / "cpu.onnx").graph
        self.int8 = OnnxRuntimeCpu(folder / "cpu.onnx", 1)
        self.fake = self.served()
        self.fake.fake_quantize(onnxruntime_cpu.as_multiplied(rounding, vnni=vnni).maps)

    def served(self) -> ServedGraph:
        return _served(self.model)

    def inputs(self, *lengths: int) -> list[Mapping[str, Any]]:
        """Calls of the graph: all histories together where it takes several."""
        histories = fakes.histories(*lengths, items=text_fakes.COUNT)
        together = [Asked(histories, histories)]
        if len(self.fake.outputs) == 1:  # one user's candidates at a time
            together = [together[0].of([row]) for row in range(len(histories))]
        return [{name: value.numpy() for name, value in self._told(asked).items()} for asked in together]

    def _told(self, asked: Asked) -> dict[str, torch.Tensor]:
        return self.family.inputs(self.model, asked)

    @torch.no_grad()
    def expected(self, graph: ServedGraph, inputs: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        return self.scores([each.numpy() for each in graph(*map(torch.from_numpy, inputs.values()))])

    def answer(self, inputs: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        return self.scores(self.int8(inputs))

    def scores(self, outputs: Any) -> np.ndarray[Any, Any]:
        return _scores(self.fake, outputs)

    def count(self, *kinds: str) -> int:
        return sum(node.op_type in kinds for node in self.graph.node)


Lower = Callable[..., Lowered]


def _scores(graph: ServedGraph, outputs: Any) -> np.ndarray[Any, Any]:
    """By item, (users, I), or of candidates; 0 where it is no answer."""
    found = dict(zip(graph.outputs, map(np.asarray, outputs), strict=True))
    scores = np.where(found["scores"] > -1e8, found["scores"], 0)
    if "items" not in found:
        return scores
    by_item = np.zeros((len(scores), text_fakes.COUNT + 2), dtype=np.float32)
    np.put_along_axis(by_item, found["items"], scores, axis=1)
    return by_item


def _served(model: Any) -> ServedGraph:
    return models.FAMILIES[model.config.recommender["family"]].serve(model, text_fakes.COUNT, Rounding()).eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Made], tuple[Any, Path]]:
    """A model and its standard graph, written once: that takes seconds, lowering it does not."""

    @cache
    def of(made: Made) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp("standard")
        model = made(folder)
        write_graph(_served(model), folder / "model.onnx")
        return model, folder / "model.onnx"

    return of


@pytest.fixture
def lower(exported: Callable[[Made], tuple[Any, Path]], tmp_path: Path) -> Lower:
    return lambda made, *how, **options: Lowered(*exported(made), tmp_path, *how, **options)


@pytest.mark.parametrize("made", MODELS)
def test_dynamic_products_are_nearly_those_of_fake_quantization_by_call(
    exported: Callable[[Made], tuple[Any, Path]], tmp_path: Path, made: Made
) -> None:
    """Nearly: a product that ends in other last digits is another range for the next."""
    model, standard = exported(made)
    floats, fake = _served(model), _served(model)
    onnxruntime_cpu.lower(standard, tmp_path / "cpu.onnx", Rounding("dynamic"), floats.linear_weights, vnni=8 in BITS)
    int8 = OnnxRuntimeCpu(tmp_path / "cpu.onnx", 1)
    fake.fake_quantize_by_call()
    family = models.FAMILIES[model.config.recommender["family"]]
    errors = []
    for history in fakes.histories(1, 3, 8, 12, 5, 15, items=text_fakes.COUNT):
        inputs = family.inputs(model, Asked([history], [history]))
        told = _scores(fake, int8({name: value.numpy() for name, value in inputs.items()}))
        with torch.no_grad():
            errors.append([np.abs(_scores(each, each(*inputs.values())) - told).mean() for each in (fake, floats)])
    ours, rounding = np.mean(errors, axis=0)
    assert ours < 0.05 * rounding


@pytest.mark.parametrize("made", MODELS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("smooth", "grid"),
    [
        (None, {}),
        (0.5, {}),
        (None, {"weight_bits": 4, "per_channel": False}),
        (0.5, {"weight_bits": 4, "bias_correction": True}),
    ],
)
def test_the_int8_graph_answers_as_fake_quantization(
    lower: Lower, made: Made, bits: int, smooth: float | None, grid: dict[str, Any]
) -> None:
    lowered = lower(made, bits, smooth, **grid)
    ours, theirs, floats = [], [], []
    for inputs in lowered.inputs(1, 3, 8, 12, 5, 15):
        ours.append(lowered.answer(inputs))
        theirs.append(lowered.expected(lowered.fake, inputs))
        floats.append(lowered.expected(lowered.served(), inputs))
    errors = np.concatenate([np.abs(a - b).ravel() for a, b in zip(ours, theirs, strict=True)])
    noise = np.concatenate([np.abs(a - b).ravel() for a, b in zip(theirs, floats, strict=True)])
    assert noise.max() > 1e-3, "integers are seen"
    # Nearly all are the same; a step on the other side of a half now and then is less than what rounding does itself.
    assert np.median(errors) < 1e-5
    assert errors.max() < noise.max()


@pytest.mark.parametrize("made", MODELS)
@pytest.mark.parametrize("smooth", [None, 0.5])
def test_every_product_has_an_integer_kernel(lower: Lower, made: Made, smooth: float | None) -> None:
    lowered = lower(made, BITS[-1], smooth)
    standard = onnx.load(lowered.standard).graph.node
    products = [node for node in standard if node.op_type == "MatMul" and node.input[1] in lowered.maps]
    assert len(products) >= len(lowered.maps) > 0
    assert lowered.count("MatMulIntegerToFloat") == len(products)
    assert lowered.count("DequantizeLinear") == 0
    assert lowered.count("QuantizeLinear") == len(products)
    stored = {tensor.name for tensor in lowered.graph.initializer}
    assert not stored & set(lowered.maps), "no weight lies there a second time, as floats"
    biased = [node for node in lowered.graph.node if node.op_type == "MatMulIntegerToFloat" and len(node.input) > 6]
    assert len(biased) >= len(products) // 2


def test_four_bits_stay_four_whatever_a_processor_can_multiply(lower: Lower) -> None:
    lowered = lower(_bert4rec, BITS[-1], weight_bits=4)
    integers = [onnx.numpy_helper.to_array(tensor) for tensor in lowered.graph.initializer if "integers" in tensor.name]
    assert len(integers) == len(lowered.maps)
    assert {int(np.abs(each).max()) for each in integers} == {7}


def test_what_is_kept_is_multiplied_as_floats(lower: Lower) -> None:
    lowered = lower(_bert4rec, BITS[-1], keep=3)
    assert lowered.count("MatMulIntegerToFloat") == len(lowered.maps) - 3
    stored = {tensor.name: tensor.data_type for tensor in lowered.graph.initializer}
    assert [stored.get(name) for name in list(lowered.maps)[:3]] == [onnx.TensorProto.FLOAT] * 3
    (inputs,) = lowered.inputs(3, 8)
    np.testing.assert_allclose(lowered.answer(inputs), lowered.expected(lowered.fake, inputs), atol=1e-4)


@pytest.mark.parametrize("made", [_bert4rec, _many_heads, _pruned, _two_tower, _cls_tower])
def test_a_history_has_one_answer_alone_padded_and_in_a_batch(lower: Lower, made: Made) -> None:
    lowered = lower(made, BITS[-1])
    (batch,) = lowered.inputs(1, 3, 8, 12, 5, 15)
    together = lowered.answer(batch)
    (name, ids), (_, exclude) = batch.items()
    pad = lowered.fake.pad_id if name == "history" else lowered.model.config.pad_token_id
    for row, expected in enumerate(together):
        real = ids[row] != pad
        for extra in (0, 1, 4):
            wide = np.full((2, min(ids.shape[1], real.sum() + extra)), pad)  # beside an empty one
            at = slice(-real.sum(), None) if name == "history" else slice(real.sum())
            wide[0, at] = ids[row][real]
            if name != "history":
                wide[1, 0] = ids[row, 0]
            alone = lowered.answer({name: wide, "exclude": exclude[[row, row]]})[0]
            assert np.argsort(-alone)[:10].tolist() == np.argsort(-expected)[:10].tolist()
            np.testing.assert_allclose(alone, expected, atol=1e-4)


def test_a_candidate_has_one_score_in_any_company(lower: Lower) -> None:
    lowered = lower(_cross_encoder, BITS[-1])
    (inputs,) = lowered.inputs(4)
    together = lowered.answer(inputs)
    for place, expected in enumerate(together):
        item = inputs["items"][[place]]
        alone = item[:, : (item != lowered.fake.pad_id).sum()]
        found = lowered.answer({"user": inputs["user"], "items": alone})
        np.testing.assert_allclose(found, [expected], atol=1e-4)


@pytest.mark.parametrize("smooth", [None, 0.5])
def test_explicit_rounding_is_standard_and_leaves_what_it_is_not_told_of(
    lower: Lower, tmp_path: Path, smooth: float | None
) -> None:
    lowered = lower(_bert4rec, BITS[-1], smooth, keep=1)
    model = onnx.load(lowered.standard)
    before = [node.op_type for node in model.graph.node]
    quantize_dequantize.insert(model, lowered.maps)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    added = {"QuantizeLinear", "DequantizeLinear", *(["Mul"] if smooth else [])}
    after = [node.op_type for node in model.graph.node]
    for kind in set(before) - added:
        assert after.count(kind) == before.count(kind)
    assert after.count("QuantizeLinear") == len(lowered.maps) - 1
    onnx.save(model, tmp_path / "explicit.onnx")
    (inputs,) = lowered.inputs(3, 8)
    explicit = lowered.scores(OnnxRuntimeCpu(tmp_path / "explicit.onnx", 1)(inputs))
    fake = lowered.served()
    fake.fake_quantize(lowered.maps)
    np.testing.assert_allclose(explicit, lowered.expected(fake, inputs), atol=1e-4)


@pytest.mark.parametrize("made", MODELS)
@pytest.mark.parametrize("smooth", [None, 0.5])
@pytest.mark.parametrize("grid", [{}, {"weight_bits": 4, "bias_correction": True}])
def test_tensorrts_integers_are_those_of_fake_quantization(
    lower: Lower, tmp_path: Path, made: Made, smooth: float | None, grid: dict[str, Any]
) -> None:
    """PyTorch's, its words in a graph, and what is lowered: one grid and one bias, derived from one description."""
    lowered = lower(made, BITS[-1], smooth, keep=1, **grid)
    fake = lowered.served()
    fake.fake_quantize({name: how and how.symmetric() for name, how in lowered.maps.items()})
    fake_quantization.write(lowered.standard, tmp_path / "fake.onnx", lowered.maps, quantize_dequantize.signed)
    tensorrt.lower(lowered.standard, tmp_path / "int8.onnx", "int8", lowered.maps, around="fp32")
    rounded.write(tmp_path / "int8.onnx", tmp_path / "twin.onnx")
    graphs = [AsWritten(tmp_path / name) for name in ("fake.onnx", "twin.onnx")]
    errors, noise = [], []
    for inputs in lowered.inputs(1, 3, 8, 12, 5, 15):
        in_pytorch, in_a_graph = lowered.expected(fake, inputs), lowered.scores(graphs[0](inputs))
        errors.append(np.abs(in_a_graph - in_pytorch).ravel())
        noise.append(np.abs(in_pytorch - lowered.expected(lowered.served(), inputs)).ravel())
        np.testing.assert_array_equal(lowered.scores(graphs[1](inputs)), in_a_graph)
    assert np.concatenate(noise).max() > 1e-3, "integers are seen"
    assert np.median(np.concatenate(errors)) < 1e-5, "a step falls on the other side of a half now and then"
    assert np.concatenate(errors).max() < np.concatenate(noise).max()


@pytest.mark.parametrize("made", [_bert4rec, _cross_encoder, _two_tower])
def test_fp8_products_are_those_that_numpy_rounds(lower: Lower, tmp_path: Path, made: Made) -> None:
    lowered = lower(made, BITS[-1], 0.5)
    fake_quantization.write(lowered.standard, tmp_path / "fake.onnx", lowered.maps, quantize_dequantize.fp8)
    tensorrt.lower(lowered.standard, tmp_path / "fp8.onnx", "fp8", lowered.maps, around="fp32")
    rounded.write(tmp_path / "fp8.onnx", tmp_path / "twin.onnx")
    fake, twin = (AsWritten(tmp_path / name) for name in ("fake.onnx", "twin.onnx"))
    for inputs in lowered.inputs(1, 3, 8, 12, 5, 15):
        np.testing.assert_array_equal(lowered.scores(twin(inputs)), lowered.scores(fake(inputs)))


def test_an_fp8_weight_is_within_a_sixteenth_and_uses_all_of_its_range() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    how = LinearRounding.of(weight, -2.0, 1.0)
    stored = quantize_dequantize.fp8(how, weight)
    assert stored.input_scale == pytest.approx(2 / 448, rel=0.01)
    assert 400 <= np.abs(stored.weight_IO.astype(np.float32)).max() <= 448
    back = stored.weight_IO.astype(np.float32) * stored.weight_scales
    assert (np.abs(back - weight) <= np.abs(weight) / 16 + stored.weight_scales * 2**-6).all()
