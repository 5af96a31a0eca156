"""Learns which heads, neurons and layers a budget leaves, while the weights learn to do without the others."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.data.interactions import Interactions
from compress.learner import Learner, Taught
from compress.methods.costs import Costs
from compress.methods.gates import Gates, fold
from compress.methods.importance import Importance
from compress.methods.masks import masked
from compress.methods.shapes import encoders
from compress.models import attention
from compress.models.family import Family
from compress.recipe.pruning import Learned
from compress.stage import Workspace
from compress.training import drawn, train

RAMP = 0.5
"""Share of training over which the target falls from the whole model's cost to the budget."""


class GatedLearner(Learner):
    """A learner whose model runs behind gates, and which pays for being off its budget."""

    def __init__(self, gates: Gates, costs: Costs, budget: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gates = gates
        self.costs = costs
        self.depths = [len(encoder.encoder.layer) for encoder in encoders(self.model)]
        self.budget = budget
        with torch.no_grad():
            self.start = float(gates.expected_cost(costs, self.depths))

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        with masked(self.model, self.gates.drawn()):
            loss = super().forward(**batch)["loss"]
        target = self.start + min(1.0, self.progress / RAMP) * (self.budget - self.start)
        off = (self.gates.expected_cost(self.costs, self.depths) - target) / self.start
        return {"loss": loss + self.gates.penalty(off)}


def learn_gates(
    section: Learned,
    family: Family,
    model: PreTrainedModel,
    costs: Costs,
    budget: float,
    interactions: Interactions,
    workspace: Workspace,
    *,
    whole_layers: bool,
) -> tuple[PreTrainedModel, Importance, dict[str, Any]]:
    """A copy of the model that has learned behind gates, how open these are, and facts.

    The whole model teaches; a killed run goes on from its last checkpoint.

    Args:
        budget: in the unit of `costs`.

    """
    training = section.training()
    learned = copy.deepcopy(model)
    gates = Gates(learned, section.gate_learning_rate / training.learning_rate, whole_layers=whole_layers)
    taught = Taught([(family, model)])
    learner = GatedLearner(gates, costs, budget, family, learned, training.losses, interactions.catalogue_size, taught)
    examples = drawn(training, family, learned, interactions, workspace.seed)
    with attention.suited([learned, model], training.precision):
        facts = train(learner, examples, training, workspace, dict)
    learned.cpu()
    gates.cpu()
    with torch.no_grad():
        facts["expected_cost"] = round(float(gates.expected_cost(costs, learner.depths)), 4)
    settled = gates.settled()
    facts["partly_open_layers"] = int(((settled.layers_N > 0) & (settled.layers_N < 1)).sum())
    fold(learned, settled)
    return learned.eval(), gates.importance(costs), facts
