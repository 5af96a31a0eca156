"""Trains a smaller student on its teacher's scores and hidden states, and on the labels.

`python -m compress.distill recipe.yaml`
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.training import DistillSection, TeacherCacheSection
from compress.stage import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.models.family import Examples

CACHE = ".teacher-cache"
"""Of all students of a seed, beside their folders."""

LAPS = 3
"""How often a cache is read, at least, to be worth that epochs are fewer different ones."""


def run(section: DistillSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `model/`, a Hugging Face folder. Returns validation metrics, overlap with the teacher, training facts."""
    import numpy as np
    from transformers import set_seed

    from compress import models, processes
    from compress.data.interactions import Interactions
    from compress.evaluation import plain, recommend_all, validated
    from compress.learner import Taught
    from compress.metrics import overlap
    from compress.models.low_memory import store
    from compress.training import begin, learn, rounding_of_start

    interactions = Interactions.of(inputs)
    teachers = [models.load(inputs[name].path("model")) for name in section.teachers]
    set_seed(workspace.seed)
    family, student = begin(section, inputs, interactions)
    if section.seeding:
        family.seed_student(student, teachers[0][1], section.seeding.layers, section.seeding.width)
    cache, why = _cache(section, student, [teacher for _, teacher in teachers])
    memory = {"teacher_bytes": sum(store(teacher, section.teacher_memory) for _, teacher in teachers)}
    taught = Taught(teachers, section.combine)
    remember = partial(_remember, section, cache, inputs, workspace) if cache else None
    rounding = rounding_of_start(section, inputs)
    metrics = learn(section, family, student, section.losses, interactions, workspace, taught, remember, rounding)
    if processes.rank():
        return metrics
    first = inputs[section.teachers[0]]
    if _judged_alike(first, inputs):
        theirs_UK = validated(first.folder)
    else:
        teacher = plain(*teachers[0], interactions.judged_items)
        theirs_UK = recommend_all(teacher, interactions, "validation").astype(np.int32)
    shared = overlap(validated(workspace.folder)[:, :10], theirs_UK[:, :10])
    return {"overlap@10": round(float(shared.mean()), 6), **metrics, **memory, **({"cache": why} if why else {})}


def _judged_alike(teacher: Artifact, inputs: Mapping[str, Artifact]) -> bool:
    """Whether the teacher's lists are of the same candidates: it may have been trained before those were retrieved."""
    retrieved = [artifact.fingerprint for artifact in inputs.values() if artifact.manifest.kind == "retrieve"]
    known = teacher.manifest.ingredients.get("inputs", {}).values()
    return all(fingerprint in known for fingerprint in retrieved)


def _cache(
    section: DistillSection, student: PreTrainedModel, teachers: Sequence[PreTrainedModel]
) -> tuple[TeacherCacheSection | None, str | None]:
    """What is kept of the teachers' answers; of `auto` also why, by sizes alone: a resumed run decides alike."""
    if section.cache != "auto":
        return section.cache, None
    cache = TeacherCacheSection()
    tops = [getattr(loss, "top", None) or 0 for loss in section.losses]
    looking = [loss.kind for loss in section.losses if loss.reads_layers]
    exact = [loss.kind for loss in section.losses if loss.compares_every_score]
    times = sum(map(_in_layers, teachers)) / _in_layers(student)
    if looking:
        why = f"no: {looking[0]} reads layers, and auto keeps scores alone"
    elif student.config.recommender.get("in_batch"):
        why = "no: with in_batch an example's scores depend on the batch it is in"
    elif max(tops) > cache.top:
        why = f"no: a loss reads {max(tops)} items, and {cache.top} are kept"
    elif exact and student.config.recommender.get("negatives", math.inf) >= cache.top:  # else the catalogue's
        why = f"no: {exact[0]} compares every score, and the best {cache.top} are kept"
    elif section.epochs < LAPS * cache.variants:
        why = f"no: {section.epochs} epochs would read {cache.variants} variants less than {LAPS} times"
    elif times < 1:
        why = f"no: the teachers' layers have {times:.1f} times the student's weights: asking costs little"
    else:
        return (
            cache,
            f"yes: {section.epochs} epochs read {cache.variants} variants; the teachers have {times:.1f}x the weights",
        )
    return None, why


def _in_layers(model: PreTrainedModel) -> int:
    """Weights of its layers."""
    from compress.methods.shapes import layers

    return sum(parameter.numel() for layer in layers(model) for parameter in layer.parameters())


def _remember(
    section: DistillSection,
    cache: TeacherCacheSection,
    inputs: Mapping[str, Artifact],
    workspace: Workspace,
    examples: Examples,
    ask: Any,
) -> tuple[Examples, dict[str, Any]]:
    """Examples with what the teachers say of them: from the run's cache, and asked now if they are not in it."""
    import torch

    from compress import processes, provenance
    from compress.teacher_cache import TeacherCache, forget_earlier, key

    started = time.monotonic()
    ingredients = {
        "inputs": {name: artifact.fingerprint for name, artifact in sorted(inputs.items())},
        "teachers": [section.teachers, section.combine],
        "examples": [workspace.seed, len(examples), examples.shaped_by],
        "precision": section.precision,
        "top": cache.top,
        "layers": section.kept_layers,
        "teacher_memory": section.teacher_memory,
        "code": [provenance.sources_digest("compress.distill"), provenance.package_versions("compress.distill")],
    }
    home = workspace.folder.parent / CACHE
    folder = home / key(ingredients)
    if not processes.rank():
        forget_earlier(home, ingredients)
    cached = TeacherCache(examples, folder, min(cache.variants, section.epochs), section.kept_layers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.autocast(device, torch.bfloat16, enabled=section.precision == "bf16"):  # as if asked in training
        asked = 0 if processes.rank() else cached.fill(ask, cache.top, section.batch_size)
    processes.first_says(None)  # if it has failed instead, all end
    size = sum(path.stat().st_size for path in folder.rglob("*.npy"))
    return cached, {
        "teacher_asked": asked,
        "teacher_seconds": round(time.monotonic() - started, 2),
        "teacher_cache_bytes": size,
    }


if __name__ == "__main__":
    raise SystemExit(main("distill"))
