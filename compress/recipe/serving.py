"""`kind: quantize` and `kind: export`: from weights to what is deployed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.recipe.base import Distinct, Name, StageSection


class QuantizeSection(StageSection):
    """Says what becomes int8, and how; each target's dialect is `export`'s business."""

    kind: Literal["quantize"]
    input: Name
    linear: Literal["dynamic", "weights", "none"] = Field(
        "dynamic",
        description="dynamic: int8 products, weights per channel, activations scaled per call; "
        "weights: int8 in the file, floating point in the product; none: floating point",
    )
    item_table: Literal["int8-per-row", "none"] = Field(
        "int8-per-row", description="the item embeddings, the largest part of a small recommender's file"
    )

    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


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
