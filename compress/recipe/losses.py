"""`loss:` and `losses:` what training minimises."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple, get_args

from pydantic import Field, model_validator

from compress.recipe.base import Distinct, Fraction, Section


class Ramp(Section):
    """How a number changes in training: from what the loss says to another."""

    to: float = Field(ge=0)
    shape: Literal["linear", "cosine", "step"] = Field(
        "linear", description="step: at once, where it begins; cosine: half a wave, slow at both ends"
    )
    begin: Fraction = Field(0.0, description="share of training before it")
    end: Fraction = Field(1.0, description="share of training when it is there")

    @model_validator(mode="after")
    def _takes_time(self) -> Ramp:
        if self.shape != "step" and self.end <= self.begin:
            raise ValueError(f"end: {self.end} is not after begin, {self.begin}")
        return self


class Stack(NamedTuple):
    """A model's layers, as far as they are known."""

    depth: int | None = None
    """How many; of a pruned model at most so many."""
    width: int | None = None
    heads: int | None = None
    pruned: bool = False
    """Whether layers differ in what they have."""


class Loss(Section):
    """One term of a weighted sum."""

    kind: str
    weight: float = Field(1.0, ge=0, description="0 where a schedule raises it")
    schedule: dict[Literal["weight", "temperature"], Ramp] = Field({}, description="of what changes in training")

    needs_teacher: ClassVar[bool] = True
    compares_every_score: ClassVar[bool] = False
    """With the teacher's own: what a cache keeps of all but the best together is not that."""
    reads_layers: ClassVar[bool] = False
    """Whether it looks at what layers compute, and not at scores alone."""
    reads_heads: ClassVar[bool] = False
    """Queries, keys and values, too: no cache has them."""

    @model_validator(mode="after")
    def _schedules_what_it_has(self) -> Loss:
        if "temperature" in self.schedule:
            if "temperature" not in type(self).model_fields:
                raise ValueError(f"schedule: {self.kind} has no temperature")
            if not self.schedule["temperature"].to:
                raise ValueError("schedule.temperature.to: a temperature is above 0")
        if not (self.weight or ("weight" in self.schedule and self.schedule["weight"].to)):
            raise ValueError(f"weight: {self.kind} never counts; leave it out, or let schedule.weight raise it")
        return self


class LabelOnly(Loss):
    """A loss that needs no teacher."""

    needs_teacher: ClassVar[bool] = False


class Listwise(Loss):
    """A loss over the teacher's best items of each position and others drawn beside them."""

    top: int = Field(50, ge=2, description="the teacher's best items")
    others: int = Field(50, ge=0, description="drawn from the rest, anew each step")


class ByLayer(Loss):
    """A loss over what layers compute."""

    reads_layers: ClassVar[bool] = True
    layers: dict[int, int] = Field(min_length=1, description="student layer: teacher layer")
    lowest: ClassVar[int] = 1

    def misfit(self, student: Stack, teacher: Stack) -> str | None:
        """Why it cannot compare the two; None if it can, or if nobody knows yet."""
        if self.reads_heads and (student.pruned or teacher.pruned):
            return f"{self.kind}: compares heads, and a pruned model's layers have others; use hidden"
        for who, has, named in (("student", student, self.layers), ("teacher", teacher, self.layers.values())):
            if has.depth is not None and not all(self.lowest <= layer <= has.depth for layer in named):
                return f"{self.kind} names {who} layers {list(named)}; the {who} has {self.lowest} to {has.depth}"
        return None


class Softmax(LabelOnly):
    """Cross-entropy of the label against the whole catalogue."""

    kind: Literal["softmax"]
    label_smoothing: Fraction = Field(0.0, description="share of the target spread evenly over the catalogue")


class SampledSoftmax(LabelOnly):
    """Cross-entropy of the label against uniformly drawn negatives, for catalogues too large for `softmax`."""

    kind: Literal["sampled_softmax"]
    negatives: int = Field(256, ge=1, description="drawn once per batch, shared by its positions")


class GBCE(LabelOnly):
    """Generalised binary cross-entropy (Petrov & Macdonald 2023, arXiv 2308.07192)."""

    kind: Literal["gbce"]
    negatives: int = Field(256, ge=1, description="drawn once per batch, shared by its positions")
    calibration: float = Field(0.75, ge=0, le=1, description="t of the paper: 0 is plain BCE, 1 is calibrated")


