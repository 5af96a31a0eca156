"""Cross-encoder: BertForSequenceClassification over (user text, item text) (Nogueira & Cho 2019, arXiv 1901.04085).

One logit, or two whose difference is the score: with two, cross-entropy is the binary cross-entropy of that difference.
An input is [CLS] user [SEP] item [SEP]; the texts are tokens already (`data.texts`) and travel with the model.

B: examples, C: candidates of one, P: pairs, L: tokens of a pair, U: of a user, T: of an item, H: width, I: items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedModel

from compress.data.histories import MASKED, Histories, Recommend
from compress.data.interactions import IntArray, Interactions
from compress.data.texts import Texts
from compress.errors import DataError, RecipeError
from compress.methods.rounding import Rounding, Stored
from compress.methods.seeding import seed_encoder
from compress.methods.tfidf_regression import tfidf_regression
from compress.models.checkpoint import read_checkpoint
from compress.models.encoder import FullLayer, serving_layers
from compress.models.family import Batch, Examples, ServedGraph, Supervision, Weight
from compress.models.pretrained import locate
from compress.recipe.adoption import CrossEncoderCheckpoint
from compress.recipe.model import CrossEncoderModel

CHUNK = 64
"""Pairs that are computed at once, sorted by length: what is padded is a few tokens in a hundred."""

REGRESSED = 20_000
"""Examples that the regression on tf-idf, the baseline, learns from."""

PREDICTED = 32
"""Pairs that sentence-transformers' CrossEncoder.predict computes at once unless told otherwise."""


