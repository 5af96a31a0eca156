"""The whole recipe, and what must hold between its sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from compress.recipe.adoption import AdoptSection, AnyCheckpoint
from compress.recipe.base import Name, Section, StageSection
from compress.recipe.data import AnyData
from compress.recipe.judging import GateSection, MeasureSection
from compress.recipe.losses import Hidden
from compress.recipe.model import AnyModel
from compress.recipe.serving import ExportSection, QuantizeSection, RefreshSection
from compress.recipe.texts import RetrieveSection, TokenizeSection
from compress.recipe.training import DistillSection, FinetuneSection

AnyStage = Annotated[
    AdoptSection
    | TokenizeSection
    | RetrieveSection
    | FinetuneSection
    | DistillSection
    | QuantizeSection
    | RefreshSection
    | ExportSection,
    Field(discriminator="kind"),
]

RESERVED = ("data", "measure", "report")
"""Stages that every recipe has without listing them."""

MEASURED_BESIDE = ("popularity", "markov", "tfidf", "targets", "history_length")
"""What `measure` stores beside the exported models, under names of their own."""


class Recipe(Section):
    """Data, stages in the order they run, what is measured, and the gate."""

    name: Name
    seed: int | tuple[int, ...] = Field(
        0, description="of training; several live side by side and the report pools them"
    )
    data: AnyData
    candidates: Name | None = Field(
        None,
        description="the retrieve stage on whose lists the quality of all later stages is judged; absent: the whole "
        "catalogue, or the lists that data gives",
    )
    stages: dict[Name, AnyStage] = Field(min_length=1)
    measure: MeasureSection | None = None
    gate: GateSection | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed,) if isinstance(self.seed, int) else self.seed

    @model_validator(mode="after")
    def _stages_name_earlier_ones(self) -> Recipe:
        earlier: dict[str, StageSection] = {}
        for name, stage in self.stages.items():
            if name in RESERVED:
                raise ValueError(f"stages.{name}: the name is taken by a stage every recipe has; choose another")
            for source in stage.inputs():
                if source not in earlier:
                    known = ", ".join(earlier) or "none"
                    raise ValueError(f"stages.{name}: {source!r} is no earlier stage; earlier stages: {known}")
            earlier[name] = stage
        return self

    @model_validator(mode="after")
    def _sections_fit_stages(self) -> Recipe:
        for name, stage in self.stages.items():
            if isinstance(stage, FinetuneSection | DistillSection):
                _check_losses(name, stage, self.stages)
            if isinstance(stage, FinetuneSection | DistillSection | AdoptSection):
                self._check_model(name, stage)
            if isinstance(stage, RetrieveSection) and stage.by != "markov":
                _model_of(stage.by, self.stages, f"stages.{name}.by")
            if isinstance(stage, QuantizeSection | RefreshSection):
                source = stage.input
                while isinstance(rounded := self.stages[source], QuantizeSection):
                    source = rounded.input
                model = _model_of(source, self.stages, f"stages.{name}.input")
                if isinstance(stage, RefreshSection) and model.family != "bert4rec":
                    raise ValueError(f"stages.{name}: refresh adds rows of items, which a {model.family} does not have")
            if isinstance(stage, DistillSection):
                _check_distill(name, stage, self.stages)
            for source in stage.inputs():
                if isinstance(stage, ExportSection) and isinstance(
                    self.stages[source], TokenizeSection | RetrieveSection
                ):
                    raise ValueError(f"stages.{name}: {source!r} has no model; name a stage that has one")
                if isinstance(self.stages[source], ExportSection):
                    raise ValueError(f"stages.{name}: {source!r} is an export stage; name one that has weights")
                if isinstance(self.stages[source], RefreshSection) and not isinstance(stage, ExportSection):
                    raise ValueError(
                        f"stages.{name}: {source!r} is a refresh stage, which only export reads; "
                        f"name its input, {self.stages[source].inputs()[0]!r}"
                    )
        if self.candidates and not isinstance(self.stages.get(self.candidates), RetrieveSection):
            raise ValueError(f"candidates: {self.candidates!r} is no retrieve stage")
        if self.gate and not self.measure:
            raise ValueError("gate: there is no measure section whose numbers it could judge")
        if self.measure:
            _check_measure(self.measure, self.stages)
            export = self.stages[self.measure.export]
            metric = self.gate and self.gate.quality and self.gate.quality.metric
            if metric == "recall@100" and isinstance(export, ExportSection) and export.top_k < 100:
                raise ValueError(f"gate.quality: recall@100 needs stages.{self.measure.export}.top_k of 100 or more")
        if self.gate and self.gate.peers and self.measure and not self.measure.peers:
            raise ValueError("gate.peers: measure.peers names none")
        check_seeds(self.seeds, "seed")
        return self

    def _check_model(self, name: str, stage: FinetuneSection | DistillSection | AdoptSection) -> None:
        """What a model reads besides the interactions is there before it."""
        model = _model_of(name, self.stages, f"stages.{name}")
        for source in model.inputs():
            if not isinstance(self.stages[source], TokenizeSection):
                raise ValueError(f"stages.{name}.model.texts: {source!r} is no tokenize stage")
        order = list(self.stages)
        retrieved = self.candidates in order[: order.index(name)]
        if getattr(model, "drawn", None) == "retrieved" and not retrieved:
            raise ValueError(f"stages.{name}.model.drawn: retrieved: `candidates:` names no retrieve stage before it")
        if model.ranks_candidates and not retrieved and getattr(self.data, "candidates", None) is None:
            raise ValueError(
                f"stages.{name}: a {model.family} ranks candidates: name an earlier retrieve stage in `candidates:`, or "
                "give lists in data.candidates"
            )


def check_seeds(seeds: Sequence[int], where: str) -> None:
    """Raises ValueError, one line that starts with `where`, unless they can be told apart and seed every generator."""
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32 or len(set(seeds)) != len(seeds):
        raise ValueError(f"{where}: {list(seeds)}: one or several different numbers from 0 to {2**32 - 1}")


def _check_losses(name: str, stage: FinetuneSection | DistillSection, stages: dict[str, AnyStage]) -> None:
    """The family has what the losses ask for."""
    model = _model_of(stage.start, stages, f"stages.{name}.start") if stage.start else stage.model
    assert model is not None, "the section has one of the two"
    for loss in stage.losses if isinstance(stage, DistillSection) else (stage.loss,):
        if loss.kind in model.refused_losses:
            raise ValueError(f"stages.{name}: {loss.kind} is no loss for a {model.family}; softmax, kl and others are")


def _check_distill(name: str, student: DistillSection, stages: dict[str, AnyStage]) -> None:
    """A student's teacher is trained by an earlier stage, of its family and attention, deep enough for its losses."""
    teacher = _model_of(student.teacher, stages, f"stages.{name}.teacher")
    ours = _model_of(student.start, stages, f"stages.{name}.start") if student.start else student.model
    assert ours is not None, "the section has one of the two"
    why = ours.misfit(teacher)
    if why:
        raise ValueError(f"stages.{name}.model.{why}")
    depth = teacher.depth
    if depth is None:  # its folder says how deep it is
        return
    matched = [layer for loss in student.losses if isinstance(loss, Hidden) for layer in loss.layers.values()]
    if any(not 0 <= layer <= depth for layer in matched):
        raise ValueError(f"stages.{name}.losses: hidden names teacher layers {matched}; the teacher has 0 to {depth}")
    seeding = (student.initialize and student.initialize.layers) or ()
    if any(not 0 <= layer < depth for layer in seeding):
        raise ValueError(f"stages.{name}.initialize.layers: {list(seeding)}; the teacher has 0 to {depth - 1}")


