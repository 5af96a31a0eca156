"""`kind: profile` and `kind: prune`: what structure costs on the runtime that serves, and cutting it to a budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from compress.recipe.base import Distinct, Name, Section, StageSection
from compress.recipe.losses import KL, DistillLoss, LabelLoss, Softmax
from compress.recipe.training import Beta, DistillSection

Share = Annotated[float, Field(gt=0, le=1)]


class ProfileSection(StageSection):
    """Measures how long parts of a served graph take: attention by heads, FFN by neurons, for each width and batch."""

    kind: Literal["profile"]
    input: Name = Field(description="the stage whose model is timed; the shapes count, not the weights")
    batch_sizes: Annotated[tuple[PositiveInt, ...], Distinct] = Field(
        (32,), min_length=1, description="histories of a call; of a model that ranks candidates, candidates"
    )
    length: int | None = Field(None, ge=2, description="positions of each; that of typical requests if absent")
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Distinct] = Field(
        (), description="narrower widths that a model may be cut to"
    )
    steps: int = Field(8, ge=2, description="FFN widths that are timed, evenly spaced; between them lies a line")
    threads: int = Field(2, ge=1)
    linear: Literal["dynamic", "none"] = Field("none", description="int8 products, or floating point")

    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


class Budget(Section):
    """What is left of the model that the profile timed, or of the input once it is trimmed: one, as a share."""

    latency: Share | None = Field(None, description="of the served graph, by the stage that `profile` names")
    parameters: Share | None = Field(None, description="of all weights")
    bytes: Share | None = Field(None, description="of the float32 file")
    flops: Share | None = Field(None, description="of the layers' products, at the length of typical requests")
    profile: Name | None = Field(None, description="the profile stage; for latency")
    batch_size: int | None = Field(None, ge=1, description="one that was profiled; the first if absent")

    @property
    def kind(self) -> str:
        """Which of the four."""
        return next(name for name in BUDGETS if getattr(self, name) is not None)

    @property
    def share(self) -> float:
        """Of what it names."""
        return float(getattr(self, self.kind))

    @model_validator(mode="after")
    def _one_of_them(self) -> Budget:
        named = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"{', '.join(BUDGETS)}: name one of them; got {', '.join(named) or 'none'}")
        if (self.latency is None) != (self.profile is None):
            raise ValueError("latency and profile belong together: the profile stage has measured what is budgeted")
        if self.batch_size is not None and self.profile is None:
            raise ValueError("batch_size: is a profile's; name one")
        return self


BUDGETS = ("latency", "parameters", "bytes", "flops")


class Magnitude(Section):
    """The size of what goes in and out of a unit: the product of two weights' norms."""

    kind: Literal["magnitude"]


class Chance(Section):
    """Units by lot: what every other importance is compared with."""

    kind: Literal["random"]


class FromGradients(Section):
    """From the gradient of the label loss by a mask over units, on training examples."""

    examples: int = Field(256, ge=1, description="training examples")
    batch_size: int | None = Field(
        None, ge=1, description="of a backward pass; one example if absent, 8 of a model that learns with in_batch"
    )
    loss: LabelLoss = Softmax(kind="softmax")


class Taylor(FromGradients):
    """First order: the size of the mask's mean gradient (Molchanov et al. 2017, arXiv 1611.06440)."""

    kind: Literal["taylor"]


class Fisher(FromGradients):
    """Second order: the mean square of the mask's gradient (Kwon et al. 2022, arXiv 2204.09656)."""

    kind: Literal["fisher"]


class Learned(Section):
    """Gates on heads, neurons and layers, trained with the weights by the whole model (CoFi, arXiv 2204.00408).

    Some 500 steps and more: gates have to find the budget, and weights to do without what is shut.
    """

    kind: Literal["learned"]
    losses: tuple[DistillLoss, ...] = Field((KL(kind="kl"),), min_length=1)
    epochs: int = Field(1, ge=1)
    examples: int | None = Field(None, ge=1, description="of an epoch, drawn afresh for each; all if absent")
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-4, gt=0, description="of the weights")
    gate_learning_rate: float = Field(0.1, gt=0, description="of the gates' logarithms")
    weight_decay: float = Field(0.01, ge=0)
    adam_betas: tuple[Beta, Beta] = (0.9, 0.98)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"

    def training(self) -> DistillSection:
        """What trains, as a distill stage says it."""
        said = self.model_dump(exclude={"kind", "gate_learning_rate"})
        return DistillSection.model_validate({**said, "kind": "distill", "start": "input", "teacher": "input"})


AnyImportance = Annotated[Magnitude | Chance | Taylor | Fisher | Learned, Field(discriminator="kind")]


class Rescaling(Section):
    """Least squares: what remains is fitted to what the whole layer said (Kwon et al. 2022, section 4.3)."""

    examples: int = Field(64, ge=1, description="training examples whose states are fitted")
    ridge: float = Field(1e-3, gt=0, description="of the mean squared activation: keeps weights near what they were")


class PruneSection(StageSection):
    """Cuts structure out of a trained model; a `distill` stage with `start:` recovers what that costs.

    Iterative pruning is a chain: prune, distill, prune, distill, every budget a share of the same profile.
    """

    kind: Literal["prune"]
    input: Name = Field(description="the stage whose model is cut")
    budget: Budget | None = Field(None, description="absent: only what is never used is cut, `vocabulary`, `positions`")
    importance: AnyImportance = Fisher(kind="fisher")
    rescale: Rescaling | None = Field(Rescaling(), description="null: units are cut and the others stay as they are")
    whole_layers: bool = Field(True, description="whether layers may go as a whole")
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Distinct] = Field(
        (), description="narrower widths that may be chosen; of those that were profiled"
    )
    neurons_multiple: int = Field(32, ge=1, description="FFN widths are multiples of it: what the hardware likes")
    vocabulary: bool = Field(False, description="cut tokens that neither the catalogue nor the users' texts have")
    positions: bool = Field(False, description="cut positions that no request reaches")

    def inputs(self) -> tuple[str, ...]:
        profile = self.budget.profile if self.budget else None
        return (self.input, *([profile] if profile else []))

    @model_validator(mode="after")
    def _something_is_cut(self) -> PruneSection:
        if self.budget is None and not (self.vocabulary or self.positions):
            raise ValueError("budget, vocabulary or positions: name what is cut")
        return self

    @model_validator(mode="after")
    def _gates_fit_weights_themselves(self) -> PruneSection:
        if not isinstance(self.importance, Learned):
            return self
        if self.budget is None:
            raise ValueError("importance: learned: gates learn a budget; name one")
        if self.hidden_sizes:
            raise ValueError("hidden_sizes: gates stand at heads, neurons and layers; leave it out, or use fisher")
        if self.rescale not in (None, Rescaling()):
            raise ValueError("rescale: the weights have been trained with the gates; leave it out")
        return self

    @property
    def losses(self) -> tuple[LabelLoss | DistillLoss, ...]:
        """What importance is told by."""
        if isinstance(self.importance, Learned):
            return self.importance.losses
        return (self.importance.loss,) if isinstance(self.importance, FromGradients) and self.budget else ()
