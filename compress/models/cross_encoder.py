"""Cross-encoder: BertForSequenceClassification over (user text, item text) (Nogueira & Cho 2019, arXiv 1901.04085).

One logit, or two whose difference is the score: with two, cross-entropy is the binary cross-entropy of that difference.
The texts are tokens already (`data.texts`) and travel with the model; how pairs of them are read: `pairs`.

B: examples, C: candidates of one, P: pairs, U: tokens of a user, T: of an item, O: [CLS] and those, H: width, I: items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from compress.data.histories import MASKED, Asked
from compress.data.interactions import IntArray
from compress.data.texts import Texts, padded
from compress.errors import DataError
from compress.methods import shapes
from compress.methods.rounding import Rounding, Stored
from compress.methods.seeding import seed_encoder
from compress.methods.slicing import copy_linear
from compress.models.checkpoint import read_checkpoint
from compress.models.encoder import FullLayer, serving_layers, transposed
from compress.models.family import Batch, Score, ServedGraph, Supervision
from compress.models.observed import Projected, projections
from compress.models.pairs import cls_states, joined, plain_states, reads_one_way, visible
from compress.models.text_examples import BatchScores
from compress.models.text_family import TextFamily, begin, check_texts
from compress.recipe.adoption import CrossEncoderCheckpoint
from compress.recipe.model import CrossEncoderModel

Head = Callable[[Tensor], Tensor]
"""From pooled [CLS] states of all pairs of a batch, (P, H), to their scores, (P)."""

SCORED_TOGETHER = 32
"""Candidates that one row asks about, where a user's tokens are computed once for all of them."""