def _model_of(name: str, stages: dict[str, AnyStage], where: str) -> AnyModel | AnyCheckpoint:
    """What an earlier stage says of the model it leaves. Raises ValueError, at `where`, if there is none."""
    stage = stages[name]
    if isinstance(stage, AdoptSection):
        return stage.model
    if not isinstance(stage, FinetuneSection | DistillSection):
        raise ValueError(f"{where}: {name!r} is a {stage.kind} stage; name one that trains or adopts")
    return stage.model or _model_of(str(stage.start), stages, where)


def _check_measure(measure: MeasureSection, stages: dict[str, AnyStage]) -> None:
    """Everything measured is exported by the named stage."""
    export = stages.get(measure.export)
    if not isinstance(export, ExportSection):
        raise ValueError(f"measure.export: {measure.export!r} is no export stage")
    if export.top_k < 10:
        raise ValueError(
            f"measure.export: stages.{measure.export}.top_k is {export.top_k}; metrics at 10 need at least 10"
        )
    named = (measure.teacher, *measure.candidates, *([measure.control] if measure.control else []))
    for name in named:
        if name not in export.inputs_:
            raise ValueError(
                f"measure: {name!r} is not exported; stages.{measure.export}.inputs: {list(export.inputs_)}"
            )
    for name in export.inputs_:
        if name in (*MEASURED_BESIDE, f"{measure.teacher}-eager", *measure.peers):
            raise ValueError(f"stages.{name}: the name is taken by a row that every report has; choose another")
    family = _model_of(measure.teacher, stages, "measure.teacher").family
    if measure.peers and family != "cross_encoder":
        raise ValueError(
            f"measure.peers: sentence-transformers runs cross-encoders here; {measure.teacher!r} is a {family}"
        )
