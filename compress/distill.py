"""Trains a smaller student on its teacher's scores and hidden states, and on the labels.

`python -m compress.distill recipe.yaml`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.training import DistillSection
from compress.stage import Workspace


def run(section: DistillSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `model/`, a Hugging Face folder. Returns validation metrics, overlap with the teacher, training facts."""
    from transformers import set_seed

    from compress import models, processes
    from compress.data.interactions import Interactions
    from compress.evaluation import validated
    from compress.learner import Taught
    from compress.metrics import overlap
    from compress.training import begin, learn

    interactions = Interactions.of(inputs)
    teachers = [models.load(inputs[name].path("model")) for name in section.teachers]
    set_seed(workspace.seed)
    family, student = begin(section, inputs, interactions)
    if section.seeding:
        family.seed_student(student, teachers[0][1], section.seeding.layers, section.seeding.width)
    taught = Taught(teachers, section.combine)
    metrics = learn(section, family, student, section.losses, interactions, workspace, taught)
    if processes.rank():
        return metrics
    ours, theirs = (validated(folder)[:, :10] for folder in (workspace.folder, inputs[section.teachers[0]].folder))
    return {"overlap@10": round(float(overlap(ours, theirs).mean()), 6), **metrics}


if __name__ == "__main__":
    raise SystemExit(main("distill"))