class CrossEncoder:
    """The family; it has no state of its own. A model's texts are its attribute `texts`."""

    def build(
        self, section: CrossEncoderModel, catalogue_size: int, texts: Texts | None = None
    ) -> BertForSequenceClassification:
        assert texts is not None, "the section names them"
        pretrained = _pretrained(section, texts) if section.checkpoint else None
        sizes = {
            "vocab_size": texts.layout.vocab_size,
            "hidden_size": section.hidden_size,
            "num_hidden_layers": section.num_hidden_layers,
            "num_attention_heads": section.num_attention_heads,
            "intermediate_size": section.intermediate_size or 4 * section.hidden_size,
            "max_position_embeddings": section.max_length,
        }
        config = BertConfig.from_dict(
            {
                **(pretrained.config.to_dict() if pretrained else sizes),
                "architectures": ["BertForSequenceClassification"],
                "pad_token_id": texts.layout.pad,
                "hidden_dropout_prob": section.dropout,
                "attention_probs_dropout_prob": section.dropout,
                "num_labels": 1,
                "recommender": _facts(catalogue_size, section.negatives, section.drawn),
            }
        )
        model = BertForSequenceClassification(config)
        if pretrained:
            model.bert.load_state_dict(pretrained.state_dict())
        model.texts = texts
        _check_room(model, f"max_length: {config.max_position_embeddings}")
        return model

    def seed_items(self, model: BertForSequenceClassification, interactions: Interactions) -> None:
        """Nothing: items are their texts."""

    def load(self, folder: Path) -> BertForSequenceClassification:
        model = BertForSequenceClassification.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        model.texts = Texts.load(folder)
        return model.eval()

    def save(self, model: BertForSequenceClassification, folder: Path) -> None:
        model.save_pretrained(folder)
        model.texts.save(folder)

    def adopt(
        self, section: CrossEncoderCheckpoint, folder: Path, item_ids: Sequence[str], texts: Texts | None = None
    ) -> BertForSequenceClassification:
        assert texts is not None, "the section names them"
        model = read_checkpoint(folder, BertForSequenceClassification)
        if model.config.num_labels > 2:
            raise DataError(f"{folder}: {model.config.num_labels} labels; a cross-encoder has one logit or two")
        _check_vocabulary(folder, model.config, texts)
        model.config.pad_token_id = texts.layout.pad
        model.config.recommender = _facts(len(item_ids), section.negatives, section.drawn)
        model.texts = texts
        _check_room(model, f"{folder}: max_position_embeddings {model.config.max_position_embeddings}")
        return model

    def other_readings(self, model: BertForSequenceClassification) -> dict[str, BertForSequenceClassification]:
        return {}

    def baselines(self, model: BertForSequenceClassification, interactions: Interactions) -> dict[str, Recommend]:
        examples = PairExamples(model.config, model.texts, interactions, seed=0)
        some = np.random.default_rng(0).permutation(len(examples))[:REGRESSED]
        return {"tfidf": tfidf_regression(model.texts, [examples.items(index) for index in some.tolist()])}

    def examples(self, model: BertForSequenceClassification, interactions: Interactions, seed: int) -> Examples:
        return PairExamples(model.config, model.texts, interactions, seed)

    def supervise(
        self, model: BertForSequenceClassification, batch: Batch, *, hidden_states: bool = False
    ) -> Supervision:
        ids_BCL, types_BCL = batch["input_ids"], batch["token_type_ids"]
        ids_PL, types_PL = ids_BCL.flatten(0, 1), types_BCL.flatten(0, 1)
        real_PL = ids_PL != model.config.pad_token_id
        states: tuple[Tensor, ...] = ()
        if hidden_states:  # of all pairs at once: their positions are compared with another model's
            encoded = model.bert(ids_PL, real_PL.long(), types_PL, output_hidden_states=True)
            scores_P, states = _head(model, encoded.last_hidden_state[:, 0]), encoded.hidden_states
        else:
            scores_P = _scores(model, ids_PL, types_PL)
        scores_BC = scores_P.view(ids_BCL.shape[:2])
        return Supervision(
            states_NH=scores_BC,
            labels_N=torch.zeros(len(scores_BC), dtype=torch.long, device=scores_BC.device),
            hidden_states_BLH=states,
            real_BL=real_PL,
            scorer=_Listed(),
        )

    def inputs(
        self, model: BertForSequenceClassification, histories: Histories, excluded: Histories
    ) -> dict[str, Tensor]:
        if len(histories) != 1:
            raise ValueError(f"{len(histories)} histories: a cross-encoder's graph answers one request at a time")
        items = _candidates(model, excluded[0])
        user = model.texts.user(histories[0], _room(model))
        return {"user": torch.from_numpy(user), "items": torch.from_numpy(model.texts.candidates(items))}

    def plain(
        self, model: BertForSequenceClassification, top_k: int, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        user_U, items_PT = inputs["user"], inputs["items"]
        ids_PL = torch.cat([user_U.expand(len(items_PT), -1), items_PT], dim=1)
        types_PL = (torch.arange(ids_PL.shape[1], device=ids_PL.device) >= len(user_U)).long().expand(ids_PL.shape)
        return (_scores(model, ids_PL, types_PL, PREDICTED),)

    def score(self, model: BertForSequenceClassification, histories: Histories, excluded: Histories) -> Tensor:
        candidates = [_candidates(model, items) for items in excluded]
        users = [model.texts.user(history, _room(model)) for history in histories]
        pairs = [
            (user, model.texts.items[item]) for user, items in zip(users, candidates, strict=True) for item in items
        ]
        ids_PL, types_PL = (part.to(model.device) for part in _joined(pairs, model.texts))
        scores_BI = torch.full((len(histories), model.config.recommender["catalogue_size"]), -torch.inf)
        scores = torch.split(_scores(model, ids_PL, types_PL).cpu(), [len(items) for items in candidates])
        for row, items, found in zip(scores_BI, candidates, scores, strict=True):
            row[torch.from_numpy(items)] = found
        return scores_BI

    def seed_student(
        self,
        student: BertForSequenceClassification,
        teacher: BertForSequenceClassification,
        layers: Sequence[int] | None,
        width: str,
    ) -> None:
        seed_encoder(student.bert, teacher.bert, layers, width)
        if student.config.hidden_size == teacher.config.hidden_size:
            student.bert.pooler.load_state_dict(teacher.bert.pooler.state_dict())
            if student.config.num_labels == teacher.config.num_labels:
                student.classifier.load_state_dict(teacher.classifier.state_dict())

    def with_items(
        self, model: PreTrainedModel, weights_NI: sp.csr_matrix, removed: IntArray, rounding: Rounding
    ) -> PreTrainedModel:
        raise RecipeError(
            "refresh: a cross-encoder has no rows of items to add or take out; it ranks the candidates it is given"
        )

    def serve(self, model: BertForSequenceClassification, top_k: int, rounding: Rounding) -> ServedGraph:
        return ServedCrossEncoder(model, top_k, rounding)


class _Listed:
    """Scores of an example's own candidates; its states are those scores."""

    def __call__(self, states_NH: Tensor, items_K: Tensor | None) -> Tensor:
        if items_K is not None:
            raise ValueError("a cross-encoder scores an example's candidates and no others")
        return states_NH

    def pairs(self, states_NH: Tensor, items_N: Tensor) -> Tensor:
        return states_NH.gather(1, items_N[:, None]).squeeze(1)


class PairExamples(Examples):
    """An item of a history, told from items drawn beside it, given what came before; it is the first of them.

    What the user has in training is no negative.
    """

    def __init__(self, config: BertConfig, texts: Texts, interactions: Interactions, seed: int) -> None:
        self.config = config
        self.texts = texts
        self.interactions = interactions
        self.seed = seed
        counts_U = np.maximum(0, interactions.train_ends - interactions.offsets[:-1] - 1)
        self.user_of = np.repeat(np.arange(interactions.user_count), counts_U)
        self.place_of = 1 + np.arange(len(self.user_of)) - np.repeat(np.cumsum(counts_U) - counts_U, counts_U)
        uniform = np.ones(interactions.catalogue_size)
        weights = interactions.popularity() if config.recommender["drawn"] == "popularity" else uniform
        self.shares = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return len(self.user_of)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
        history, items = self.items(index)
        room = self.config.max_position_embeddings - self.texts.items.longest - 1
        return self.texts.user(history, room), [self.texts.items[item] for item in items]

    def items(self, index: int) -> tuple[IntArray, IntArray]:
        """A history, and the items that are told from each other."""
        user, place = int(self.user_of[index]), int(self.place_of[index])
        random = np.random.default_rng((self.seed, self.epoch, index))
        train = self.interactions.train(user)
        return train[:place], np.concatenate([train[place : place + 1], self._negatives(train, random)])

    def _negatives(self, seen: IntArray, random: np.random.Generator) -> NDArray[np.int64]:
        """Each once, none of them seen; fewer distinct ones only where the catalogue has no more."""
        wanted = self.config.recommender["negatives"]
        found = np.empty(0, dtype=np.int64)
        for _ in range(8):
            drawn = np.searchsorted(self.shares, random.random(2 * wanted), side="right")
            fresh = drawn[(drawn < len(self.shares)) & ~np.isin(drawn, seen)]
            found = np.concatenate([found, fresh])
            _, first = np.unique(found, return_index=True)
            found = found[np.sort(first)]
            if len(found) >= wanted:
                return found[:wanted]
        rest = random.permutation(np.setdiff1d(np.arange(len(self.shares)), [*seen, *found]))
        found = np.concatenate([found, rest])
        return np.resize(found, wanted) if len(found) else np.resize(seen, wanted)

    def collate(self, examples: Sequence[tuple[NDArray[np.int64], list[NDArray[Any]]]]) -> dict[str, Tensor]:
        pairs = [(user, item) for user, items in examples for item in items]
        ids_PL, types_PL = _joined(pairs, self.texts)
        shape = (len(examples), -1, ids_PL.shape[1])
        return {"input_ids": ids_PL.view(shape), "token_type_ids": types_PL.view(shape)}


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
        self.pooler = Weight(model.bert.pooler.dense.weight.T, model.bert.pooler.dense.bias)
        weight_H, bias = _score_head(model)
        self.head = Weight(weight_H[:, None], bias[None])
        self.store_weights(rounding)

    def forward(self, user_U: Tensor, items_PT: Tensor) -> tuple[Tensor]:
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
        state_PH = torch.tanh(self.pooler(self.last(y_PLH, y_PLH[:, 0], padding_P1L)))
        return (self.head(state_PH).squeeze(1),)


def _facts(catalogue_size: int, negatives: int, drawn: str) -> dict[str, Any]:
    return {
        "family": "cross_encoder",
        "catalogue_size": catalogue_size,
        "negatives": min(negatives, catalogue_size - 1),
        "drawn": drawn,
    }


def _pretrained(section: CrossEncoderModel, texts: Texts) -> BertModel:
    assert section.checkpoint is not None
    folder = locate(section.checkpoint)
    model = read_checkpoint(folder, BertModel)
    _check_vocabulary(folder, model.config, texts)
    return model


def _check_vocabulary(folder: Path, config: BertConfig, texts: Texts) -> None:
    if config.vocab_size < texts.layout.vocab_size:
        raise DataError(
            f"{folder}: knows {config.vocab_size} tokens, the texts have {texts.layout.vocab_size}: tokenize them with "
            "the model's own tokenizer"
        )


def _check_room(model: BertForSequenceClassification, what: str) -> None:
    if _room(model) < 2:
        raise DataError(
            f"{what}: an item's text takes up to {model.texts.items.longest + 1} tokens of it; none is left"
        )


def _room(model: BertForSequenceClassification) -> int:
    """Tokens that a user's text may take: whichever item is scored, it is the same text."""
    longest: int = model.texts.items.longest
    return int(model.config.max_position_embeddings) - longest - 1


def _candidates(model: BertForSequenceClassification, excluded: IntArray) -> NDArray[np.int64]:
    allowed = np.ones(model.config.recommender["catalogue_size"], dtype=bool)
    allowed[excluded] = False
    return np.flatnonzero(allowed)


def _joined(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], texts: Texts) -> tuple[Tensor, Tensor]:
    """Token ids and token types of (user with its [CLS] and [SEP], item without) pairs, padded: (P, L) each."""
    longest = max((len(user) + len(item) + 1 for user, item in pairs), default=1)
    ids = np.full((len(pairs), longest), texts.layout.pad, dtype=np.int64)
    types = np.zeros_like(ids)
    for row, kinds, (user, item) in zip(ids, types, pairs, strict=True):
        begin, end = len(user), len(user) + len(item)
        row[:begin], row[begin:end], row[end] = user, item, texts.layout.sep
        kinds[begin : end + 1] = 1
    return torch.from_numpy(ids), torch.from_numpy(types)


