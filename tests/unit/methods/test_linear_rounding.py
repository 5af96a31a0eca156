"""Grids worked out by hand, fake quantization held to numpy, and the description on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, save

from compress.errors import ArtifactError
from compress.methods import linear_rounding
from compress.methods.fake_quantization import FakeQuantized, FakeQuantizedByCall
from compress.methods.linear_rounding import QUANTIZATION, LinearRounding, scale_and_zero_point
from compress.models.family import Weight
from deploy.runtimes.as_written import AsWritten

WEIGHT = np.array([[1.27, -0.5], [0.004, 2.54]], dtype=np.float32)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (-1.0, 1.55, 0.01, 100),
        (0.0, 2.55, 0.01, 0),
        (-2.55, 0.0, 0.01, 255),
        (1.0, 2.55, 0.01, 0),  # widened to hold zero
        (-2.55, -1.0, 0.01, 255),
        (-1.0, 1.04, 0.008, 125),
    ],
)
def test_a_grid_worked_out_by_hand(low: float, high: float, scale: float, zero_point: int) -> None:
    found_scale, found_zero_point = scale_and_zero_point(low, high)
    assert found_scale == float(np.float32(found_scale)), "runtimes hold it in float32"
    assert found_scale == pytest.approx(scale, rel=1e-6)
    assert found_zero_point == zero_point


def test_a_range_of_nothing_has_a_finite_grid() -> None:
    scale, zero_point = scale_and_zero_point(0.0, 0.0)
    assert scale > 0
    assert zero_point == 0


def test_a_map_worked_out_by_hand() -> None:
    how = LinearRounding.of(WEIGHT, -1.0, 1.55)
    np.testing.assert_allclose(how.weight_scales, [0.01, 0.02], rtol=1e-6)
    assert how.weight_integers(WEIGHT).tolist() == [[127, -25], [0, 127]]
    assert how.weight_integers(WEIGHT).dtype == np.int8


@pytest.mark.parametrize("shift", [-9.0, -0.3, 0.0, 9.0])
def test_a_call_is_put_on_its_own_grid_as_onnx_does_it(tmp_path: Path, shift: float) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32) + np.float32(shift)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 5, 7]) for name in "xy"]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "one.onnx")
    (expected,) = AsWritten(tmp_path / "one.onnx")({"x": x})
    np.testing.assert_allclose(FakeQuantizedByCall()(torch.from_numpy(x)), expected, rtol=1e-6, atol=1e-7)
    assert FakeQuantizedByCall()(torch.zeros(2, 3)).tolist() == torch.zeros(2, 3).tolist()


def test_smoothing_is_in_the_weights_scales() -> None:
    how = LinearRounding.of(WEIGHT, -1.0, 1.55, np.array([2.0, 0.5], dtype=np.float32))
    np.testing.assert_allclose(how.weight_scales, [2 * 0.01, 1.27 / 127], rtol=1e-6)
    assert how.weight_integers(WEIGHT).tolist() == [[127, -100], [0, 127]]


def test_a_scale_for_all_outputs_is_that_of_the_largest() -> None:
    how = LinearRounding.of(WEIGHT, -1.0, 1.55, weight_bits=4, per_channel=False)
    np.testing.assert_allclose(how.weight_scales, [2.54 / 7, 2.54 / 7], rtol=1e-6)
    assert how.weight_integers(WEIGHT).tolist() == [[4, -1], [0, 7]]


def test_a_bias_shift_worked_out_by_hand() -> None:
    means = np.array([1.0, 2.0], dtype=np.float32), np.array([1.1, 1.9], dtype=np.float32)
    how = replace(LinearRounding.of(WEIGHT, -1.0, 1.55), means=means)
    rounded = np.array([[1.27, -0.5], [0.0, 2.54]])
    np.testing.assert_allclose(how.bias_shift(WEIGHT), means[0] @ WEIGHT - means[1] @ rounded, rtol=1e-4)
    assert replace(how, means=None).bias_shift(WEIGHT).tolist() == [0, 0]


def test_a_symmetric_grid_takes_back_what_its_weights_change_alone() -> None:
    means = np.array([1.0, 2.0], dtype=np.float32), np.array([1.1, 1.9], dtype=np.float32)
    even = replace(LinearRounding.of(WEIGHT, -1.0, 1.55), means=means).symmetric()
    rounded = even.weight_integers(WEIGHT) * even.weight_scales
    np.testing.assert_allclose(even.bias_shift(WEIGHT), means[0] @ (WEIGHT - rounded), rtol=1e-3, atol=1e-7)
    assert even.bias_shift(WEIGHT).any()


def test_seven_bits_cover_the_same_range() -> None:
    eight = LinearRounding.of(WEIGHT, -1.0, 1.55)
    seven = eight.with_weight_bits(7)
    assert np.abs(seven.weight_integers(WEIGHT)).max() == 63
    np.testing.assert_allclose(seven.weight_scales * 63, eight.weight_scales * 127, rtol=1e-6)
    np.testing.assert_allclose(seven.with_weight_bits(8).weight_scales, eight.weight_scales, rtol=1e-6)


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_fake_quantized_map_equals_integers_in_numpy(bits: int, smooth: bool) -> None:
    random = np.random.default_rng(0)
    x, weight = (random.normal(size=size).astype(np.float32) for size in ((3, 5, 16), (16, 8)))
    bias = random.normal(size=8).astype(np.float32)
    smoothing = random.uniform(0.3, 3, size=16).astype(np.float32) if smooth else np.ones(16, dtype=np.float32)
    how = LinearRounding.of(weight, -2.0, 1.5, smoothing if smooth else None).with_weight_bits(bits)
    linear = Weight(torch.from_numpy(weight), torch.from_numpy(bias))
    linear.fake_quantize(how)

    divided = x * (1 / smoothing)
    inputs = np.clip(np.rint(divided / np.float32(how.input_scale)) + how.input_zero_point, 0, 255).astype(np.int64)
    assert inputs.min() == 0, "values below the range are clipped"
    limit = 2 ** (bits - 1) - 1
    weights = np.clip(np.rint(weight * smoothing[:, None] / how.weight_scales), -limit, limit).astype(np.int64)
    products = (inputs - how.input_zero_point) @ weights
    expected = products * (how.input_scale * how.weight_scales.astype(np.float64)) + bias
    np.testing.assert_allclose(linear(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("low", "high", "larger"), [(-1.0, 1.55, 1.55), (-3.0, 1.0, 3.0), (0.0, 2.55, 2.55)])
def test_a_symmetric_grid_reaches_the_larger_end(low: float, high: float, larger: float) -> None:
    how = LinearRounding.of(WEIGHT, low, high).symmetric()
    assert how.input_zero_point == 128, "0 of a signed byte"
    assert how.input_scale == float(np.float16(how.input_scale)), "the same number in fp16"
    assert larger * 0.99 <= how.input_scale * 127 <= larger * 1.01
    fake = FakeQuantized(how)
    x = torch.linspace(-larger, larger, 999)
    assert (fake(x) - x).abs().max() <= how.input_scale * 0.6, "both ends are on it"
    assert fake(-x).equal(-fake(x))


def test_symmetric_weights_keep_their_bits_and_are_steps_that_fp16_holds() -> None:
    how = LinearRounding.of(WEIGHT, -1.0, 1.55)
    even = how.symmetric()
    assert even.weight_scales.tolist() == even.weight_scales.astype(np.float16).tolist()
    assert (even.weight_scales >= how.weight_scales).all(), "nothing is clipped that was not"
    np.testing.assert_allclose(even.weight_scales, how.weight_scales, rtol=2**-10)
    assert np.abs(how.with_weight_bits(4).symmetric().weight_integers(WEIGHT)).max() == 7


def test_a_step_too_small_for_fp16_is_its_smallest() -> None:
    even = LinearRounding.of(WEIGHT * 1e-5, -1e-4, 1e-4).symmetric()
    assert even.input_scale == 2**-14
    assert even.weight_scales.tolist() == [2**-14] * 2


def test_zero_stays_zero() -> None:
    for low, high in ((-1.0, 3.0), (0.2, 0.7), (-5.0, -1.0)):
        fake = FakeQuantized(LinearRounding.of(WEIGHT, low, high))
        assert fake(torch.zeros(2)).tolist() == [0.0, 0.0]


def test_what_is_on_the_grid_stays() -> None:
    fake = FakeQuantized(LinearRounding.of(WEIGHT, -1.0, 1.55))
    once = fake(torch.linspace(-2, 2, 1001))
    assert fake(once).equal(once)
    assert len(once.unique()) == 256


def test_a_description_comes_back_bit_for_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(16, 8)).astype(np.float32)
    smoothing = random.uniform(0.3, 3, size=16).astype(np.float32)
    means = smoothing - 1, smoothing + 1
    maps = {
        "a": replace(LinearRounding.of(weight, -0.1, 0.7, smoothing), means=means),
        "b": None,
        "c": LinearRounding.of(weight, -3, 1, weight_bits=4, per_channel=False),
    }
    linear_rounding.write(maps, tmp_path)
    again = linear_rounding.read(tmp_path / QUANTIZATION)
    assert list(again) == ["a", "b", "c"]
    assert again["b"] is None
    for name in ("a", "c"):
        ours, theirs = again[name], maps[name]
        assert ours is not None
        assert theirs is not None
        assert (ours.input_scale, ours.input_zero_point) == (theirs.input_scale, theirs.input_zero_point)
        np.testing.assert_array_equal(ours.weight_scales, theirs.weight_scales)
        np.testing.assert_array_equal(ours.weight_integers(weight), theirs.weight_integers(weight))
        np.testing.assert_array_equal(ours.bias_shift(weight), theirs.bias_shift(weight))
        assert ours.per_channel == theirs.per_channel


def test_a_description_of_another_version_is_one_line(tmp_path: Path) -> None:
    linear_rounding.write({}, tmp_path)
    path = tmp_path / QUANTIZATION
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9}))
    with pytest.raises(ArtifactError, match=r"version 9, this RecPress reads 2; quantize again"):
        linear_rounding.read(path)
