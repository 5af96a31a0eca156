"""BERT4Rec: BertForMaskedLM over item ids (Sun et al. 2019, arXiv 1904.06690), trained masked or causal.

Tokens are dense item ids 0 .. I-1, then pad (I) and mask (I+1), so that a score's column is its item. Histories are
right-aligned in a batch: the latest item always stands in the last column, whatever the length.

B: batch, L: positions, H: width, I: items, V: tokens, N: labelled positions, E: excluded items, K: top k.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from compress.data.histories import MASKED, Asked, Recommend, left_padded
from compress.data.interactions import IntArray, Interactions
from compress.data.texts import Texts
from compress.errors import DataError, RecipeError
from compress.methods import shapes
from compress.methods.cooccurrence import item_vectors
from compress.methods.new_rows import mean_rows
from compress.methods.rounding import Rounding, Stored, quantize_rows
from compress.methods.seeding import seed_encoder
from compress.methods.slicing import copy_linear, copy_norm
from compress.models.checkpoint import read_checkpoint
from compress.models.encoder import Positions, serving_layers, transposed
from compress.models.family import Batch, Examples, Score, ServedGraph, Supervision
from compress.models.observed import projections
from compress.models.tokens import item_tokens
from compress.recipe.adoption import Bert4RecCheckpoint
from compress.recipe.model import Bert4RecModel

UNLABELLED = -100

LOGITS = 2**28
"""Scores at all positions that a batch of users may have at most: a GiB in float32."""

ITEM_SCALE = 0.05
"""Root mean square of item embeddings that start from co-occurrence; fresh weights have 0.02."""


class Bert4Rec:
    """The family; it has no state of its own."""

    def build(self, section: Bert4RecModel, catalogue_size: int, texts: Texts | None = None) -> BertForMaskedLM:
        causal = section.attention == "causal"
        config = BertConfig(
            vocab_size=catalogue_size + 2,
            pad_token_id=catalogue_size,
            hidden_size=section.hidden_size,
            num_hidden_layers=section.num_hidden_layers,
            num_attention_heads=section.num_attention_heads,
            intermediate_size=section.intermediate_size or 4 * section.hidden_size,
            max_position_embeddings=section.max_length + (0 if causal else 1),
            hidden_dropout_prob=section.dropout,
            attention_probs_dropout_prob=section.dropout,
            type_vocab_size=1,
            is_decoder=causal,
            use_cache=False,
            recommender={
                "family": "bert4rec",
                "mask_token_id": catalogue_size + 1,
                "mask_probability": section.mask_probability,
            },
        )
        return BertForMaskedLM(config)

    def seed_items(self, model: BertForMaskedLM, interactions: Interactions) -> None:
        vectors_IH = torch.from_numpy(item_vectors(interactions, model.config.hidden_size))
        known_I = vectors_IH.any(dim=1)
        with torch.no_grad():
            table_IH = model.bert.embeddings.word_embeddings.weight[: len(vectors_IH), : vectors_IH.shape[1]]
            table_IH[known_I] = ITEM_SCALE * vectors_IH[known_I]

    def load(self, folder: Path) -> BertForMaskedLM:
        return shapes.load(BertForMaskedLM, folder)

    def save(self, model: BertForMaskedLM, folder: Path) -> None:
        model.save_pretrained(folder)

    def adopt(
        self, section: Bert4RecCheckpoint, folder: Path, item_ids: Sequence[str], texts: Texts | None = None
    ) -> BertForMaskedLM:
        theirs = read_checkpoint(folder, BertForMaskedLM)
        if not theirs.config.tie_word_embeddings:
            raise DataError(f"{folder}: untied: RecPress serves models whose output table is their item table")
        positions = section.max_length + (0 if section.attention == "causal" else 1)
        if positions > theirs.config.max_position_embeddings:
            most = theirs.config.max_position_embeddings
            raise DataError(f"{folder}: max_length: it takes {positions} positions, the model has {most}")
        vocab_size = theirs.config.vocab_size
        special = [section.pad_token, section.pad_token if section.mask_token is None else section.mask_token]
        if max(special) >= vocab_size:
            raise DataError(f"{folder}: pad_token or mask_token {max(special)}: the model has {vocab_size} tokens")
        tokens = [*item_tokens(section, folder, item_ids, vocab_size), *special]
        config = BertConfig.from_dict(
            {
                **theirs.config.to_dict(),
                "vocab_size": len(tokens),
                "pad_token_id": len(item_ids),
                "max_position_embeddings": positions,
                "type_vocab_size": 1,
                "is_decoder": section.attention == "causal",
                "use_cache": False,
                "recommender": {
                    "family": "bert4rec",
                    "mask_token_id": len(item_ids) + 1,
                    "mask_probability": section.mask_probability,
                    "alignment": section.alignment,
                },
            }
        )
        weights = theirs.state_dict()
        rows = torch.tensor(tokens)
        for name in list(weights):
            if name.endswith(("word_embeddings.weight", "decoder.weight", "decoder.bias", "predictions.bias")):
                weights[name] = weights[name][rows]
            elif name.endswith("position_embeddings.weight"):
                weights[name] = weights[name][:positions]
            elif name.endswith("token_type_embeddings.weight"):
                weights[name] = weights[name][:1]
        return _of(config, weights)

    def other_readings(self, model: BertForMaskedLM) -> dict[str, BertForMaskedLM]:
        declared = (model.config.is_decoder, _alignment(model.config))
        found = {}
        for causal, alignment in itertools.product((True, False), ("left", "right")):
            if (causal, alignment) != declared:
                config = copy.deepcopy(model.config)
                config.is_decoder = causal
                config.recommender = {**config.recommender, "alignment": alignment}
                words = f"attention: {'causal' if causal else 'masked'}, alignment: {alignment}"
                found[words] = _of(config, model.state_dict())
        return found

    def baselines(self, model: BertForMaskedLM, interactions: Interactions, k: int) -> dict[str, Recommend]:
        return {}

    def examples(self, model: BertForMaskedLM, interactions: Interactions, seed: int) -> Examples:
        return (CausalExamples if model.config.is_decoder else MaskedExamples)(model.config, interactions, seed)

    def supervise(self, model: BertForMaskedLM, batch: Batch, *, layers: bool = False) -> Supervision:
        inputs = _inputs(batch["input_ids"], model.config)  # by its own length: a teacher's may be another
        with projections(model.bert, look=layers) as projected:
            encoded = model.bert(**inputs, output_hidden_states=layers)
        labelled = batch["labels"] != UNLABELLED
        return Supervision(
            states_NH=model.cls.predictions.transform(encoded.last_hidden_state[labelled]),
            labels_N=batch["labels"][labelled],
            hidden_states_BLH=encoded.hidden_states or (),
            real_BL=inputs["attention_mask"].bool(),
            scorer=_Scorer(model),
            projected=tuple(projected),
            heads=model.config.num_attention_heads,
            causal=model.config.is_decoder,
        )

    def inputs(self, model: BertForMaskedLM, asked: Asked) -> dict[str, Tensor]:
        pad_id = model.config.pad_token_id
        history_BL = left_padded(asked.histories, _max_items(model.config), pad_id)
        exclude_BE = left_padded(asked.excluded, max(map(len, asked.excluded)), pad_id)
        return {"history": torch.from_numpy(history_BL), "exclude": torch.from_numpy(exclude_BE)}

    def plain(self, model: BertForMaskedLM, top_k: int, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores_BI = _last_logits(model, inputs["history"]).float()  # no half holds MASKED
        pad_B1 = torch.full_like(scores_BI[:, :1], MASKED)  # what pads `exclude` has a column to strike out
        scores_BV = torch.cat([scores_BI, pad_B1], dim=1).scatter_(1, inputs["exclude"], MASKED)
        scores_BK, items_BK = scores_BV.topk(top_k)
        return items_BK, scores_BK

    def scorer(self, model: BertForMaskedLM) -> Score:
        return partial(self.score, model)

    def score(self, model: BertForMaskedLM, asked: Asked) -> Tensor:
        history_BL = self.inputs(model, asked)["history"].to(model.device)
        size = max(1, LOGITS // (history_BL.shape[1] * model.config.vocab_size))
        starts = range(0, len(history_BL), size)
        # Cloned: a view of the last position would keep the logits of all of them.
        scores_BI = torch.cat([_last_logits(model, history_BL[start : start + size]).clone() for start in starts])
        for row, items in zip(scores_BI, asked.excluded, strict=True):
            row[torch.from_numpy(items.astype(np.int64))] = -torch.inf
        return scores_BI

    def seed_student(
        self, student: BertForMaskedLM, teacher: BertForMaskedLM, layers: Sequence[int] | str, width: str
    ) -> None:
        positions = student.bert.embeddings.position_embeddings.weight
        fresh = positions.detach().clone()
        hidden_H = seed_encoder(student.bert, teacher.bert, layers, width, from_end=True)
        if _alignment(student.config) != _alignment(teacher.config):  # theirs say something else
            positions.data.copy_(fresh)
        if hidden_H is not None:
            ours, theirs = student.cls.predictions.transform, teacher.cls.predictions.transform
            copy_linear(ours.dense, theirs.dense, hidden_H, hidden_H)
            copy_norm(ours.LayerNorm, theirs.LayerNorm, hidden_H)
        with torch.no_grad():
            student.cls.predictions.bias.copy_(teacher.cls.predictions.bias)

    def trim(
        self, model: BertForMaskedLM, interactions: Interactions, scratch: Path, *, vocabulary: bool, positions: bool
    ) -> dict[str, Any]:
        if vocabulary:
            raise RecipeError("vocabulary: a bert4rec's tokens are its items; data.min_interactions cuts rare ones")
        longest = int(np.diff(interactions.offsets).max(initial=1)) + (0 if model.config.is_decoder else 1)
        limit = min(longest, model.config.max_position_embeddings)
        rows = slice(-limit, None) if _alignment(model.config) == "right" else slice(limit)
        return {"positions": shapes.keep_positions(model.bert, rows)}

    @torch.no_grad()
    def with_items(
        self, model: BertForMaskedLM, weights_NI: sp.csr_matrix, removed: IntArray, rounding: Rounding
    ) -> BertForMaskedLM:
        grown = copy.deepcopy(model)
        known, count = model.config.pad_token_id, model.config.pad_token_id + weights_NI.shape[0]
        grown.config.update(
            {
                "vocab_size": count + 2,
                "pad_token_id": count,
                "recommender": {**model.config.recommender, "mask_token_id": count + 1},
            }
        )
        embeddings, head = grown.bert.embeddings.word_embeddings, grown.cls.predictions
        rows_NH = torch.from_numpy(mean_rows(weights_NI, embeddings.weight[:known].numpy()))
        if rounding.item_table != "none":
            integers, scales = quantize_rows(rows_NH)
            rows_NH = integers * scales
        bias_N = torch.from_numpy(weights_NI @ head.bias[:known].numpy()).float()
        head.bias[removed.tolist()] = MASKED
        for parameter, new in ((embeddings.weight, rows_NH), (head.bias, bias_N)):  # pad and mask stay the last two
            parameter.data = torch.cat([parameter[:known], new, parameter[known:]])
        embeddings.num_embeddings, embeddings.padding_idx = count + 2, count
        head.decoder.out_features = count + 2
        return grown

    def serve(self, model: BertForMaskedLM, top_k: int, rounding: Rounding) -> ServedGraph:
        return ServedBert4Rec(model, top_k, rounding)


class _Scorer:
    """Scores of items from the state that the head's transform leaves at a position."""

    def __init__(self, model: BertForMaskedLM) -> None:
        self.table_IH = model.bert.embeddings.word_embeddings.weight[: model.config.pad_token_id]
        self.bias_I = model.cls.predictions.bias[: model.config.pad_token_id]

    def __call__(self, states_NH: Tensor, items_K: Tensor | None) -> Tensor:
        table, bias = self.table_IH, self.bias_I
        if items_K is not None:
            table, bias = table[items_K], bias[items_K]
        return torch.addmm(bias, states_NH, table.T)

    def pairs(self, states_NH: Tensor, items_N: Tensor) -> Tensor:
        scores_N: Tensor = (states_NH * self.table_IH[items_N]).sum(dim=1) + self.bias_I[items_N]
        return scores_N


