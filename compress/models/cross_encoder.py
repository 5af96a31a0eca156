"""Cross-encoder: BertForSequenceClassification over (user text, item text) (Nogueira & Cho 2019, arXiv 1901.04085).

One logit, or two whose difference is the score: with two, cross-entropy is the binary cross-entropy of that difference.
An input is [CLS] user [SEP] item [SEP]; the texts are tokens already (`data.texts`) and travel with the model.

B: examples, C: candidates of one, P: pairs, L: tokens of a pair, U: of a user, T: of an item, H: width, I: items.
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
from compress.models.first_position import first_position
from compress.models.observed import Projected, projections
from compress.models.text_examples import BatchScores
from compress.models.text_family import TextFamily, begin, by_length, check_texts
from compress.recipe.adoption import CrossEncoderCheckpoint
from compress.recipe.model import CrossEncoderModel

Head = Callable[[Tensor, Tensor], Tensor]
"""From pooled [CLS] states of some pairs, (P, H), and which of a batch they are, (P), to their scores, (P)."""


class CrossEncoder(TextFamily):
    """The family; it has no state of its own."""

    def head(self, model: Any, batch: Batch) -> Head:
        """What scores the pairs of a batch, or of a request's `inputs`, whose texts have been read."""
        weight_H, bias = score_head(model)
        return lambda pooled_PH, rows_P: pooled_PH @ weight_H + bias

    def beside(self, model: Any, asked: Asked, row: int, items: IntArray) -> dict[str, NDArray[Any]]:
        """What that reads of a user's candidates besides the texts, by name; a row for each item."""
        return {}

    def build(
        self, section: CrossEncoderModel, catalogue_size: int, texts: Texts | None = None
    ) -> BertForSequenceClassification:
        assert texts is not None, "the section names them"
        facts = _facts(catalogue_size, section.negatives, section.drawn)
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
        ids_PL, types_PL = _joined(user_PU, items_BCT.flatten(0, 1), model.config.pad_token_id)
        real_PL = ids_PL != model.config.pad_token_id
        head = self.head(model, batch)
        states: tuple[Tensor, ...] = ()
        projected: list[Projected] = []
        if layers:  # of all pairs at once: their positions are compared with another model's
            with projections(model.bert) as projected:
                encoded = model.bert(ids_PL, real_PL.long(), types_PL, output_hidden_states=True)
            everything = torch.arange(len(ids_PL), device=ids_PL.device)
            scores_P = _score(model, encoded.last_hidden_state[:, 0], everything, head)
            states = encoded.hidden_states
        else:
            scores_P = _scores(model, ids_PL, types_PL, head)
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
        ids_PL, types_PL = _joined(user_U.expand(len(items_PT), -1), items_PT, model.config.pad_token_id)
        return (_plain_scores(model, ids_PL, types_PL, self.head(model, inputs)),)

    def scorer(self, model: BertForSequenceClassification) -> Score:
        return partial(self.score, model)

    def score(self, model: BertForSequenceClassification, asked: Asked) -> Tensor:
        candidates = [_candidates(model, items) for items in asked.excluded]
        scores_BI = torch.full((len(asked), model.config.recommender["catalogue_size"]), -torch.inf)
        if not any(map(len, candidates)):
            return scores_BI
        users = padded(model.texts.users(asked, model.config.max_position_embeddings), model.texts.layout.pad)
        user_PU = torch.from_numpy(users).repeat_interleave(torch.tensor([len(items) for items in candidates]), dim=0)
        items_PT = torch.from_numpy(model.texts.candidates(np.concatenate(candidates)))
        ids_PL, types_PL = _joined(user_PU.to(model.device), items_PT.to(model.device), model.texts.layout.pad)
        told = [self.beside(model, asked, row, items) for row, items in enumerate(candidates)]
        beside = {
            name: torch.from_numpy(np.concatenate([each[name] for each in told])).to(model.device) for name in told[0]
        }
        scores_P = _scores(model, ids_PL, types_PL, self.head(model, beside)).cpu()
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
    queries, keys and values of the user are computed once.
    """

    axes: ClassVar = {"user": ("user_tokens",), "items": ("candidates", "item_tokens")}
    outputs = ("scores",)

    def __init__(self, model: BertForSequenceClassification, top_k: int, rounding: Rounding) -> None:
        config = model.config
        catalogue_size = config.recommender["catalogue_size"]
        super().__init__(catalogue_size, config.pad_token_id, config.max_position_embeddings, top_k)
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
        length, pairs = user_U.shape[0], items_PT.shape[0]
        item_end = length + items_PT.shape[1]
        user_1UH = (nn.functional.embedding(user_U, table_VH) + self.user_positions_LH[:length]).unsqueeze(0)
        y_PTH = nn.functional.embedding(items_PT, table_VH) + self.item_positions_LH[length:item_end]
        padding_PT = (items_PT == self.pad_id).to(table_VH.dtype) * MASKED
        padding_P1L = nn.functional.pad(padding_PT, (length, 0)).unsqueeze(1)

        def beside(user_1UX: Tensor, item_PTX: Tensor) -> Tensor:
            return torch.cat([user_1UX.expand(pairs, -1, -1), item_PTX], dim=1)

        if len(self.layers):
            mask_P11L = padding_P1L.unsqueeze(1)
            first: FullLayer
            first, *others = self.layers  # type: ignore[assignment]
            (user_x, user_qkv), (item_x, item_qkv) = first.project(user_1UH), first.project(y_PTH)
            y_PLH = first.attend(beside(user_x, item_x), beside(user_qkv, item_qkv), mask_P11L)
            for layer in others:
                y_PLH = layer(y_PLH, mask_P11L)
        else:
            y_PLH = beside(user_1UH, y_PTH)
        pooled_PH: Tensor = torch.tanh(self.pooler(self.last(y_PLH, y_PLH[:, 0], padding_P1L)))
        return pooled_PH


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


def _joined(user_PU: Tensor, items_PT: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and token types of pairs, (P, L) each: a user's tokens, an item's right behind them, then padding."""
    lengths_P1 = (user_PU != pad).sum(dim=1, keepdim=True)
    columns_L = torch.arange(user_PU.shape[1] + items_PT.shape[1], device=user_PU.device)
    places_PL = columns_L - lengths_P1  # among the item's tokens
    tokens_PL = items_PT.gather(1, places_PL.clamp(0, items_PT.shape[1] - 1))
    tokens_PL = tokens_PL.masked_fill(places_PL >= items_PT.shape[1], pad)
    of_user_PL = places_PL < 0
    wide_PL = nn.functional.pad(user_PU, (0, items_PT.shape[1]), value=pad)
    return torch.where(of_user_PL, wide_PL, tokens_PL), (~of_user_PL).long()


