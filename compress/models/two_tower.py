"""Two-tower: a user's text and an item's text each become a vector, their inner product is the score.

One BertModel for both texts or one for each (Reimers & Gurevych 2019, arXiv 1908.10084), trained with the other
examples' items as negatives, corrected for how often those are drawn (Yi et al. 2019,
doi:10.1145/3298689.3346996).

B: examples or users, C: candidates of one, N: texts, L: tokens of a text, H: width, I: items, K: top k.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel

from compress import processes
from compress.data.histories import MASKED, Asked, left_padded
from compress.data.interactions import Interactions
from compress.data.pretrained import locate
from compress.data.texts import Texts, padded
from compress.errors import DataError, RecipeError
from compress.methods import shapes
from compress.methods.rounding import Rounding, Stored, quantize_rows
from compress.methods.seeding import seed_encoder
from compress.models.encoder import FullLayer, serving_layers
from compress.models.family import Batch, Examples, Score, ServedGraph, Supervision
from compress.models.quantization_aware import in_floating_point
from compress.models.text_examples import BatchScores
from compress.models.text_family import TextFamily, begin, by_length
from compress.recipe.adoption import TwoTowerCheckpoint
from compress.recipe.model import TwoTowerModel


class TwoTower(TextFamily):
    """The family; it has no state of its own.

    A model is the users' BertModel; where items have an encoder of their own it is its submodule `item_encoder`.
    """

    def build(self, section: TwoTowerModel, catalogue_size: int, texts: Texts | None = None) -> BertModel:
        assert texts is not None, "the section names them"
        said = section.model_dump(include={"pooling", "normalize"}, exclude_none=True)
        folder = locate(section.checkpoint) if section.checkpoint else None
        facts: dict[str, Any] = {
            "family": "two_tower",
            "catalogue_size": catalogue_size,
            "negatives": min(section.negatives, catalogue_size - 1),
            **section.model_dump(include={"drawn", "in_batch", "separate", "scale"}),
            **{"pooling": "mean", "normalize": True} | (_sentence_transformer(folder) if folder else {}) | said,
        }
        config, weights = begin(section, texts, "BertModel", facts)
        model = _empty(config)
        for encoder in reversed(_encoders(model)):  # the users' has the items' inside
            encoder.load_state_dict(
                {name: weights[name] for name in encoder.state_dict() if name in weights}, strict=False
            )
        model.texts = texts
        return model

    def load(self, folder: Path) -> BertModel:
        model = shapes.load(_empty, folder)
        model.texts = Texts.load(folder)
        return model

    def adopt(
        self, section: TwoTowerCheckpoint, folder: Path, item_ids: Sequence[str], texts: Texts | None = None
    ) -> BertModel:
        as_built = TwoTowerModel.model_validate({**section.model_dump(), "checkpoint": folder, "dropout": 0.1})
        return self.build(as_built, len(item_ids), texts).eval()

    def examples(self, model: BertModel, interactions: Interactions, seed: int) -> Examples:
        if model.config.recommender["in_batch"] and processes.count() > 1:
            raise RecipeError("in_batch: the items of one process's examples are not the batch's; train in one process")
        return super().examples(model, interactions, seed)

    def supervise(self, model: BertModel, batch: Batch, *, layers: bool = False) -> Supervision:
        if layers:
            raise RecipeError(
                "losses: hidden: two towers read other texts than their teacher's; use kl, mse or margin_mse"
            )
        users_BH = _vectors(model, batch["user"])
        items_NT = nn.functional.pad(batch["items"].flatten(0, 1), (1, 0), value=model.texts.layout.cls)
        with in_floating_point(model):  # the graph holds items' vectors, not what makes them
            items_BCH = _vectors(_encoders(model)[-1], items_NT).view(*batch["items"].shape[:2], -1)
        facts, device = model.config.recommender, users_BH.device
        with torch.autocast(device.type, enabled=False):  # bfloat16 has steps of .06 where scores are 10
            users_BH, items_BCH = facts["scale"] * users_BH.float(), items_BCH.float()
            if facts["in_batch"]:
                scores, labels_B = _among_all(users_BH, items_BCH, batch["item_ids"], batch["shares"])
            else:
                scores = torch.einsum("bh,bch->bc", users_BH, items_BCH)
                labels_B = torch.zeros(len(scores), dtype=torch.long, device=device)
        return Supervision(scores, labels_B, (), batch["user"] != model.config.pad_token_id, BatchScores())

    def inputs(self, model: BertModel, asked: Asked) -> dict[str, Tensor]:
        size = model.config.recommender["catalogue_size"]
        exclude_BE = left_padded(asked.excluded, max(map(len, asked.excluded)), size)
        return {"user": _user_tokens(model, asked), "exclude": torch.from_numpy(exclude_BE)}

    def plain(self, model: BertModel, top_k: int, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if not hasattr(model, "item_vectors"):  # whoever serves towers has the items' vectors
            model.item_vectors = _item_vectors(model)
        scores_BI = (_vectors(model, inputs["user"]) @ model.item_vectors.T).float()  # no half holds MASKED
        scores_BI = nn.functional.pad(model.config.recommender["scale"] * scores_BI, (0, 1), value=MASKED)
        scores_BK, items_BK = scores_BI.scatter_(1, inputs["exclude"], MASKED).topk(top_k)
        return items_BK, scores_BK

    def scorer(self, model: BertModel) -> Score:
        items_IH = _item_vectors(model)

        def score(asked: Asked) -> Tensor:
            users_BH = _vectors(model, _user_tokens(model, asked).to(model.device))
            scores_BI: Tensor = model.config.recommender["scale"] * users_BH @ items_IH.T
            for row, items in zip(scores_BI, asked.excluded, strict=True):
                row[torch.from_numpy(items.astype(np.int64))] = -torch.inf
            return scores_BI

        return score

    def seed_student(
        self, student: BertModel, teacher: PreTrainedModel, layers: Sequence[int] | str, width: str
    ) -> None:
        theirs = [teacher.bert] if hasattr(teacher, "bert") else _encoders(teacher)
        ours = _encoders(student)
        for encoder, source in zip(ours, theirs * len(ours), strict=False):
            seed_encoder(encoder, source, layers, width)

    def serve(self, model: BertModel, top_k: int, rounding: Rounding) -> ServedGraph:
        return ServedTwoTower(model, top_k, rounding)


class ServedTwoTower(ServedGraph):
    """A user's tokens in, top-k out: the items' vectors are constants of the graph, seen items are masked in it.

    With [CLS] pooling the last layer computes that position alone.
    """

    axes: ClassVar = {"user": ("batch", "user_tokens"), "exclude": ("batch", "excluded")}
    outputs = ("items", "scores")

    def __init__(self, model: BertModel, top_k: int, rounding: Rounding) -> None:
        config, facts = model.config, model.config.recommender
        size = facts["catalogue_size"]
        super().__init__(size, size, config.max_position_embeddings, top_k)
        self.token_pad = config.pad_token_id
        self.pools_cls, self.normalizes = facts["pooling"] == "cls", facts["normalize"]
        embeddings = model.embeddings
        self.table = Stored(embeddings.word_embeddings.weight, rounding.item_table)
        positions_LH = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        self.positions_LH = nn.Parameter(positions_LH.detach().clone(), requires_grad=False)
        self.layers, single = serving_layers(model)
        layer = model.encoder.layer[-1]
        self.last = single if self.pools_cls else FullLayer(layer, single.input_norm)
        self.norm = layer.output.LayerNorm
        vectors_IH = nn.functional.pad(facts["scale"] * _item_vectors(model), (0, 0, 0, 1))
        self.items = Stored(vectors_IH, rounding.item_table)  # the last row: what pads `exclude`
        bias = torch.zeros(size + 1)
        bias[size] = MASKED
        self.bias_I = nn.Parameter(bias, requires_grad=False)
        self.store_weights(rounding)

    def forward(self, user_BL: Tensor, exclude_BE: Tensor) -> tuple[Tensor, Tensor]:
        real_BL = (user_BL != self.token_pad).to(self.positions_LH.dtype)
        padding_B1L = ((1 - real_BL) * MASKED).unsqueeze(1)
        y_BLH = nn.functional.embedding(user_BL, self.table()) + self.positions_LH[: user_BL.shape[1]]
        for layer in self.layers:
            y_BLH = layer(y_BLH, padding_B1L.unsqueeze(1))
        if self.pools_cls:
            state_BH = self.last(y_BLH, y_BLH[:, 0], padding_B1L)
        else:
            states_BLH = self.norm(self.last(y_BLH, padding_B1L.unsqueeze(1)))
            state_BH = (real_BL.unsqueeze(1) @ states_BLH).squeeze(1) / real_BL.sum(dim=1, keepdim=True)
        if self.normalizes:
            state_BH = state_BH * torch.rsqrt((state_BH * state_BH).sum(dim=1, keepdim=True).clamp(min=1e-24))
        scores_BI = torch.addmm(self.bias_I, state_BH, self.items().T).scatter(1, exclude_BE, MASKED)
        scores_BK, items_BK = torch.topk(scores_BI, self.top_k)
        return items_BK, scores_BK


def _among_all(users_BH: Tensor, items_BCH: Tensor, ids_BC: Tensor, shares_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of every example's user with every example's items, (B, B * C), and where each label stands, (B).

    Less the logarithm of how often an item is in a batch: popular ones are negatives more often than others. The label
    once more, as another's item, is no negative.
    """
    scores = users_BH @ items_BCH.flatten(0, 1).T - shares_BC.clamp(min=1e-9).log().flatten()
    rows_B = torch.arange(len(scores), device=scores.device)
    labels_B = rows_B * ids_BC.shape[1]
    twice = ids_BC.flatten() == ids_BC[:, :1]
    twice[rows_B, labels_B] = False
    return scores.masked_fill(twice, MASKED), labels_B


