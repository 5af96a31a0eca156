"""`kind: quantize`, `refresh`, `export` and `build`: from weights to what is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, StringConstraints, model_validator

from compress.recipe.automatic import STATIC_ALONE
from compress.recipe.base import Distinct, Fraction, Name, Section, StageSection


class CalibrationSection(Section):
    """Which values of a linear map's inputs static scales tell apart, seen on training histories."""

    histories: int = Field(1024, ge=1, description="training histories, of many lengths, of popular and rare items")
    method: Literal["minmax", "percentile", "mse"] = Field(
        "percentile",
        description="minmax: all values; percentile: all but the outermost; mse: those that leave the least error",
    )
    percentile: float = Field(99.99, gt=50, le=100, description="percent of values inside; method: percentile only")

    @model_validator(mode="after")
    def _percentile_is_read(self) -> CalibrationSection:
        if self.method != "percentile" and self.percentile != type(self).model_fields["percentile"].default:
            raise ValueError(f"percentile: method {self.method} reads none; say method: percentile or leave it out")
        return self


class QuantizeSection(StageSection):
    """Says what becomes int8, and how; each target's dialect is `export`'s business."""

    kind: Literal["quantize"]
    input: Name
    linear: Literal["dynamic", "static", "weights", "none", "auto"] = Field(
        "dynamic",
        description="dynamic: int8 products, weights per channel, activations scaled per call; "
        "static: the same with scales found beforehand, so that padding and batch mates change nothing; "
        "weights: int8 in the file, floating point in the product; none: floating point; "
        "auto: a stage for each of the first three, exported and measured wherever this one is named",
    )
    item_table: Literal["int8-per-row", "none"] = Field(
        "int8-per-row",
        description="the item embeddings, the largest part of a small recommender's file; of models that read texts "
        "their word embeddings, and a two_tower's vectors of items",
    )
    calibration: CalibrationSection | None = Field(None, description="linear: static only; defaults if absent")
    smooth: Fraction | None = Field(
        None,
        description="share of inputs' range that moves to weights, 0.5 in SmoothQuant; linear: static only, and the "
        "static way of linear: auto has 0.5 unless it says otherwise (null: nothing moves)",
    )
    keep: int = Field(
        0,
        ge=0,
        description="linear maps that stay in floating point, those that rounding harms most, on validation requests, "
        "for the time that it saves; static only",
    )
    weight_bits: Literal[8, 4] = Field(
        8, description="of static products' weights; 4 are stored and multiplied as 8, a hard case to train on from"
    )
    per_channel: bool = Field(True, description="a scale for each output of a weight, or one for all; static only")
    bias_correction: bool = Field(
        False, description="biases take back what rounding changes on average; linear: static only"
    )

    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @model_validator(mode="before")
    @classmethod
    def _static_is_calibrated(cls, said: Any) -> Any:
        if isinstance(said, dict) and said.get("linear") == "static" and said.get("calibration") is None:
            return {**said, "calibration": {}}
        return said

    @model_validator(mode="after")
    def _static_alone_is_calibrated(self) -> QuantizeSection:
        if self.linear != "static":
            for name in STATIC_ALONE:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: linear: {self.linear} has no static scales; say linear: static")
        return self


class RefreshSection(StageSection):
    """Adds items to a model's catalogue and takes others out of it, without training.

    Both files say the difference to the catalogue that `input` was trained on, until it is trained anew.
    """

    kind: Literal["refresh"]
    input: Name
    add: Path | None = Field(
        None,
        description="new items, CSV or Parquet: item_id and text; or item_id and neighbour_id, a row per pair; "
        "relative to the recipe's folder",
    )
    remove: Path | None = Field(
        None,
        description="items never to be recommended again, CSV or Parquet: item_id; relative to the recipe's folder",
    )
    rows: Literal["text", "neighbours"] = Field(
        "text", description="what a new item's row is the mean of: known items with like texts, or the ones given"
    )
    nearest: int = Field(5, ge=1, description="known items that a new one is made of, at most; rows: text only")

    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @model_validator(mode="after")
    def _something_changes(self) -> RefreshSection:
        if self.add is None and self.remove is None:
            raise ValueError("name a file of items to add, or one of items to remove")
        return self


