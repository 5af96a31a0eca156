"""`kind: adopt`: one's own checkpoint as a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress.recipe.base import Name, StageSection
from compress.recipe.model import ModelSection, TextModel, TwoTowerModel, bert4rec_misfit, texts_misfit


class Bert4RecCheckpoint(ModelSection):
    """How a BertForMaskedLM over items was trained, as far as its folder does not say it."""

    family: Literal["bert4rec"]
    tokens_are_items: ClassVar[bool] = True
    attention: Literal["causal", "masked"] = Field(
        description="causal: the last item's position predicts the next; masked: a mask token after it does"
    )
    alignment: Literal["left", "right"] = Field(
        description="left: the oldest item is at position 0; right: the latest (or the mask) at the last position"
    )
    max_length: int = Field(ge=2, description="history items that it reads, the latest ones")
    tokens: Path | None = Field(
        None,
        description="which token is which item: a CSV or Parquet file with columns token_id and item_id; "
        "vocab.txt in the folder (an item a line) if neither this nor token_offset is there",
    )
    token_offset: int | None = Field(None, description="for item ids that are integers: token = item id + offset")
    pad_token: int = Field(ge=0)
    mask_token: int | None = Field(None, ge=0, description="masked attention only")
    mask_probability: float = Field(0.2, gt=0, lt=1, description="if it is trained on")

    def misfit(self, teacher: Any) -> str | None:
        return super().misfit(teacher) or bert4rec_misfit(self, teacher)

    @model_validator(mode="after")
    def _tokens_are_told_once(self) -> Bert4RecCheckpoint:
        if self.tokens is not None and self.token_offset is not None:
            raise ValueError("tokens and token_offset both say which token is which item; name one of them")
        if (self.attention == "masked") != (self.mask_token is not None):
            raise ValueError("mask_token goes with attention: masked, and with nothing else")
        return self


class TextCheckpoint(ModelSection):
    """What models over texts have in common."""

    texts: Name = Field(description="the tokenize stage; its tokenizer is the folder's")
    drawn: Literal["uniform", "popularity", "retrieved"] = Field("uniform", description="how negatives are drawn")

    refused_losses: ClassVar[frozenset[str]] = TextModel.refused_losses

    def reads(self) -> tuple[tuple[str, str, str], ...]:
        return (("texts", self.texts, "tokenize"),)

    def misfit(self, teacher: Any) -> str | None:
        return super().misfit(teacher) or texts_misfit(self, teacher)


class CrossEncoderCheckpoint(TextCheckpoint):
    """What the folder of a BertForSequenceClassification over (user text, item text) does not say."""

    family: Literal["cross_encoder"]
    ranks_candidates: ClassVar[bool] = True
    negatives: int = Field(7, ge=1, description="if it is trained on")


class TwoTowerCheckpoint(TextCheckpoint):
    """What the folder of a BertModel, or a sentence-transformers folder of one, does not say."""

    family: Literal["two_tower"]
    refused_losses: ClassVar[frozenset[str]] = TwoTowerModel.refused_losses
    negatives: int = Field(0, ge=0, description="if it is trained on")
    in_batch: bool = Field(True, description="if it is trained on")
    pooling: Literal["mean", "cls"] | None = Field(None, description="a sentence-transformers folder's own, or mean")
    normalize: bool | None = Field(None, description="a sentence-transformers folder's own, or true")
    scale: float = Field(20.0, gt=0, description="factor of the vectors' product")

    @model_validator(mode="after")
    def _something_to_tell_from(self) -> TwoTowerCheckpoint:
        if not self.in_batch and self.negatives < 1:
            raise ValueError("negatives: none, and in_batch: false: there is nothing that an item is told from")
        return self


AnyCheckpoint = Annotated[
    Bert4RecCheckpoint | CrossEncoderCheckpoint | TwoTowerCheckpoint, Field(discriminator="family")
]


class AdoptSection(StageSection):
    """Reads a Hugging Face folder (config.json, safetensors) and measures it before anything is made of it."""

    kind: Literal["adopt"]
    path: Path = Field(description="the folder; relative to the recipe's")
    model: AnyCheckpoint
    check: Literal["ranking", "none"] = Field(
        "ranking", description="ranking: refuse it if it ranks better read in another way, or not above popularity"
    )

    def inputs(self) -> tuple[str, ...]:
        return self.model.inputs()