class _Windows(Examples):
    """Each user's training items cut into windows, anew each epoch.

    One window ends at the latest item; the others follow each other back to the first item from a place drawn at
    random, so that an item meets many positions and contexts. Items of one moment come in an order drawn at random.
    """

    def __init__(self, config: BertConfig, interactions: Interactions, seed: int) -> None:
        self.config = config
        self.interactions = interactions
        self.seed = seed
        self.shortest = 2 if config.is_decoder else 1
        counts_U = self._counts(interactions.train_ends - interactions.offsets[:-1])
        self.user_of = np.repeat(np.arange(interactions.user_count), counts_U)
        self.place_of = np.arange(len(self.user_of)) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)

    @property
    def shaped_by(self) -> dict[str, Any]:
        masked = {"mask_probability": self.config.recommender.get("mask_probability")}
        return {"positions": self.config.max_position_embeddings, **({} if self.config.is_decoder else masked)}

    def _counts(self, items_U: NDArray[np.int64]) -> NDArray[np.int64]:
        """Windows of users: one if it holds everything, else enough to reach the first item from any place."""
        step = self.config.max_position_embeddings
        further = np.where(items_U < step + self.shortest, 0, -(-(items_U - self.shortest) // step))
        return np.where(items_U < self.shortest, 0, 1 + further)

    def __len__(self) -> int:
        return len(self.user_of)

    def window(self, index: int, size: int) -> tuple[NDArray[np.int64], np.random.Generator]:
        """At most `size` items, and the randomness that this epoch has for them, whatever ran before."""
        user, place = int(self.user_of[index]), int(self.place_of[index])
        of_user = np.random.default_rng((self.seed, self.epoch, user))  # the same for all windows of the user
        items = self.interactions.retold(user, of_user)
        end = len(items)
        if place:
            step = self.config.max_position_embeddings
            end = max(self.shortest, end - int(of_user.integers(1, step + 1)) - (place - 1) * step)
        of_window = np.random.default_rng((self.seed, self.epoch, user, place + 1))  # a last 0 would make it of_user
        return items[max(0, end - size) : end].astype(np.int64), of_window

    def collate(self, examples: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> dict[str, Tensor]:
        limit = self.config.max_position_embeddings
        ids = torch.from_numpy(left_padded([ids for ids, _ in examples], limit, self.config.pad_token_id))
        labels = torch.from_numpy(left_padded([labels for _, labels in examples], limit, UNLABELLED))
        return {"input_ids": ids, "labels": labels}

    def positions(self, example: tuple[NDArray[np.int64], NDArray[np.int64]]) -> int:
        return int((example[1][-self.config.max_position_embeddings :] != UNLABELLED).sum())


class CausalExamples(_Windows):
    """Every position predicts the next item."""

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        items, _ = self.window(index, self.config.max_position_embeddings + 1)
        return items[:-1], items[1:]


class MaskedExamples(_Windows):
    """The Cloze task: some positions are masked and predicted, at least one, and now and then the last alone.

    The paper's final mask at the end of the history, as in serving, makes one example in ten.
    """

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        items, random = self.window(index, self.config.max_position_embeddings)  # as served: one place is the mask's
        masked = random.random(len(items)) < self.config.recommender["mask_probability"]
        if not masked.any() or random.random() < 0.1:
            masked = np.arange(len(items)) == len(items) - 1
        return np.where(masked, _mask_id(self.config), items), np.where(masked, items, UNLABELLED)


class ServedBert4Rec(ServedGraph):
    """History in, top-k out: one scored position, one query in the last layer, seen items masked, all in the graph."""

    axes: ClassVar = {"history": ("batch", "length"), "exclude": ("batch", "excluded")}
    outputs = ("items", "scores")

    def __init__(self, model: BertForMaskedLM, top_k: int, rounding: Rounding) -> None:
        config = model.config
        super().__init__(config.pad_token_id, config.pad_token_id, _max_items(config), top_k)
        self.causal = config.is_decoder
        self.mask_id = _mask_id(config)
        table_VH = model.bert.embeddings.word_embeddings.weight
        self.table = Stored(table_VH, rounding.item_table)
        self.positions = Positions(model.bert.embeddings, _alignment(config))
        self.layers, self.last = serving_layers(model.bert)
        transform = model.cls.predictions.transform
        self.transform = transposed(transform.dense)
        self.activation = transform.transform_act_fn
        self.norm = transform.LayerNorm
        bias_V = model.cls.predictions.bias.detach().clone()
        bias_V[self.catalogue_size :] = MASKED  # pad and mask are never recommended, at no cost
        self.bias_V = nn.Parameter(bias_V, requires_grad=False)
        self.store_weights(rounding)

    def forward(self, history_BL: Tensor, exclude_BE: Tensor) -> tuple[Tensor, Tensor]:
        if not self.causal:
            history_BL = nn.functional.pad(history_BL, (0, 1), value=self.mask_id)
        table_VH = self.table()
        padding_B1L = (history_BL == self.pad_id).to(table_VH.dtype).unsqueeze(1) * MASKED
        y_BLH = self.positions(nn.functional.embedding(history_BL, table_VH), history_BL == self.pad_id)
        if len(self.layers):
            mask = padding_B1L.unsqueeze(1)
            if self.causal:
                length = history_BL.shape[1]
                future_LL = torch.ones(length, length, dtype=table_VH.dtype, device=table_VH.device).triu(1) * MASKED
                mask = mask + future_LL
            for layer in self.layers:
                y_BLH = layer(y_BLH, mask)
        state_BH = self.last(y_BLH, y_BLH[:, -1], padding_B1L)
        state_BH = self.norm(self.activation(self.transform(state_BH)))
        scores_BV = torch.addmm(self.bias_V, state_BH, table_VH.T)
        scores_BV = scores_BV.scatter(1, exclude_BE, MASKED)
        scores_BK, items_BK = torch.topk(scores_BV, self.top_k)
        return items_BK, scores_BK


def _last_logits(model: BertForMaskedLM, history_BL: Tensor) -> Tensor:
    """Scores of the catalogue after each history, (B, I), all logits computed on the way."""
    config = model.config
    if not config.is_decoder:
        history_BL = nn.functional.pad(history_BL, (0, 1), value=_mask_id(config))
    logits_BLV = model(**_inputs(history_BL, config)).logits
    scores_BI: Tensor = logits_BLV[:, -1, : config.pad_token_id]
    return scores_BI


def _inputs(ids_BL: Tensor, config: BertConfig) -> dict[str, Tensor]:
    """What BertModel is called with: positions count from the end, or from a history's first item."""
    real_BL = (ids_BL != config.pad_token_id).long()
    if _alignment(config) == "left":
        positions_BL = (real_BL.cumsum(dim=1) - 1).clamp(min=0)
    else:
        last = config.max_position_embeddings
        positions_BL = torch.arange(last - ids_BL.shape[1], last, device=ids_BL.device).expand(1, -1)
    return {"input_ids": ids_BL, "attention_mask": real_BL, "position_ids": positions_BL}


def _alignment(config: BertConfig) -> str:
    """Our own models are right-aligned; one that was adopted may be left-aligned."""
    return str(config.recommender.get("alignment", "right"))


def _of(config: BertConfig, weights: Mapping[str, Tensor]) -> BertForMaskedLM:
    model = BertForMaskedLM(config)
    model.load_state_dict(weights)
    return model.eval()


def _mask_id(config: BertConfig) -> int:
    return int(config.recommender["mask_token_id"])


def _max_items(config: BertConfig) -> int:
    """History items that fit: a masked model spends its last position on the mask."""
    return int(config.max_position_embeddings) - (0 if config.is_decoder else 1)
