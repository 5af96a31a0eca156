"""The whole recipe, and what must hold between its sections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from compress.recipe.adoption import AdoptSection
from compress.recipe.base import Name, Section, StageSection
from compress.recipe.checks import check_inputs, check_labels, check_measure, check_model, profiles_behind
from compress.recipe.data import AnyData
from compress.recipe.features import FeaturesSection
from compress.recipe.judging import GateSection, MeasureSection
from compress.recipe.pruning import ProfileSection, PruneSection
from compress.recipe.serving import BuildSection, ExportSection, QuantizeSection, RefreshSection
from compress.recipe.texts import RetrieveSection, TokenizeSection
from compress.recipe.training import DistillSection, FinetuneSection

AnyStage = Annotated[
    AdoptSection
    | TokenizeSection
    | FeaturesSection
    | RetrieveSection
    | FinetuneSection
    | DistillSection
    | ProfileSection
    | PruneSection
    | QuantizeSection
    | RefreshSection
    | ExportSection
    | BuildSection,
    Field(discriminator="kind"),
]

RESERVED = ("data", "measure", "report")
"""Stages that every recipe has without listing them."""


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

    @property
    def measured(self) -> MeasureSection | None:
        """`measure`, its profile the one that exported models were cut by unless the recipe says which, or null."""
        if self.measure is None or "profile" in self.measure.model_fields_set:
            return self.measure
        exported = self.stages[self.measure.export].inputs()
        profiles = {profile for name in exported for profile in profiles_behind(name, self.stages)}
        return self.measure.model_copy(update={"profile": profiles.pop()}) if len(profiles) == 1 else self.measure

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
        if self.candidates and not isinstance(self.stages.get(self.candidates), RetrieveSection):
            raise ValueError(f"candidates: {self.candidates!r} is no retrieve stage")
        for name, stage in self.stages.items():
            check_inputs(name, stage, self.stages)
        labelled = self.data.positive_rating is not None
        if labelled:
            check_labels(self.stages)
        lists_given = labelled or getattr(self.data, "candidates", None) is not None
        order = list(self.stages)
        judged_on = self.stages.get(self.candidates or "")
        rehearses = isinstance(judged_on, RetrieveSection) and judged_on.rehearsals > 0
        rehearsed = frozenset(order[order.index(self.candidates) + 1 :] if self.candidates and rehearses else ())
        for place, (name, stage) in enumerate(self.stages.items()):
            retrieved = self.candidates in order[:place]
            if isinstance(stage, FinetuneSection | DistillSection | AdoptSection):
                check_model(
                    name,
                    self.stages,
                    retrieved=retrieved,
                    rehearsed=rehearsed,
                    lists_given=lists_given,
                    labelled=labelled,
                )
        if self.gate and not self.measure:
            raise ValueError("gate: there is no measure section whose numbers it could judge")
        if self.measure:
            check_measure(self.measure, self.gate, self.stages)
        check_seeds(self.seeds, "seed")
        return self


def check_seeds(seeds: Sequence[int], where: str) -> None:
    """Raises ValueError, one line that starts with `where`, unless they can be told apart and seed every generator."""
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32 or len(set(seeds)) != len(seeds):
        raise ValueError(f"{where}: {list(seeds)}: one or several different numbers from 0 to {2**32 - 1}")