class CrossEncoder(TextFamily):
    """The family; it has no state of its own."""

    def head(self, model: Any, batch: Batch) -> Head:
        """What scores the pairs of a batch, or of a request's `inputs`, whose texts have been read."""
        weight_H, bias = score_head(model)
        return lambda pooled_PH: pooled_PH @ weight_H + bias

    def beside(self, model: Any, asked: Asked, row: int, items: IntArray) -> dict[str, NDArray[Any]]:
        """What that reads of a user's candidates besides the texts, by name; a row for each item."""
        return {}

    def build(
        self, section: CrossEncoderModel, catalogue_size: int, texts: Texts | None = None
    ) -> BertForSequenceClassification:
        assert texts is not None, "the section names them"
        facts = _facts(catalogue_size, section.negatives, section.drawn) | {"attention": section.attention}
        config, weights = begin(section, texts, "BertForSequenceClassification", facts)
        model = BertForSequenceClassification(config)
        model.bert.load_state_dict(weights, strict=False)  # a pooler may be fresh
        model.texts = texts
        return model

    def load(self, folder: Path) -> BertForSequenceClassification:
        model = shapes.load(BertForSequenceClassification, folder)
        model.texts = Texts.load(folder)
        return model

    def adopt(
        self, section: CrossEncoderCheckpoint, folder: Path, item_ids: Sequence[str], texts: Texts | None = None
    ) -> BertForSequenceClassification:
        assert texts is not None, "the section names them"
        model = read_checkpoint(folder, BertForSequenceClassification)
        if model.config.num_labels > 2:
            raise DataError(f"{folder}: {model.config.num_labels} labels; a cross-encoder has one logit or two")
        check_texts(str(folder), model.config, texts)
        model.config.pad_token_id = texts.layout.pad
        model.config.recommender = _facts(len(item_ids), section.negatives, section.drawn)
        model.texts = texts
        return model

    def supervise(self, model: BertForSequenceClassification, batch: Batch, *, layers: bool = False) -> Supervision:
        items_BCT = batch["items"]
        user_PU = batch["user"].repeat_interleave(items_BCT.shape[1], dim=0)
        ids_PL, types_PL = joined(user_PU, items_BCT.flatten(0, 1), model.config.pad_token_id)
        real_PL = ids_PL != model.config.pad_token_id
        states: tuple[Tensor, ...] = ()
        projected: list[Projected] = []
        if layers:  # of all pairs at once: their positions are compared with another model's
            mask = visible(model.config, real_PL.long(), types_PL)
            with projections(model.bert) as projected:
                encoded = model.bert(ids_PL, mask, types_PL, output_hidden_states=True)
            cls_PH, states = encoded.last_hidden_state[:, 0], encoded.hidden_states
        else:
            cls_PH = cls_states(model, batch["user"], items_BCT)
        scores_P = _score(model, cls_PH, self.head(model, batch))
        scores_BC = scores_P.view(items_BCT.shape[:2])
        return Supervision(
            states_NH=scores_BC,
            labels_N=torch.zeros(len(scores_BC), dtype=torch.long, device=scores_BC.device),
            hidden_states_BLH=states,
            real_BL=real_PL,
            scorer=BatchScores(),
            projected=tuple(projected),
            heads=model.config.num_attention_heads,
            wanted_NK=batch["wanted"],
        )

    def inputs(self, model: BertForSequenceClassification, asked: Asked) -> dict[str, Tensor]:
        if len(asked) != 1:
            raise ValueError(f"{len(asked)} requests: a cross-encoder's graph answers one at a time")
        items = _candidates(model, asked.excluded[0])
        (user,) = model.texts.users(asked, model.config.max_position_embeddings)
        arrays = {"user": user, "items": model.texts.candidates(items), **self.beside(model, asked, 0, items)}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def plain(
        self, model: BertForSequenceClassification, top_k: int, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        user_U, items_PT = inputs["user"], inputs["items"]
        ids_PL, types_PL = joined(user_U.expand(len(items_PT), -1), items_PT, model.config.pad_token_id)
        return (_score(model, plain_states(model, ids_PL, types_PL), self.head(model, inputs)),)

    def scorer(self, model: BertForSequenceClassification) -> Score:
        return partial(self.score, model)

    def score(self, model: BertForSequenceClassification, asked: Asked) -> Tensor:
        candidates = [_candidates(model, items) for items in asked.excluded]
        scores_BI = torch.full((len(asked), model.config.recommender["catalogue_size"]), -torch.inf)
        if not any(map(len, candidates)):
            return scores_BI
        users_BU = padded(model.texts.users(asked, model.config.max_position_embeddings), model.texts.layout.pad)
        width = SCORED_TOGETHER if reads_one_way(model.config) else 1
        rows = [np.resize(items, (-(-len(items) // width), width)) for items in candidates]  # the last one is filled up
        user_RU = torch.from_numpy(np.repeat(users_BU, [len(each) for each in rows], axis=0))
        items_RT = model.texts.candidates(np.concatenate(rows).ravel())
        items_RCT = torch.from_numpy(items_RT.reshape(-1, width, items_RT.shape[1]))
        asked_for = [np.arange(each.size) < len(items) for each, items in zip(rows, candidates, strict=True)]
        states_PH = cls_states(model, user_RU.to(model.device), items_RCT.to(model.device))
        states_PH = states_PH[torch.from_numpy(np.concatenate(asked_for)).to(model.device)]
        told = [self.beside(model, asked, row, items) for row, items in enumerate(candidates)]
        beside = {
            name: torch.from_numpy(np.concatenate([each[name] for each in told])).to(model.device) for name in told[0]
        }
        scores_P = _score(model, states_PH, self.head(model, beside)).cpu()
        scores = torch.split(scores_P, [len(items) for items in candidates])
        for row, items, found in zip(scores_BI, candidates, scores, strict=True):
            row[torch.from_numpy(items)] = found
        return scores_BI

    def seed_student(
        self,
        student: BertForSequenceClassification,
        teacher: BertForSequenceClassification,
        layers: Sequence[int] | str,
        width: str,
    ) -> None:
        hidden_H = seed_encoder(student.bert, teacher.bert, layers, width)
        if hidden_H is not None:
            copy_linear(student.bert.pooler.dense, teacher.bert.pooler.dense, hidden_H, hidden_H)
            if student.config.num_labels == teacher.config.num_labels:
                labels = torch.arange(student.config.num_labels)
                copy_linear(student.classifier, teacher.classifier, labels, hidden_H)

    def serve(self, model: BertForSequenceClassification, top_k: int, rounding: Rounding) -> ServedGraph:
        return ServedCrossEncoder(model, top_k, rounding)


class ServedCrossEncoder(ServedGraph):
    """One user's tokens and candidates' tokens in, scores out: the last layer computes [CLS] alone.

    All candidates share the user's tokens, which no item's have met before the first layer's attention: embeddings,
    queries, keys and values of the user are computed once. If they never meet any, all layers compute them once.
    """

    axes: ClassVar = {"user": ("user_tokens",), "items": ("candidates", "item_tokens")}
    outputs = ("scores",)

    def __init__(self, model: BertForSequenceClassification, top_k: int, rounding: Rounding) -> None:
        config = model.config
        catalogue_size = config.recommender["catalogue_size"]
        super().__init__(catalogue_size, config.pad_token_id, config.max_position_embeddings, top_k)
        self.uniform = not reads_one_way(config)
        embeddings = model.bert.embeddings
        self.table = Stored(embeddings.word_embeddings.weight, rounding.item_table)
        positions_LH, types_2H = embeddings.position_embeddings.weight, embeddings.token_type_embeddings.weight
        self.user_positions_LH = nn.Parameter((positions_LH + types_2H[0]).detach(), requires_grad=False)
        self.item_positions_LH = nn.Parameter((positions_LH + types_2H[1]).detach(), requires_grad=False)
        self.layers, self.last = serving_layers(model.bert)
        self.pooler = transposed(model.bert.pooler.dense)
        self.take_head(model)
        self.store_weights(rounding)

    def take_head(self, model: Any) -> None:
        """What `forward` makes of pooled states, in floating point."""
        weight_H, bias = score_head(model)
        self.head_H1 = nn.Parameter(weight_H[:, None].detach().clone(), requires_grad=False)
        self.head_bias = nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, user_U: Tensor, items_PT: Tensor) -> tuple[Tensor]:
        return ((self.pooled(user_U, items_PT) @ self.head_H1).squeeze(1) + self.head_bias,)

    def pooled(self, user_U: Tensor, items_PT: Tensor) -> Tensor:
        """What BERT's pooler says of each pair's [CLS], (P, H)."""
        table_VH = self.table()
        length = user_U.shape[0]
        item_end = length + items_PT.shape[1]
        user_1UH = (nn.functional.embedding(user_U, table_VH) + self.user_positions_LH[:length]).unsqueeze(0)
        y_PTH = nn.functional.embedding(items_PT, table_VH) + self.item_positions_LH[length:item_end]
        padding_PT = (items_PT == self.pad_id).to(table_VH.dtype) * MASKED
        read = self._read_both_ways if self.uniform else self._read_one_way
        y_PLH, padding_PL = read(user_1UH, y_PTH, padding_PT)
        pooled_PH: Tensor = torch.tanh(self.pooler(self.last(y_PLH, y_PLH[:, 0], padding_PL.unsqueeze(1))))
        return pooled_PH

    def _read_both_ways(self, user_1UH: Tensor, y_PTH: Tensor, padding_PT: Tensor) -> tuple[Tensor, Tensor]:
        """What comes to the last layer, [CLS] first, and what masks its padding, (P, L)."""
        padding_PL = nn.functional.pad(padding_PT, (user_1UH.shape[1], 0))
        if not len(self.layers):
            return _beside(user_1UH, y_PTH), padding_PL
        mask_P11L = padding_PL[:, None, None]
        first: FullLayer
        first, *others = self.layers  # type: ignore[assignment]
        (user_x, user_qkv), (item_x, item_qkv) = first.project(user_1UH), first.project(y_PTH)
        y_PLH = first.attend(_beside(user_x, item_x), _beside(user_qkv, item_qkv), mask_P11L)
        for layer in others:
            y_PLH = layer(y_PLH, mask_P11L)
        return y_PLH, padding_PL

    def _read_one_way(self, user_1UH: Tensor, y_PTH: Tensor, padding_PT: Tensor) -> tuple[Tensor, Tensor]:
        """The same: a user's tokens are one row all the way, [CLS] and an item's are a row a pair."""
        y_POH, user_1UH = _beside(user_1UH[:, :1], y_PTH), user_1UH[:, 1:]
        padding_PO = nn.functional.pad(padding_PT, (1, 0))
        layer: FullLayer
        for layer in self.layers:  # type: ignore[assignment]
            (user_x, user_qkv), (x_POH, qkv_POE) = layer.project(user_1UH), layer.project(y_POH)
            y_POH = layer.attend(x_POH, qkv_POE, padding_PO[:, None, None], user_qkv)
            user_1UH = layer.attend(user_x, user_qkv, None)
        users_PUH = user_1UH.expand(y_POH.shape[0], -1, -1)
        return torch.cat([y_POH, users_PUH], dim=1), nn.functional.pad(padding_PO, (0, users_PUH.shape[1]))


def _beside(user_1UX: Tensor, item_PTX: Tensor) -> Tensor:
    """Each pair's, the user's before the item's."""
    return torch.cat([user_1UX.expand(item_PTX.shape[0], -1, -1), item_PTX], dim=1)


def _facts(catalogue_size: int, negatives: int, drawn: str) -> dict[str, Any]:
    return {
        "family": "cross_encoder",
        "catalogue_size": catalogue_size,
        "negatives": min(negatives, catalogue_size - 1),
        "drawn": drawn,
    }


def _candidates(model: BertForSequenceClassification, excluded: IntArray) -> NDArray[np.int64]:
    allowed = np.ones(model.config.recommender["catalogue_size"], dtype=bool)
    allowed[excluded] = False
    return np.flatnonzero(allowed)


def _score(model: Any, cls_PH: Tensor, head: Head) -> Tensor:
    """From [CLS] states of pairs to scores, (P)."""
    pooled_PH = torch.tanh(model.bert.pooler.dense(cls_PH))
    with torch.autocast(pooled_PH.device.type, enabled=False):  # bfloat16 has steps of .06 where scores are 10
        return head(model.dropout(pooled_PH).to(model.dtype))


def score_head(model: BertForSequenceClassification) -> tuple[Tensor, Tensor]:
    """Of two logits only the difference ranks."""
    weight, bias = model.classifier.weight, model.classifier.bias
    return (weight[0], bias[0]) if len(weight) == 1 else (weight[1] - weight[0], bias[1] - bias[0])
