"""`model:` the architecture of a recommender, a class per family."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress.recipe.base import Fraction, Name, Section
from compress.recipe.losses import BY_LAYER, Stack
from compress.recipe.texts import AnyPretrained


class ModelSection(Section):
    """What stages ask of a model of any family."""

    family: str

    refused_losses: ClassVar[frozenset[str]] = frozenset()
    """Kinds of losses that the family has nothing for."""
    ranks_candidates: ClassVar[bool] = False
    """Whether it ranks given candidates, and the whole catalogue would be hours."""

    learns_from_rehearsals: ClassVar[bool] = False
    is_cut: ClassVar[bool] = True
    """Whether a prune stage takes it."""
    tokens_are_items: ClassVar[bool] = False
    """Whether it reads ids of items, and no words."""

    def reads(self) -> tuple[tuple[str, str, str], ...]:
        """What a fresh model is built from: field, the stage it names, and that stage's kind or its model's family."""
        return ()

    def inputs(self) -> tuple[str, ...]:
        """Names of those stages."""
        return tuple(stage for _, stage, _ in self.reads())

    @property
    def stack(self) -> Stack:
        """Its layers, as far as the section says."""
        return Stack()

    @property
    def is_uniform(self) -> bool:
        """Whether a graph of it computes its layers at every position of every row: what a profile can tell."""
        return True

    @property
    def begins_trained(self) -> bool:
        """Whether its weights are somebody's already."""
        return False

    def misfit(self, teacher: Any) -> str | None:
        """Why a model of this section cannot learn from one of the teacher's; None if it can."""
        if self.family != teacher.family:
            return f"family: {self.family} differs from its teacher's {teacher.family}"
        return None


class Bert4RecModel(ModelSection):
    """BertForMaskedLM over item ids (Sun et al. 2019, arXiv 1904.06690), trained masked or causal."""

    family: Literal["bert4rec"]
    tokens_are_items: ClassVar[bool] = True
    hidden_size: int = Field(128, ge=4)
    num_hidden_layers: int = Field(2, ge=1)
    num_attention_heads: int = Field(2, ge=1)
    intermediate_size: int | None = Field(None, ge=4, description="width of the FFN; 4 x hidden_size if absent")
    max_length: int = Field(100, ge=2, description="history items that the encoder reads, the latest ones")
    attention: Literal["causal", "masked"] = Field(
        "causal", description="causal: every position predicts the next item; masked: the paper's Cloze task"
    )
    mask_probability: float = Field(0.2, gt=0, lt=1, description="share of masked positions; masked attention only")
    dropout: Fraction = 0.1

    @property
    def stack(self) -> Stack:
        return Stack(self.num_hidden_layers, self.hidden_size, self.num_attention_heads)

    def misfit(self, teacher: Any) -> str | None:
        return super().misfit(teacher) or bert4rec_misfit(self, teacher)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Bert4RecModel:
        _check_heads(self.hidden_size, self.num_attention_heads)
        return self


def bert4rec_misfit(ours: Any, teacher: Any) -> str | None:
    """Of two sections that have attention and max_length, as `ModelSection.misfit` says."""
    if ours.attention != teacher.attention:
        return f"attention: {ours.attention} differs from its teacher's {teacher.attention}"
    if ours.max_length > teacher.max_length:
        return f"max_length: {ours.max_length} items; its teacher reads {teacher.max_length} at most"
    return None


class TextModel(ModelSection):
    """What models over texts have in common."""

    texts: Name = Field(description="the tokenize stage")
    checkpoint: AnyPretrained | None = Field(
        None, description="a pretrained BERT that a fresh model begins as; widths and heads are then its own"
    )
    hidden_size: int | None = Field(None, ge=4, description="384 if absent")
    num_hidden_layers: int | None = Field(
        None, ge=1, description="of a checkpoint the first so many, all if absent; of others 2 if absent"
    )
    num_attention_heads: int | None = Field(None, ge=1, description="12 if absent")
    intermediate_size: int | None = Field(None, ge=4, description="width of the FFN; 4 x hidden_size if absent")
    max_length: int = Field(
        512, ge=8, description="tokens of a user's and an item's text together; a checkpoint may read fewer"
    )
    negatives: int = Field(7, ge=0, description="items that a training example's next item is told from")
    drawn: Literal["uniform", "popularity", "retrieved"] = Field(
        "uniform",
        description="how those are drawn; retrieved: half from what the recipe's `candidates` stage found",
    )
    dropout: Fraction = 0.1

    refused_losses: ClassVar[frozenset[str]] = frozenset({"sampled_softmax", "gbce"})

    def reads(self) -> tuple[tuple[str, str, str], ...]:
        return (("texts", self.texts, "tokenize"),)

    @property
    def stack(self) -> Stack:
        if self.checkpoint:
            return Stack(self.num_hidden_layers)
        return Stack(self.num_hidden_layers or 2, *self._width_and_heads)

    @property
    def _width_and_heads(self) -> tuple[int, int]:
        return self.hidden_size or 384, self.num_attention_heads or 12

    @property
    def begins_trained(self) -> bool:
        return self.checkpoint is not None

    def sizes(self, vocab_size: int) -> dict[str, Any]:
        """A fresh model's, as BertConfig names them."""
        width, heads = self._width_and_heads
        return {
            "vocab_size": vocab_size,
            "hidden_size": width,
            "num_hidden_layers": self.stack.depth,
            "num_attention_heads": heads,
            "intermediate_size": self.intermediate_size or 4 * width,
            "max_position_embeddings": self.max_length,
        }

    def misfit(self, teacher: Any) -> str | None:
        return super().misfit(teacher) or texts_misfit(self, teacher)

    @model_validator(mode="after")
    def _sizes_are_the_checkpoints(self) -> TextModel:
        for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
            if self.checkpoint and getattr(self, name) is not None:
                raise ValueError(f"{name}: is the checkpoint's; leave it out")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TextModel:
        _check_heads(*self._width_and_heads)
        return self


