"""What training minimises: the weighted sum of a recipe's losses, of a model and the teachers beside it.

N: labelled positions, I: items, K: items of a position, L: positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from compress import processes, teacher_cache
from compress.errors import RecipeError
from compress.methods import losses, rankings, schedules, states
from compress.models.family import Batch, Family, Supervision
from compress.recipe.losses import (
    BCE,
    GBCE,
    KL,
    MSE,
    Attention,
    ByLayer,
    Hidden,
    LambdaLoss,
    Loss,
    MarginMSE,
    RankNet,
    Relations,
    RelaxedRanking,
    SampledSoftmax,
    Softmax,
    Stack,
)


@dataclass(frozen=True)
class Step:
    """What a loss may look at."""

    student: Supervision
    teacher: Supervision | None
    projections: nn.ModuleDict
    """Student layer -> a learned map to the teacher's width."""
    catalogue_size: int
    progress: float = 0.0
    """Share of training that is over."""

    def taught(self) -> Supervision:
        """What the teacher says. Raises ValueError if there is none."""
        if self.teacher is None:
            raise ValueError("this loss needs a teacher")
        return self.teacher


def _sampled(loss: SampledSoftmax | GBCE, step: Step) -> tuple[Tensor, Tensor]:
    """Scores of the labels, (N,), and of negatives drawn for this batch, (N, K)."""
    labels = step.student.labels_N
    drawn = torch.randint(step.catalogue_size, (loss.negatives,), device=labels.device)
    return step.student.label_scores(), losses.collisions_masked(step.student.scores(drawn), drawn, labels)


def _softmax(loss: Softmax, step: Step) -> Tensor:
    return losses.softmax(step.student.scores(), step.student.labels_N, loss.label_smoothing)


def _sampled_softmax(loss: SampledSoftmax, step: Step) -> Tensor:
    return losses.sampled_softmax(*_sampled(loss, step))


def _gbce(loss: GBCE, step: Step) -> Tensor:
    return losses.gbce(*_sampled(loss, step), step.catalogue_size, loss.calibration)


def _bce(loss: BCE, step: Step) -> Tensor:
    return losses.bce(step.student.scores(), step.student.wanted())


def _kl(loss: KL, step: Step) -> Tensor:
    temperature, best = schedules.now(loss, "temperature", step.progress), step.taught().best
    if loss.top:
        return losses.kl(*_listed(step, loss.top, loss.others), temperature)
    if best is not None:
        return losses.kl_to_best(step.student.scores(), *best, temperature)
    return losses.kl(step.student.scores(), step.taught().scores(), temperature)


def _listed(step: Step, top: int, others: int) -> tuple[Tensor, Tensor]:
    """The student's scores and the teacher's of its best items, best first, and of others: (N, K) each."""
    student_NI, teacher_NI = step.student.scores(), step.taught().scores()
    items_NK = rankings.best_and_drawn(teacher_NI, top, others)
    return student_NI.gather(1, items_NK), teacher_NI.gather(1, items_NK)


def _relaxed_ranking(loss: RelaxedRanking, step: Step) -> Tensor:
    student_NK, _ = _listed(step, loss.top, loss.others)
    return rankings.relaxed_ranking(student_NK[:, : loss.top], student_NK[:, loss.top :])


def _ranknet(loss: RankNet, step: Step) -> Tensor:
    return rankings.ranknet(*_listed(step, loss.top, loss.others))


def _lambda_loss(loss: LambdaLoss, step: Step) -> Tensor:
    return rankings.lambda_loss(*_listed(step, loss.top, loss.others))


def _mse(loss: MSE, step: Step) -> Tensor:
    return losses.mse(step.student.scores(), step.taught().scores())


def _margin_mse(loss: MarginMSE, step: Step) -> Tensor:
    return losses.margin_mse(step.student.scores(), step.taught().scores(), step.student.labels_N, scaled=loss.scaled)


def _hidden(loss: Hidden, step: Step) -> Tensor:
    terms = [
        states.hidden(
            step.projections[str(ours)](step.student.hidden_states_BLH[ours]),
            step.taught().hidden_states_BLH[theirs],
            step.student.real_BL,
        )
        for ours, theirs in loss.layers.items()
    ]
    return torch.stack(terms).mean()


