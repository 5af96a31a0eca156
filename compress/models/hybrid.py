"""Hybrid: a head over a cross-encoder's [CLS], the first stage's scores, and features of items and users.

The features side is that of Wide & Deep (Cheng et al. 2016, arXiv 1606.07792): a linear part, which begins as the sum
of what the two stages say, and a deep part, which begins as nothing and joins the groups of features by concatenation
or by attention.

P: pairs, H: width of the encoder, F: features of a pair, G: groups of them, W: width of the deep part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel
from transformers.models.bert.modeling_bert import BertPreTrainedModel

from compress.data.features import Features, Floats
from compress.data.histories import Asked, Recommend, best_items
from compress.data.interactions import IntArray, Interactions
from compress.data.texts import Texts
from compress.errors import RecipeError
from compress.methods import shapes
from compress.methods.rounding import Rounding
from compress.methods.seeding import seed_encoder
from compress.methods.slicing import copy_linear
from compress.metrics import ranking_metrics
from compress.models.cross_encoder import CrossEncoder, Head, ServedCrossEncoder, score_head
from compress.models.family import Batch, Examples, ServedGraph
from compress.models.text_examples import TextExamples
from compress.recipe.model import HybridModel

ALONE_EPOCHS = 10
"""Of the head without an encoder; the best for validation users is taken."""

ALONE_BATCH = 16

ALONE_USERS = 2_000
"""Of those, at most."""


class JointHead(nn.Module):
    """From groups of features, side by side, to a score."""

    def __init__(self, sizes: Sequence[int], width: int, join: str) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.join = join
        self.linear = nn.Linear(sum(sizes), 1)
        self.groups = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.mixed = nn.Linear(width * (1 if join == "attention" else len(sizes)), width)
        if join == "attention":  # a parameter that gets no gradient stops several processes
            self.asked = nn.Linear(width, 1, bias=False)
        self.out = nn.Linear(width, 1)

    def begin(self, linear_F: Tensor) -> None:
        """The linear part as given, the deep part as nothing: the head then says what the linear one does."""
        with torch.no_grad():
            self.linear.weight.copy_(linear_F[None])
            for parameter in (self.linear.bias, *self.out.parameters()):
                parameter.zero_()

    def forward(self, features_PF: Tensor) -> Tensor:
        """(P)."""
        parts = [
            nn.functional.gelu(group(own))
            for group, own in zip(self.groups, torch.split(features_PF, self.sizes, dim=1), strict=True)
        ]
        if self.join == "attention":
            parts_PGW = torch.stack(parts, dim=1)
            weights_PG1 = torch.softmax(self.asked(parts_PGW), dim=1)
            joined_PX = (weights_PG1 * parts_PGW).sum(dim=1)
        else:
            joined_PX = torch.cat(parts, dim=1)
        deep_P1 = self.out(nn.functional.gelu(self.mixed(joined_PX)))
        scores_P: Tensor = (self.linear(features_PF) + deep_P1).squeeze(1)
        return scores_P


class BertHybrid(BertPreTrainedModel):  # type: ignore[misc]
    """A BertModel and a head over its pooled [CLS] and features."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        facts = config.recommender
        self.bert = BertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.head = JointHead([config.hidden_size, *_groups(facts["features"])], facts["width"], facts["join"])
        self.post_init()


