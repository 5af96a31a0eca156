"""`kind: finetune` and `kind: distill`: stages that train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compress.recipe.base import Distinct, Name, Section, StageSection
from compress.recipe.losses import DistillLoss, Hidden, LabelLoss, Softmax
from compress.recipe.model import AnyModel

Beta = Annotated[float, Field(ge=0, lt=1)]


class EarlyStopping(Section):
    """Stops on validation NDCG@10 and keeps the best epoch; on few users this picks noise, so it is off by default."""

    patience: int = Field(ge=1, description="epochs without improvement before training stops")


class TrainingSection(StageSection):
    """A fixed schedule and its last epoch: AdamW, linear warm-up, decay to zero."""

    incidental = frozenset({"checkpoint_seconds", "report_to"})

    model: AnyModel | None = Field(None, description="a fresh model's architecture")
    start: Name | None = Field(
        None,
        description="or an earlier stage whose model training starts from; linear: static trains rounded",
    )
    epochs: int = Field(12, ge=1)
    examples: int | None = Field(
        None, ge=1, description="of an epoch, drawn afresh for each; all if absent or if there are no more"
    )
    batch_size: int = Field(8, ge=1, description="sequences a step")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    adam_betas: tuple[Beta, Beta] = (0.9, 0.98)
    warmup_steps: int = Field(100, ge=0)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of products in training; bf16 is over twice as fast where the processor has it"
    )
    optimizer: Literal["adamw", "adamw_bnb_8bit"] = Field(
        "adamw", description="adamw_bnb_8bit holds its state in 8 bits, by bitsandbytes"
    )
    gradient_accumulation_steps: int = Field(1, ge=1)
    early_stopping: EarlyStopping | None = None
    learning_curve: bool = Field(False, description="rank validation users after every epoch, not only after the last")
    checkpoint_seconds: float = Field(
        30,
        ge=0,
        description="time between two checkpoints that a killed run resumes from; early_stopping has one an epoch",
    )
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="experiment trackers; each needs its package installed"
    )

    def inputs(self) -> tuple[str, ...]:
        return (self.start,) if self.start else self.model.inputs() if self.model else ()

    @model_validator(mode="after")
    def _starts_somewhere(self) -> TrainingSection:
        if (self.model is None) == (self.start is None):
            raise ValueError("model or start: a fresh model, or an earlier stage's; name one of them")
        return self


class FinetuneSection(TrainingSection):
    """Trains a model on labels alone: a teacher, or a student's control."""

    kind: Literal["finetune"]
    item_embeddings: Literal["cooccurrence", "random"] = Field(
        "cooccurrence",
        description="where a fresh model's start: vectors of what is used with what in training, or fresh",
    )
    loss: LabelLoss = Softmax(kind="softmax")

    @model_validator(mode="after")
    def _embeddings_of_a_fresh_model(self) -> FinetuneSection:
        if self.start is not None and "item_embeddings" in self.model_fields_set:
            raise ValueError("item_embeddings: beside start, whose model has its own; leave it out")
        return self


class Initialization(Section):
    """How a student starts from its teacher."""

    layers: tuple[int, ...] | Literal["spread", "first", "last"] = Field(
        "spread",
        description="teacher layers that seed the student's, if widths are equal or width is important-units: spread "
        "evenly from the first on, the first or the last ones, or listed in order, from 0",
    )
    width: Literal["principal-directions", "important-units", "random"] = Field(
        "principal-directions",
        description="a narrower student's embeddings: the teacher's projected, or its units with the largest weights, "
        "and the same of its layers, or fresh",
    )


class TeacherCacheSection(Section):
    """What teachers say, kept on disk. Students of one recipe that read the same examples share it."""

    variants: int = Field(
        4,
        ge=1,
        description="of each example; epochs take turns with them, so that more epochs ask nobody (with `examples`, "
        "so many draws of them)",
    )
    top: int = Field(100, ge=2, description="the teacher's best items of each position; others share what is left")


class DistillSection(TrainingSection):
    """Trains a smaller student on its teacher's scores, hidden states and the labels."""

    kind: Literal["distill"]
    teacher: Name | Annotated[tuple[Name, ...], Distinct, Field(min_length=1)] = Field(
        description="an earlier stage; several teach together"
    )
    combine: Literal["mean", "by_loss"] = Field(
        "mean", description="several teachers' scores: the mean, or at each position more of who knows the label better"
    )
    teacher_memory: Literal["fp32", "int8", "nf4"] = Field(
        "fp32", description="how the teachers' layers are held while they are asked; int8 and nf4 by bitsandbytes"
    )
    initialize: Initialization | None = Field(
        Initialization(), description="of a fresh model that begins as no checkpoint"
    )
    losses: tuple[DistillLoss, ...] = Field(min_length=1)
    cache: TeacherCacheSection | Literal["auto"] | None = Field(
        None, description="ask the teachers once, not in every epoch; auto: where that pays, and the manifest says why"
    )

    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.teachers, *super().inputs())))

    @property
    def teachers(self) -> tuple[str, ...]:
        """The first one seeds the student and is what it is compared with."""
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher

    @property
    def seeding(self) -> Initialization | None:
        """How a fresh model starts from its teacher; one that begins as a checkpoint or a stage does not."""
        return self.initialize if self.model is not None and not self.model.begins_trained else None

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The teacher's layers whose hidden states a cache keeps."""
        return tuple(
            sorted({layer for loss in self.losses if isinstance(loss, Hidden) for layer in loss.layers.values()})
        )

    @model_validator(mode="after")
    def _answers_are_remembered(self) -> DistillSection:
        if not isinstance(self.cache, TeacherCacheSection):
            return self
        for loss in self.losses:
            if loss.reads_heads:
                raise ValueError(f"cache: keeps scores and hidden states, and {loss.kind} reads heads; leave one out")
            top = getattr(loss, "top", None) or 0
            if top > self.cache.top:
                raise ValueError(f"cache.top: {self.cache.top} items are kept, and {loss.kind} reads {top}")
        return self

    @model_validator(mode="after")
    def _fresh_models_are_seeded(self) -> DistillSection:
        if self.seeding is None:
            if self.initialize not in (None, Initialization()):
                raise ValueError("initialize: is of a fresh model, and this one begins trained; leave it out")
            return self
        assert self.model is not None, "what is seeded is fresh"
        layers, depth = self.seeding.layers, self.model.stack.depth
        if not isinstance(layers, str) and len(layers) != depth:
            raise ValueError(f"initialize.layers lists {len(layers)} teacher layers for {depth} student layers")
        return self