def _attention(loss: Attention, step: Step) -> Tensor:
    return _of_positions(step, loss.layers, [("query", "key")], None, states.attention)


def _relations(loss: Relations, step: Step) -> Tensor:
    related = [(rows, columns) for rows, _, columns in (relation.partition("-") for relation in loss.of)]
    return _of_positions(step, loss.layers, related, loss.heads, states.relations)


PROJECTED = {"query": 0, "key": 1, "value": 2}


def _of_positions(
    step: Step,
    layers: Mapping[int, int],
    products: Sequence[tuple[str, str]],
    heads: int | None,
    compare: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Mean of what `compare` says of products of positions in two layers. Args: heads: None for the models' own."""
    student, teacher = step.student, step.taught()
    visible_BLL = states.visible(student.real_BL, causal=student.causal)

    def product(who: Supervision, layer: int, rows: str, columns: str) -> Tensor:
        projected = who.projected[layer - 1]
        return states.affinities(projected[PROJECTED[rows]], projected[PROJECTED[columns]], heads or who.heads)

    terms = [
        compare(product(student, ours, *named), product(teacher, theirs, *named), visible_BLL)
        for ours, theirs in layers.items()
        for named in products
    ]
    return torch.stack(terms).mean()


TERMS: dict[type[Loss], Callable[[Any, Step], Tensor]] = {
    Softmax: _softmax,
    SampledSoftmax: _sampled_softmax,
    GBCE: _gbce,
    BCE: _bce,
    KL: _kl,
    RelaxedRanking: _relaxed_ranking,
    RankNet: _ranknet,
    LambdaLoss: _lambda_loss,
    MSE: _mse,
    MarginMSE: _margin_mse,
    Hidden: _hidden,
    Attention: _attention,
    Relations: _relations,
}
"""A loss is a function in `methods`, a section and a place in its union in `recipe.losses`, and here a function that
hands the one what the other asks for, with its line."""


@dataclass(frozen=True)
class Taught:
    """By whom: models of the student's family, or of another that reads the same batches."""

    teachers: Sequence[tuple[Family, PreTrainedModel]]
    combine: str = "mean"
    """Of several: the mean of their scores, or weighted `by_loss`: at each position the more, the better it knows the
    label."""


class Learner(nn.Module):
    """A model and what it minimises; frozen teachers stand beside it and are in no checkpoint.

    Args:
        running: the model runs inside this, the teachers do not.

    """

    accepts_loss_kwargs = False  # the Trainer takes **batch for a loss that scales itself, and would not divide it

    mean_loss: Tensor
    batches: Tensor

    def __init__(
        self,
        family: Family,
        model: PreTrainedModel,
        terms: Sequence[Loss],
        catalogue_size: int,
        taught: Taught | None = None,
        running: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.family = family
        self.running = running
        self.runs_inside = running is not nullcontext
        self.model = model
        self.terms = terms
        self.catalogue_size = catalogue_size
        self.progress = 0.0
        teachers = taught.teachers if taught else []
        self._teachers = [(by, beside.eval().requires_grad_(False)) for by, beside in teachers]  # in a list: no module
        self.combine = taught.combine if taught else "mean"
        self.reads_layers = any(term.reads_layers for term in terms)
        self.projections = nn.ModuleDict()
        for _, teacher in teachers:
            _check_layers(terms, _stack(model), _stack(teacher))
        if teachers:
            ours, theirs = model.config.hidden_size, teachers[0][1].config.hidden_size
            layers = {layer for term in terms if isinstance(term, Hidden) for layer in term.layers}
            self.projections.update({str(layer): nn.Linear(ours, theirs) for layer in sorted(layers)})
        self.register_buffer("mean_loss", torch.zeros(()))  # in checkpoints: the Trainer's starts anew in a resumed run
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """The weighted sum of the losses on one batch, `{"loss": scalar}`."""
        with self.running():
            student = self.family.supervise(self.model, batch, layers=self.reads_layers)
        taught = teacher_cache.remembered(batch, student) if teacher_cache.ITEMS in batch else self.ask(batch)
        step = Step(student, taught, self.projections, self.catalogue_size, self.progress)
        shares = _shares(student)
        # A weight of 0 stays in the sum: parameters that get no gradient at all would stop several processes.
        terms = [
            schedules.now(term, "weight", self.progress) * TERMS[type(term)](term, step) * shares[term.reads_layers]
            for term in self.terms
        ]
        loss = torch.stack(terms).sum()
        if self.training:
            self.batches += 1
            self.mean_loss += (loss.detach() - self.mean_loss) / self.batches
        return {"loss": loss}

    @torch.no_grad()
    def ask(self, batch: Batch) -> Supervision | None:
        """What the teachers say of a batch, as one."""
        device = torch.device("cuda") if torch.cuda.is_available() else self.model.device  # asked before training, too
        batch = {name: value.to(device) for name, value in batch.items()}
        found = [by.supervise(beside.to(device), batch, layers=self.reads_layers) for by, beside in self._teachers]
        return found[0] if len(found) == 1 else together(found, self.combine) if found else None

    def agree_on_mean_loss(self) -> None:
        """Makes it the mean over all processes; each has counted its own share until now."""
        self.mean_loss.copy_(processes.total(self.mean_loss) / processes.count())


def together(teachers: Sequence[Supervision], combine: str) -> Supervision:
    """What several teachers say as one: scores averaged, and nothing of their layers.

    Weighted by each one's own loss per example: You et al. 2017 average (Learning from multiple teacher networks); the
    weights are a softmax of what each gives the label, as in Yuan et al. 2021's (arXiv 2012.06048) confidence.
    """
    weights_TN = torch.full((len(teachers), len(teachers[0].labels_N)), 1 / len(teachers))
    if combine == "by_loss":
        lost = [functional.cross_entropy(who.scores(), who.labels_N, reduction="none") for who in teachers]
        weights_TN = (-torch.stack(lost)).softmax(dim=0)
    return Supervision(
        states_NH=teachers[0].states_NH,
        labels_N=teachers[0].labels_N,
        hidden_states_BLH=(),
        real_BL=teachers[0].real_BL,
        scorer=_Together(teachers, weights_TN.to(teachers[0].labels_N.device)),
        wanted_NK=teachers[0].wanted_NK,
    )


class _Together:
    """A `Scorer` over what several teachers see in one batch."""

    def __init__(self, teachers: Sequence[Supervision], weights_TN: Tensor) -> None:
        self.teachers = teachers
        self.weights_TN = weights_TN

    def __call__(self, states_NH: Tensor, items_K: Tensor | None) -> Tensor:
        pairs = zip(self.weights_TN, self.teachers, strict=True)
        return torch.stack([weight_N[:, None] * who.scores(items_K) for weight_N, who in pairs]).sum(dim=0)

    def pairs(self, states_NH: Tensor, items_N: Tensor) -> Tensor:
        pairs = zip(self.weights_TN, self.teachers, strict=True)
        return torch.stack([weight_N * who.scorer.pairs(who.states_NH, items_N) for weight_N, who in pairs]).sum(dim=0)


def _shares(student: Supervision) -> tuple[Tensor | float, Tensor | float]:
    """What this process's mean over labels, and over real positions, weighs beside the other processes'.

    Their gradients are averaged, and the mean of means is no mean over the batch: one has more labels than another.
    """
    if processes.count() == 1:
        return 1.0, 1.0
    counts = torch.stack([torch.ones_like(student.labels_N).sum(), student.real_BL.sum()])
    of_labels, of_positions = processes.count() * counts / processes.total(counts)
    return of_labels, of_positions


def _check_layers(terms: Sequence[Loss], student: Stack, teacher: Stack) -> None:
    """A recipe knows the layers of models it builds; of one that was adopted only its folder does."""
    for term in terms:
        why = term.misfit(student, teacher) if isinstance(term, ByLayer) else None
        if why:
            raise RecipeError(f"losses: {why}")


def _stack(model: PreTrainedModel) -> Stack:
    config = model.config
    pruned = hasattr(config, "pruned")
    return Stack(config.num_hidden_layers, config.hidden_size, config.num_attention_heads, pruned)