class BCE(LabelOnly):
    """Binary cross-entropy: each example's next item is one to recommend, the others beside it are not."""

    kind: Literal["bce"]


class KL(Loss):
    """Kullback-Leibler divergence to the teacher's distribution over the catalogue, at every supervised position."""

    kind: Literal["kl"]
    temperature: float = Field(1.0, gt=0)
    top: int | None = Field(None, ge=2, description="over the teacher's so many best items alone")
    others: int = Field(0, ge=0, description="and so many drawn from the rest, anew each step")

    @model_validator(mode="after")
    def _others_beside_some(self) -> KL:
        if self.others and self.top is None:
            raise ValueError("others: without top, all items are compared already")
        return self


class RelaxedRanking(Listwise):
    """Plackett-Luce likelihood of the order of the teacher's best items above others (DE-RRD, arXiv 2012.04357)."""

    kind: Literal["relaxed_ranking"]


class RankNet(Listwise):
    """Logistic loss of every pair that the teacher orders (Burges et al. 2005)."""

    kind: Literal["ranknet"]


class LambdaLoss(Listwise):
    """RankNet's pairs, each weighing what swapping the two changes in NDCG (Burges 2010, Wang et al. 2018)."""

    kind: Literal["lambda_loss"]


class MSE(Loss):
    """Mean squared error of every score to the teacher's."""

    compares_every_score: ClassVar[bool] = True
    kind: Literal["mse"]


class MarginMSE(Loss):
    """Mean squared error of the label's margin over every other item to the teacher's (arXiv 2010.02666)."""

    compares_every_score: ClassVar[bool] = True
    kind: Literal["margin_mse"]
    scaled: bool = Field(False, description="relative to the teacher's margins, whatever the scale of its scores")


class Hidden(ByLayer):
    """Mean squared error of hidden states to the teacher's, through a learned projection (TinyBERT, arXiv 1909.10351).

    Layer 0 is the embedding output, layer n the output of the n-th layer.
    """

    kind: Literal["hidden"]
    lowest: ClassVar[int] = 0


class Attention(ByLayer):
    """Mean squared error of attention before its softmax (TinyBERT, arXiv 1909.10351); as many heads as the teacher.

    Layer n is the n-th layer, from 1.
    """

    reads_heads: ClassVar[bool] = True
    kind: Literal["attention"]

    def misfit(self, student: Stack, teacher: Stack) -> str | None:
        why = super().misfit(student, teacher)
        if student.heads and teacher.heads and student.heads != teacher.heads:
            why = why or f"attention: the student has {student.heads} heads, the teacher {teacher.heads}; use relations"
        return why


Relation = Literal["query-key", "query-query", "key-key", "value-value"]


class Relations(ByLayer):
    """Divergence of how positions relate to each other (MiniLMv2, arXiv 2012.15828), whatever widths and heads are.

    `of: [query-key, value-value]` of the last layers is MiniLM (arXiv 2002.10957). Layer n is the n-th layer, from 1.
    """

    reads_heads: ClassVar[bool] = True
    kind: Literal["relations"]
    of: Annotated[tuple[Relation, ...], Distinct] = Field(("query-query", "key-key", "value-value"), min_length=1)
    heads: int = Field(12, ge=1, description="of relations; they divide both widths")

    def misfit(self, student: Stack, teacher: Stack) -> str | None:
        why = super().misfit(student, teacher)
        for who, width in (("student", student.width), ("teacher", teacher.width)):
            if width and width % self.heads:
                why = why or f"relations.heads: {self.heads} do not divide the {who}'s width, {width}"
        return why


_OfLabels = Softmax | SampledSoftmax | GBCE | BCE
_OfTeachers = KL | RelaxedRanking | RankNet | LambdaLoss | MSE | MarginMSE | Hidden | Attention | Relations

LabelLoss = Annotated[_OfLabels, Field(discriminator="kind")]
DistillLoss = Annotated[_OfLabels | _OfTeachers, Field(discriminator="kind")]

BY_LAYER = frozenset(
    kind
    for loss in get_args(_OfTeachers)
    if loss.reads_layers
    for kind in get_args(loss.model_fields["kind"].annotation)
)
"""Kinds that look at layers."""