def _empty(config: BertConfig) -> BertModel:
    """Of the architecture, weights fresh."""
    model = BertModel(config, add_pooling_layer=False)
    if config.recommender["separate"]:
        model.item_encoder = BertModel(config, add_pooling_layer=False)
    return model


def _encoders(model: BertModel) -> list[BertModel]:
    """The users', and the items' if they have one of their own; the last is the items' in any case."""
    return [model, model.item_encoder] if hasattr(model, "item_encoder") else [model]


def _sentence_transformer(folder: Path) -> dict[str, Any]:
    """What a sentence-transformers folder says of pooling; nothing if it is none."""
    if not (folder / "modules.json").exists():
        return {}
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
        pooling = json.loads((folder / kinds["Pooling"] / "config.json").read_text(encoding="utf-8"))
        known = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
        on = {key for key, value in pooling.items() if value is True and key.startswith("pooling_mode")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder}: modules.json: not a sentence-transformers model with one Pooling") from None
    unknown = kinds.keys() - {"Transformer", "Pooling", "Normalize"}
    ways = [way for way, key in known.items() if on == {key}]
    if unknown or not ways:
        raise DataError(f"{folder}: modules.json: {', '.join(sorted(unknown)) or 'another pooling'} is not supported")
    return {"pooling": ways[0], "normalize": "Normalize" in kinds}


