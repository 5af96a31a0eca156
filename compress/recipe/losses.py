"""`loss:` and `losses:` what training minimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compress.recipe.base import Fraction, Section


class Loss(Section):
    """One term of a weighted sum."""

    kind: str
    weight: float = Field(1.0, gt=0)


class Softmax(Loss):
    """Cross-entropy of the label against the whole catalogue."""

    kind: Literal["softmax"]
    label_smoothing: Fraction = Field(0.0, description="share of the target spread evenly over the catalogue")


class SampledSoftmax(Loss):
    """Cross-entropy of the label against uniformly drawn negatives, for catalogues too large for `softmax`."""

    kind: Literal["sampled_softmax"]
    negatives: int = Field(256, ge=1, description="drawn once per batch, shared by its positions")


class GBCE(Loss):
    """Generalised binary cross-entropy (Petrov & Macdonald 2023, arXiv 2308.07192)."""

    kind: Literal["gbce"]
    negatives: int = Field(256, ge=1, description="drawn once per batch, shared by its positions")
    calibration: float = Field(0.75, ge=0, le=1, description="t of the paper: 0 is plain BCE, 1 is calibrated")


class BCE(Loss):
    """Binary cross-entropy: each example's next item is one to recommend, the others beside it are not."""

    kind: Literal["bce"]


class KL(Loss):
    """Kullback-Leibler divergence to the teacher's distribution over the catalogue, at every supervised position."""

    kind: Literal["kl"]
    temperature: float = Field(1.0, gt=0)


class MSE(Loss):
    """Mean squared error of every score to the teacher's."""

    kind: Literal["mse"]


class MarginMSE(Loss):
    """Mean squared error of the label's margin over every other item to the teacher's (arXiv 2010.02666)."""

    kind: Literal["margin_mse"]


class Hidden(Loss):
    """Mean squared error of hidden states to the teacher's, through a learned projection (TinyBERT, arXiv 1909.10351).

    Layer 0 is the embedding output, layer n the output of the n-th layer.
    """

    kind: Literal["hidden"]
    layers: dict[int, int] = Field(min_length=1, description="student layer: teacher layer")


LabelLoss = Annotated[Softmax | SampledSoftmax | GBCE | BCE, Field(discriminator="kind")]
DistillLoss = Annotated[
    Softmax | SampledSoftmax | GBCE | BCE | KL | MSE | MarginMSE | Hidden, Field(discriminator="kind")
]