def _scores(model: BertForSequenceClassification, ids_PL: Tensor, types_PL: Tensor, chunk: int = CHUNK) -> Tensor:
    """Scores of pairs, (P), computed `chunk` at a time in order of length, each chunk as long as its longest."""
    real_PL = (ids_PL != model.config.pad_token_id).long()
    lengths_P = real_PL.sum(dim=1)
    order_P = lengths_P.argsort(descending=True)
    found = []
    for rows in order_P.split(chunk):
        longest = int(lengths_P[rows].max())
        part = (ids_PL[rows, :longest], real_PL[rows, :longest], types_PL[rows, :longest])
        found.append(_head(model, model.bert(*part).last_hidden_state[:, 0]))
    return torch.cat(found)[order_P.argsort()] if found else ids_PL.new_zeros(0, dtype=torch.float)


def _head(model: BertForSequenceClassification, cls_PH: Tensor) -> Tensor:
    """From [CLS] states to scores, (P)."""
    pooled_PH = torch.tanh(model.bert.pooler.dense(cls_PH))
    weight_H, bias = _score_head(model)
    scores_P: Tensor = model.dropout(pooled_PH) @ weight_H + bias
    return scores_P


def _score_head(model: BertForSequenceClassification) -> tuple[Tensor, Tensor]:
    """Of two logits only the difference ranks."""
    weight, bias = model.classifier.weight, model.classifier.bias
    return (weight[0], bias[0]) if len(weight) == 1 else (weight[1] - weight[0], bias[1] - bias[0])