def _scores(model: Any, ids_PL: Tensor, types_PL: Tensor, head: Head) -> Tensor:
    """Scores of pairs, (P), the last layer at [CLS] alone."""
    with first_position(model.bert):
        return _plain_scores(model, ids_PL, types_PL, head)


def _plain_scores(model: Any, ids_PL: Tensor, types_PL: Tensor, head: Head) -> Tensor:
    """Scores of pairs, (P), all positions of all layers computed."""

    def score(rows: Tensor, real: Tensor, length: int) -> Tensor:
        encoded = model.bert(ids_PL[rows, :length], real, types_PL[rows, :length])
        return _score(model, encoded.last_hidden_state[:, 0], rows, head)

    return by_length(ids_PL, model.config.pad_token_id, score)


def _score(model: Any, cls_PH: Tensor, rows_P: Tensor, head: Head) -> Tensor:
    """From [CLS] states of these pairs to scores, (P)."""
    pooled_PH = torch.tanh(model.bert.pooler.dense(cls_PH))
    with torch.autocast(pooled_PH.device.type, enabled=False):  # bfloat16 has steps of .06 where scores are 10
        return head(model.dropout(pooled_PH).float(), rows_P)


def score_head(model: BertForSequenceClassification) -> tuple[Tensor, Tensor]:
    """Of two logits only the difference ranks."""
    weight, bias = model.classifier.weight, model.classifier.bias
    return (weight[0], bias[0]) if len(weight) == 1 else (weight[1] - weight[0], bias[1] - bias[0])