class Hybrid(CrossEncoder):
    """A cross-encoder whose head reads more than [CLS]; it has no state of its own."""

    def head(self, model: Any, batch: Batch) -> Head:
        features_PF = batch["features"].flatten(0, -2).to(model.dtype)
        return lambda pooled_PH: model.head(torch.cat([pooled_PH, features_PF], dim=1))

    def beside(self, model: Any, asked: Asked, row: int, items: IntArray) -> dict[str, NDArray[Any]]:
        return {"features": model.features.of(asked, row, items)}

    def build(  # type: ignore[override]
        self, section: HybridModel, catalogue_size: int, encoder: Any, features: Features
    ) -> BertHybrid:
        """Args: encoder: a trained cross-encoder, with its texts; features: of the catalogue."""
        config = encoder.config.from_dict(encoder.config.to_dict())
        config.architectures = ["BertHybrid"]
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = section.dropout
        config.recommender = {
            "family": "hybrid",
            "catalogue_size": catalogue_size,
            "negatives": section.negatives,
            "drawn": "uniform",
            "attention": encoder.config.recommender.get("attention", "both_ways"),
            "features": list(features.sizes),
            "width": section.width,
            "join": section.join,
            "frozen": section.frozen,
        }
        model: BertHybrid = shapes.empty(BertHybrid, config)
        model.bert.load_state_dict(encoder.bert.state_dict())
        _freeze(model)
        weight_H, _ = score_head(encoder)
        model.head.begin(torch.cat([weight_H.detach(), _as_first_stage(sum(features.sizes))]))
        model.texts, model.features = encoder.texts, features
        return model

    def load(self, folder: Path) -> BertHybrid:
        model: BertHybrid = shapes.load(BertHybrid, folder)
        model.texts, model.features = Texts.load(folder), Features.load(folder)
        _freeze(model)
        return model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        super().save(model, folder)
        model.features.save(folder)

    def examples(self, model: PreTrainedModel, interactions: Interactions, seed: int) -> Examples:
        return RehearsedExamples(model.config, model.texts, model.features, interactions, seed)

    def baselines(self, model: PreTrainedModel, interactions: Interactions, k: int) -> dict[str, Recommend]:
        """Also the first stage's own order, and the head without the encoder."""
        alone = head_alone(model, interactions)
        orders = {"first-stage": _opinions, "head": alone}
        found = {name: _as_recommend(score, model.features, k) for name, score in orders.items()}
        return super().baselines(model, interactions, k) | found

    def seed_student(self, student: Any, teacher: Any, layers: Sequence[int] | str, width: str) -> None:
        hidden_H = seed_encoder(student.bert, teacher.bert, layers, width)
        if hidden_H is not None:
            copy_linear(student.bert.pooler.dense, teacher.bert.pooler.dense, hidden_H, hidden_H)

    def serve(self, model: Any, top_k: int, rounding: Rounding) -> ServedGraph:
        return ServedHybrid(model, top_k, rounding)