class CrossEncoderModel(TextModel):
    """BertForSequenceClassification over (user text, item text), one logit (Nogueira & Cho 2019, arXiv 1901.04085)."""

    family: Literal["cross_encoder"]
    ranks_candidates: ClassVar[bool] = True
    negatives: int = Field(7, ge=1, description="items that a training example's next item is told from")
    attention: Literal["both_ways", "one_way"] = Field(
        "both_ways",
        description="one_way: a user's tokens see no item, so that they are computed once for all candidates",
    )

    @property
    def is_uniform(self) -> bool:
        return self.attention == "both_ways"


class TwoTowerModel(TextModel):
    """BertModel over a user's text and over an item's; the score is the product of the two vectors."""

    family: Literal["two_tower"]
    refused_losses: ClassVar[frozenset[str]] = TextModel.refused_losses | BY_LAYER
    negatives: int = Field(0, ge=0, description="items drawn beside an example's next one")
    in_batch: bool = Field(
        True, description="the items of all other examples are negatives too, corrected for how often they come"
    )
    pooling: Literal["mean", "cls"] | None = Field(None, description="a sentence-transformers folder's own, or mean")
    normalize: bool | None = Field(
        None, description="vectors of length 1; a sentence-transformers folder's own, or true"
    )
    scale: float = Field(20.0, gt=0, description="factor of the vectors' product: the inverse of a temperature")
    separate: bool = Field(False, description="an encoder for items of their own")

    def misfit(self, teacher: Any) -> str | None:
        if teacher.family != "cross_encoder":
            why = super().misfit(teacher)
            return why or (None if self.in_batch == teacher.in_batch else "in_batch: differs from its teacher's")
        if self.in_batch or self.negatives < 1:
            return "in_batch: a cross-encoder teaches about each example's own items: set in_batch: false and negatives"
        return texts_misfit(self, teacher)

    @model_validator(mode="after")
    def _something_to_tell_from(self) -> TwoTowerModel:
        if not self.in_batch and self.negatives < 1:
            raise ValueError("negatives: none, and in_batch: false: there is nothing that an item is told from")
        return self


class HybridModel(ModelSection):
    """A head over a cross-encoder's [CLS], the first stage's scores, and features of items and users."""

    family: Literal["hybrid"]
    ranks_candidates: ClassVar[bool] = True
    learns_from_rehearsals: ClassVar[bool] = True
    is_cut: ClassVar[bool] = False
    refused_losses: ClassVar[frozenset[str]] = TextModel.refused_losses
    encoder: Name = Field(description="an earlier stage that trained a cross_encoder: what the encoder begins as")
    features: Name = Field(description="the features stage")
    join: Literal["concat", "attention"] = Field("concat", description="how the groups of features meet")
    width: int = Field(64, ge=1, description="of the deep part")
    frozen: bool = Field(True, description="the encoder stays as it is, and the head alone is trained")
    negatives: int = Field(7, ge=1, description="candidates that a rehearsed item is told from")
    dropout: Fraction = 0.1

    def reads(self) -> tuple[tuple[str, str, str], ...]:
        return ("encoder", self.encoder, "cross_encoder"), ("features", self.features, "features")

    @property
    def begins_trained(self) -> bool:
        return True

    def misfit(self, teacher: Any) -> str | None:
        why = super().misfit(teacher)
        return why or (None if self.features == teacher.features else "features: are not its teacher's")


def texts_misfit(ours: Any, teacher: Any) -> str | None:
    """Of two sections that name their texts, as `ModelSection.misfit` says."""
    limit = getattr(teacher, "max_length", math.inf)  # an adopted one's folder says it
    if getattr(ours, "max_length", 0) > limit:
        return f"max_length: {ours.max_length} tokens; its teacher reads {limit} at most"
    if ours.texts != teacher.texts:
        return f"texts: {ours.texts} are not its teacher's, {teacher.texts}: it would be taught about other inputs"
    return None


def _check_heads(hidden_size: int, heads: int) -> None:
    if hidden_size % heads:
        raise ValueError(f"hidden_size {hidden_size} is no multiple of num_attention_heads {heads}")


AnyModel = Annotated[Bert4RecModel | CrossEncoderModel | TwoTowerModel | HybridModel, Field(discriminator="family")]
