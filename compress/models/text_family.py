"""What families over texts share: how a model begins, and how many texts are computed at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from transformers import BertConfig, PreTrainedModel

from compress.data.histories import Recommend
from compress.data.interactions import IntArray, Interactions
from compress.data.pretrained import locate
from compress.data.texts import Texts
from compress.data.vocabulary import trimmed, used
from compress.errors import DataError, RecipeError
from compress.methods import shapes
from compress.methods.rounding import Rounding
from compress.models.checkpoint import read_encoder
from compress.models.family import Examples
from compress.models.text_examples import TextExamples
from compress.recipe.model import TextModel

CHUNK = 32
"""Texts that are computed at once, in order of length. Of sixty-four, twice as many positions were padding."""

REGRESSED = 20_000
"""Examples that the regression on tf-idf learns from."""


class TextFamily:
    """A model's texts are its attribute `texts` and lie in its folder."""

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        model.save_pretrained(folder)
        model.texts.save(folder)

    def seed_items(self, model: PreTrainedModel, interactions: Interactions) -> None:
        """Nothing: items are their texts."""

    def other_readings(self, model: PreTrainedModel) -> dict[str, PreTrainedModel]:
        return {}

    def examples(self, model: PreTrainedModel, interactions: Interactions, seed: int) -> Examples:
        return TextExamples(model.config, model.texts, interactions, seed)

    def baselines(self, model: PreTrainedModel, interactions: Interactions, k: int) -> dict[str, Recommend]:
        """A regression on tf-idf, learning from some of the same examples, with 7 uniform negatives where those are."""
        from compress.methods.tfidf_regression import tfidf_regression  # scikit-learn takes .6 s to import

        facts = {**model.config.recommender, "negatives": 7, "drawn": "uniform"}
        config = BertConfig(max_position_embeddings=model.config.max_position_embeddings, recommender=facts)
        examples = TextExamples(config, model.texts, interactions, seed=0)
        some = [examples[index] for index in np.random.default_rng(0).permutation(len(examples))[:REGRESSED].tolist()]
        items, wanted = [example.items for example in some], [example.wanted for example in some]
        return {"tfidf": tfidf_regression(model.texts, examples.asked(some), items, wanted, k)}

    def trim(
        self, model: PreTrainedModel, interactions: Interactions, scratch: Path, *, vocabulary: bool, positions: bool
    ) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        told = model.texts.attributes(interactions.attributes or [])
        if positions:
            limit = model.texts.longest(told)
            for encoder in shapes.encoders(model):
                facts["positions"] = shapes.keep_positions(encoder, slice(limit))
        if vocabulary:
            bytes_before = model.get_input_embeddings().weight.nbytes
            kept_V = used(model.texts, told)
            model.texts = trimmed(model.texts, kept_V, scratch / "texts")
            for encoder in shapes.encoders(model):
                shapes.keep_rows(encoder.embeddings.word_embeddings, torch.from_numpy(kept_V))
                encoder.embeddings.word_embeddings.padding_idx = model.texts.layout.pad
            model.config.vocab_size, model.config.pad_token_id = len(kept_V), model.texts.layout.pad
            facts |= {
                "vocabulary": len(kept_V),
                "vocabulary_share": round(model.get_input_embeddings().weight.nbytes / bytes_before, 4),
            }
        return facts

    def with_items(
        self, model: PreTrainedModel, weights_NI: sp.csr_matrix, removed: IntArray, rounding: Rounding
    ) -> PreTrainedModel:
        raise RecipeError(
            "refresh: items of a model over texts are their texts: prepare and tokenize the new catalogue"
        )


def begin(
    section: TextModel, texts: Texts, architecture: str, recommender: dict[str, Any]
) -> tuple[BertConfig, dict[str, Tensor]]:
    """Configuration of a fresh model, and the weights of its BertModel if it begins as a checkpoint.

    Raises: DataError, one line, if the checkpoint cannot be had or cannot read the texts.
    """
    sizes, weights = section.sizes(texts.layout.vocab_size), {}
    if section.checkpoint:
        folder = locate(section.checkpoint)
        pretrained = read_encoder(folder)
        sizes, weights = pretrained.config.to_dict(), pretrained.state_dict()
        layers = section.num_hidden_layers or sizes["num_hidden_layers"]
        if layers > sizes["num_hidden_layers"]:
            raise DataError(f"{folder}: has {sizes['num_hidden_layers']} layers; num_hidden_layers asks for {layers}")
        length = min(section.max_length, sizes["max_position_embeddings"])
        sizes |= {"num_hidden_layers": layers, "max_position_embeddings": length}
        positions = "embeddings.position_embeddings.weight"
        weights = {name: value for name, value in weights.items() if _layer(name) < layers}
        weights[positions] = weights[positions][:length]
    config = BertConfig.from_dict(
        {
            **sizes,
            "architectures": [architecture],
            "pad_token_id": texts.layout.pad,
            "hidden_dropout_prob": section.dropout,
            "attention_probs_dropout_prob": section.dropout,
            "num_labels": 1,
            "recommender": recommender,
        }
    )
    check_texts(str(section.checkpoint or f"max_length: {section.max_length}"), config, texts)
    return config, weights


def _layer(name: str) -> int:
    """Of a weight; -1 for what is in none."""
    return int(name.split(".")[2]) if name.startswith("encoder.layer.") else -1


def check_texts(what: str, config: BertConfig, texts: Texts) -> None:
    """Raises DataError, one line that starts with `what`, if a model cannot read the texts."""
    if config.vocab_size < texts.layout.vocab_size:
        raise DataError(
            f"{what}: knows {config.vocab_size} tokens, the texts have {texts.layout.vocab_size}: tokenize them with "
            "the model's own tokenizer"
        )
    if config.type_vocab_size < 2:
        raise DataError(f"{what}: has one token type; BERT tells a user's text from an item's by two")
    if texts.room(config.max_position_embeddings) < 2:
        raise DataError(
            f"{what}: reads {config.max_position_embeddings} tokens, and an item's text takes up to "
            f"{texts.items.longest + 1} of them: nothing is left for a user's"
        )


def by_length(ids_NL: Tensor, pad: int, compute: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    """Computes texts CHUNK at a time in order of length, each chunk as long as its longest; in the order of `ids_NL`.

    Args:
        compute: from which rows, their mask (1 where a token is) and their length to a tensor of a row each.

    """
    real_NL = (ids_NL != pad).long()
    lengths_N = real_NL.sum(dim=1)
    order_N = lengths_N.argsort(descending=True)
    found = []
    for rows in torch.split(order_N, CHUNK):
        longest = int(lengths_N[rows].max()) if len(rows) else 0
        found.append(compute(rows, real_NL[rows, :longest], longest))
    return torch.cat(found)[order_N.argsort()]