class ExportSection(StageSection):
    """Writes one served graph per input, lowers it for the targets, and holds each to PyTorch."""

    kind: Literal["export"]
    inputs_: Annotated[tuple[Name, ...], Distinct] = Field(
        alias="inputs", min_length=1, description="stages whose models are exported"
    )
    top_k: int = Field(10, ge=1, description="items that a request is answered with, at most")
    targets: tuple[Literal["onnxruntime-cpu"], ...] = Field(("onnxruntime-cpu",), min_length=1)

    def inputs(self) -> tuple[str, ...]:
        return self.inputs_


Capability = Annotated[str, StringConstraints(pattern=r"^\d{1,2}\.\d$"), Field(coerce_numbers_to_str=True)]
"""Of a GPU, as its maker writes it: 8.6."""


class TritonSection(Section):
    """How Triton runs what `--triton` writes."""

    device: Literal["cpu", "gpu"] = Field(
        "cpu", description="cpu: ONNX Runtime; gpu: engines that the tensorrt package built, else ONNX Runtime"
    )
    instances: PositiveInt = Field(
        1, description="of each model, that answer side by side; a processor's have a thread"
    )
    max_queue_delay_us: int = Field(
        500, ge=0, description="that a request waits for others to be batched with, at most"
    )


FP8_FROM = (8, 9)
"""The first GPUs with such products."""


class BuildSection(StageSection):
    """Builds TensorRT engines of what was exported, one per model, precision and GPU generation."""

    kind: Literal["build"]
    input: Name = Field(description="the export stage whose bundles are built")
    models: Annotated[tuple[Name, ...], Distinct] | None = Field(
        None, min_length=1, description="which of its inputs; all if absent"
    )
    precisions: Annotated[tuple[Literal["fp16", "bf16", "fp32", "int8", "fp8"], ...], Distinct] = Field(
        ("fp16",),
        min_length=1,
        description="of products; what sums, norms, compares or masks is fp32 in all. int8 and fp8 of models from "
        "`quantize` with linear: static alone, fp16 around; fp8 from compute capability 8.9 on",
    )
    compute_capabilities: Annotated[tuple[Capability, ...], Distinct] | None = Field(
        None, min_length=1, description="of the GPUs that will run the engines; the one in this machine if absent"
    )
    batch_sizes: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        (1, 8, 32), description="histories, or candidates, of a call: fewest, what is tuned for, most"
    )
    lengths: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None,
        description="positions of each: fewest, what is tuned for, most; from 1 to all that the model reads if absent",
    )
    buckets: int = Field(
        1,
        ge=1,
        le=8,
        description="profiles, each for lengths up to another share of the data's own; a call takes the first",
    )
    version_compatible: bool = Field(
        False, description="engines that later TensorRT of the same major version runs too"
    )
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
        "none", description="other GPUs that run an engine too, where the package can build for them"
    )
    builder: Literal["auto", "tensorrt", "tensorrt-rtx"] = Field(
        "auto", description="the installed package; auto: the first that builds for these GPUs"
    )
    triton: TritonSection = TritonSection()

    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @model_validator(mode="after")
    def _sizes_grow(self) -> BuildSection:
        for name in ("batch_sizes", "lengths"):
            sizes = getattr(self, name)
            if sizes is not None and list(sizes) != sorted(sizes):
                raise ValueError(f"{name}: fewest, what is tuned for, most; got {list(sizes)}")
        return self

    @model_validator(mode="after")
    def _buckets_are_planned_from_data(self) -> BuildSection:
        if self.buckets > 1 and self.lengths is not None:
            raise ValueError("buckets: several are planned from the data's lengths; leave out lengths, or buckets")
        return self

    @model_validator(mode="after")
    def _fp8_is_known_to_the_gpus(self) -> BuildSection:
        older = [each for each in self.compute_capabilities or () if tuple(map(int, each.split("."))) < FP8_FROM]
        if "fp8" in self.precisions and older:
            raise ValueError(
                f"precisions: fp8 needs compute capability 8.9, not {', '.join(older)}; build it in a stage of its own"
            )
        return self