class ServedHybrid(ServedCrossEncoder):
    """A cross-encoder's graph that reads features beside the candidates' tokens."""

    floats: ClassVar = frozenset({"features"})

    def take_head(self, model: Any) -> None:
        self.head = model.head.requires_grad_(False)
        columns = sum(model.features.sizes)
        self.axes = {**type(self).axes, "features": ("candidates", columns)}  # type: ignore[misc]  # each model's own

    def forward(self, user_U: Tensor, items_PT: Tensor, features_PF: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (self.head(torch.cat([self.pooled(user_U, items_PT), features_PF], dim=1)),)


class Rehearsed(NamedTuple):
    """An `Example` and what is known of its items besides their texts."""

    user: int
    history: IntArray
    items: IntArray
    wanted: NDArray[np.float32]
    features: Floats


class RehearsedExamples(TextExamples):
    """What a first stage found when asked about a training item it had not seen: that item among some of the others."""

    def __init__(self, config: Any, texts: Texts, features: Features, interactions: Interactions, seed: int) -> None:
        super().__init__(config, texts, interactions, seed)
        if interactions.rehearsals is None:
            raise RecipeError("a hybrid learns from rehearsals: set them in the retrieve stage that `candidates` names")
        self.features = features
        self.rehearsals = interactions.rehearsals
        self.user_of, self.place_of = self.rehearsals.users, self.rehearsals.places

    @property
    def shaped_by(self) -> dict[str, Any]:
        return {**super().shaped_by, "features": list(self.features.sizes)}

    def __getitem__(self, index: int) -> Rehearsed:  # type: ignore[override]
        user, place = int(self.user_of[index]), int(self.place_of[index])
        train, scores = self.interactions.train(user), self.rehearsals.found[index]
        random = np.random.default_rng((self.seed, self.epoch, index))
        others = np.array([item for item in scores if item != train[place]], dtype=np.int64)
        drawn = np.resize(random.permutation(others), self.negatives)
        items = np.concatenate([train[place : place + 1], drawn])
        known = self.interactions.attributes[user] if self.interactions.attributes else {}
        wanted = (np.arange(len(items)) == 0).astype(np.float32)
        return Rehearsed(user, train[:place], items, wanted, self.features.pairs(scores, train[:place], known, items))

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Also features, (B, C, F)."""
        features_BCF = torch.from_numpy(np.stack([example.features for example in examples]))
        return {**super().collate(examples), "features": features_BCF}


def head_alone(model: PreTrainedModel, interactions: Interactions) -> JointHead:
    """The same head without [CLS], trained on the same examples; its epoch is chosen by validation users."""
    facts = model.config.recommender
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = JointHead(_groups(facts["features"]), facts["width"], facts["join"])
        head.begin(_as_first_stage(sum(facts["features"])))
        return _trained(head, model, interactions)


def _trained(head: JointHead, model: PreTrainedModel, interactions: Interactions) -> JointHead:
    examples = RehearsedExamples(model.config, model.texts, model.features, interactions, seed=0)
    users = interactions.users("validation")
    users = users[:: -(-len(users) // ALONE_USERS)]
    asked, targets = interactions.asked("validation", users), interactions.targets("validation", users)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    best, kept = -1.0, {}
    for epoch in range(ALONE_EPOCHS + 1):
        quality = float(ranking_metrics(_as_recommend(head, model.features, 10)(asked), targets)["ndcg@10"].mean())
        if quality > best:
            best, kept = quality, {name: value.clone() for name, value in head.state_dict().items()}
        examples.set_epoch(epoch)
        order = np.random.default_rng(epoch).permutation(len(examples)).tolist()
        for start in range(0, len(order), ALONE_BATCH):
            features_BCF = torch.from_numpy(
                np.stack([examples[index].features for index in order[start : start + ALONE_BATCH]])
            )
            scores_BC = head(features_BCF.flatten(0, 1)).view(features_BCF.shape[:2])
            loss = nn.functional.cross_entropy(scores_BC, torch.zeros(len(scores_BC), dtype=torch.long))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    head.load_state_dict(kept)
    return head


def _opinions(features_PF: Tensor) -> Tensor:
    """The first stage's own scores, (P)."""
    return features_PF[:, 0]


def _as_recommend(score: Any, features: Features, k: int) -> Recommend:
    """Ranks by what `score` makes of features, (P, F) -> (P)."""
    catalogue_size = len(features.items_IF)

    @torch.no_grad()
    def recommend(asked: Asked) -> NDArray[np.int64]:
        scores_BI = np.full((len(asked), catalogue_size), -np.inf)
        for row, scores_I in enumerate(scores_BI):
            items = np.setdiff1d(np.arange(catalogue_size), asked.excluded[row])
            scores_I[items] = score(torch.from_numpy(features.of(asked, row, items))).numpy()
        return best_items(scores_BI, asked.excluded, k)

    return recommend


def _freeze(model: BertHybrid) -> None:
    """Leaves the encoder as it is, if the model was built so."""
    model.bert.requires_grad_(not model.config.recommender["frozen"])


def _groups(sizes: Sequence[int]) -> list[int]:
    """Of features, without the groups that have none."""
    return [size for size in sizes if size]


def _as_first_stage(count: int) -> Tensor:
    """Weights that say what the first stage does: its standardised score comes first."""
    weights_F = torch.zeros(count)
    weights_F[0] = 1.0
    return weights_F
