"""`measure:` and `gate:` what is compared, and what must hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from compress.recipe.base import Distinct, Fraction, Name, Section, StageSection


class SizingSection(Section):
    """Requests a second that hold a latency, arrivals being random and waiting for nobody.

    Of the teacher in eager PyTorch and each candidate, for every pair of threads and concurrency.
    """

    limits_ms: Annotated[tuple[PositiveFloat, ...], Distinct] = Field(
        (20, 50), min_length=1, description="what p99 stays below, from arrival to answer, raw ids in and out"
    )
    threads: Annotated[tuple[PositiveInt, ...], Distinct] = Field(
        (1, 2), min_length=1, description="of a worker's runtime"
    )
    concurrency: Annotated[tuple[PositiveInt, ...], Distinct] = Field(
        (1, 2), min_length=1, description="workers of one process, each with a runtime of its own"
    )
    seconds: float = Field(
        1.5, gt=0, description="of arrivals in one trial, more where 500 requests take longer; a search takes some ten"
    )


Peer = Literal["st-onnx", "st-onnx-O3", "st-onnx-int8"]


class MeasureSection(StageSection):
    """Quality of every exported model on test users, and its latency beside the teacher in eager PyTorch."""

    kind: Literal["measure"] = "measure"
    export: Name = Field(description="the export stage whose graphs are measured")
    teacher: Name = Field(description="the reference of quality and, in eager PyTorch, of speed")
    control: Name | Annotated[tuple[Name, ...], Field(min_length=1), Distinct] | None = Field(
        None, description="the student trained on labels alone; of several trials the best on validation users"
    )
    candidates: Annotated[tuple[Name, ...], Distinct] = Field(
        min_length=1, description="the fastest whose validation quality holds is chosen"
    )
    peers: Annotated[tuple[Peer, ...], Distinct] = Field(
        (), description="other tools on the teacher's weights; of a cross-encoder, in the environment of `make peers`"
    )
    min_validation_ratio: Fraction = Field(
        0.98, description="a candidate's validation NDCG@10 over the best candidate's, at least"
    )
    profile: Name | None = Field(
        None,
        description="the profile stage whose predictions are held to what the exported models take; absent: the one "
        "that they were cut by, if it is one; null: none",
    )
    batch_sizes: Annotated[tuple[PositiveInt, ...], Distinct] = Field((1, 32), min_length=1)
    threads: int = Field(2, ge=1)
    rounds: int = Field(400, ge=20, description="interleaved timings of each variant at batch 1; fewer where slow")
    seconds: float = Field(20, gt=0, description="time limit of one batch size's timings, all variants together")

    sizing: SizingSection | None = Field(None, description="absent: not measured, because it takes minutes")

    def inputs(self) -> tuple[str, ...]:
        return (self.export, *([self.profile] if self.profile else []))

    @property
    def controls(self) -> tuple[str, ...]:
        """Trials of the student on labels alone, as many as were tuned over."""
        if self.control is None:
            return ()
        return (self.control,) if isinstance(self.control, str) else self.control


class QualityGate(Section):
    """The chosen model's quality over the teacher's: low end of the paired 95% interval."""

    metric: Literal["ndcg@10", "recall@10", "mrr@10", "recall@100", "auc"] = "ndcg@10"
    min_low: Fraction
    min_ratio: float | None = Field(None, gt=0, description="of the point estimate as well")


class SlicesGate(Section):
    """The chosen model's NDCG@10 over the teacher's in the slice of users where it is worst.

    Low end of the paired 95% interval. A slice of a tenth of the users resolves a third of what all of them do: ask for
    less than of the average.
    """

    min_low: Fraction


class FidelityGate(Section):
    """Mean share of the teacher's top 10 that is in the chosen model's: low end of the 95% interval."""

    min_overlap: Fraction


class LatencyGate(Section):
    """p50 of the teacher in eager PyTorch over the chosen model's, model time: low end of the 95% interval."""

    min_speedup: dict[int, float] = Field(min_length=1, description="batch size: ratio, e.g. {1: 25, 32: 60}")


class PeersGate(Section):
    """p50 of the fastest peer over the chosen model's, raw request to items, smallest batch: low end of 95%."""

    min_speedup: float = Field(gt=0)


class SizeGate(Section):
    """Bytes of the teacher's checkpoint over the chosen graph's."""

    min_ratio: float = Field(gt=0)


class GateSection(StageSection):
    """What a run must show to end with 0 instead of 3."""

    kind: Literal["report"] = "report"
    quality: QualityGate | None = None
    slices: SlicesGate | None = None
    fidelity: FidelityGate | None = None
    latency: LatencyGate | None = None
    peers: PeersGate | None = None
    size: SizeGate | None = None