def _user_tokens(model: BertModel, asked: Asked) -> Tensor:
    users = model.texts.users(asked, model.config.max_position_embeddings)
    return torch.from_numpy(padded(users, model.texts.layout.pad))


@torch.no_grad()
def _item_vectors(model: BertModel) -> Tensor:
    """Of the whole catalogue, (I, H); on the int8 grid if `quantize` said so, but still floats."""
    texts = model.texts
    vectors = []
    for items in np.array_split(np.arange(len(texts.items)), math.ceil(len(texts.items) / 4096)):
        vectors.append(_vectors(_encoders(model)[-1], torch.from_numpy(texts.alone(items)).to(model.device)))
    vectors_IH = torch.cat(vectors)
    if model.config.recommender.get("item_table", "none") == "none":
        return vectors_IH
    integers, scales = quantize_rows(vectors_IH)
    return integers * scales


def _vectors(encoder: BertModel, ids_NL: Tensor) -> Tensor:
    """Pooled texts, (N, H)."""
    facts = encoder.config.recommender

    def pool(rows: Tensor, real: Tensor, length: int) -> Tensor:
        states = encoder(ids_NL[rows, :length], real).last_hidden_state
        weights = real[:, :, None].to(states.dtype)
        pooled = states[:, 0] if facts["pooling"] == "cls" else (states * weights).sum(dim=1) / weights.sum(dim=1)
        return nn.functional.normalize(pooled, dim=1) if facts["normalize"] else pooled

    return by_length(ids_NL, encoder.config.pad_token_id, pool)
