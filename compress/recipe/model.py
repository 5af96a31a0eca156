"""`model:` the architecture of a recommender, a class per family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from compress.recipe.base import Fraction, Section


class Bert4RecModel(Section):
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

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Bert4RecModel:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


AnyModel = Bert4RecModel
"""A union discriminated by `family` once there is a second one."""
