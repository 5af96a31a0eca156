"""`model:` the architecture of a recommender, a class per family."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress.recipe.base import Fraction, Name, Section
from compress.recipe.texts import AnyPretrained


class ModelSection(Section):
    """What stages ask of a model of any family."""

    family: str

    refused_losses: ClassVar[frozenset[str]] = frozenset()
    """Kinds of losses that the family has no scores for."""

    def inputs(self) -> tuple[str, ...]:
        """Names of the earlier stages that a fresh model is built from."""
        return ()

    @property
    def depth(self) -> int | None:
        """Layers, if the section says it."""
        return None

    def misfit(self, teacher: Any) -> str | None:
        """Why a model of this section cannot learn from one of the teacher's; None if it can."""
        return None


class Bert4RecModel(ModelSection):
    """BertForMaskedLM over item ids (Sun et al. 2019, arXiv 1904.06690), trained masked or causal."""

    family: Literal["bert4rec"]
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
    def depth(self) -> int | None:
        return self.num_hidden_layers

    def misfit(self, teacher: Any) -> str | None:
        return bert4rec_misfit(self, teacher)

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


class CrossEncoderModel(ModelSection):
    """BertForSequenceClassification over (user text, item text), one logit (Nogueira & Cho 2019, arXiv 1901.04085)."""

    family: Literal["cross_encoder"]
    texts: Name = Field(description="the tokenize stage")
    checkpoint: AnyPretrained | None = Field(
        None, description="a pretrained BERT that a fresh model begins as; the sizes below are then its own"
    )
    hidden_size: int = Field(384, ge=4)
    num_hidden_layers: int = Field(2, ge=1)
    num_attention_heads: int = Field(12, ge=1)
    intermediate_size: int | None = Field(None, ge=4, description="width of the FFN; 4 x hidden_size if absent")
    max_length: int = Field(512, ge=8, description="tokens of a user's and an item's text together")
    negatives: int = Field(7, ge=1, description="items that a training example's next item is told from")
    drawn: Literal["popularity", "uniform"] = Field("uniform", description="how those are drawn")
    dropout: Fraction = 0.1

    refused_losses: ClassVar[frozenset[str]] = frozenset({"sampled_softmax", "gbce"})

    def inputs(self) -> tuple[str, ...]:
        return (self.texts,)

    @property
    def depth(self) -> int | None:
        return None if self.checkpoint else self.num_hidden_layers

    def misfit(self, teacher: Any) -> str | None:
        return texts_misfit(self, teacher)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> CrossEncoderModel:
        _check_heads(self.hidden_size, self.num_attention_heads)
        return self


def texts_misfit(ours: Any, teacher: Any) -> str | None:
    """Of two sections that name their texts, as `ModelSection.misfit` says."""
    if ours.texts != teacher.texts:
        return f"texts: {ours.texts} are not its teacher's, {teacher.texts}: it would be taught about other inputs"
    return None


def _check_heads(hidden_size: int, heads: int) -> None:
    if hidden_size % heads:
        raise ValueError(f"hidden_size {hidden_size} is no multiple of num_attention_heads {heads}")


AnyModel = Annotated[Bert4RecModel | CrossEncoderModel, Field(discriminator="family")]
