"""Measures every exported model: quality on validation and test users, latency beside the teacher in eager PyTorch.

`python -m benchmarks.measure recipe.yaml`

What it leaves is raw, for `report` to pool and judge: recommended items per user, and every latency sample.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.artifact import Artifact, write_json
from compress.command import main
from compress.errors import ArtifactError
from compress.provenance import ROOT
from compress.recipe.judging import MeasureSection
from compress.stage import Workspace
from deploy.clock import Call, interleave

if TYPE_CHECKING:  # torch is loaded when there is work, not to find out that there is none
    from compress.data.histories import Histories
    from compress.data.interactions import Interactions, Split
    from compress.evaluation import Recommend
    from deploy.recommender import Recommender

SPLITS: tuple[Split, ...] = ("validation", "test")

TIMED_INPUTS = 64
"""Different real requests that timings rotate through."""


@dataclass(frozen=True)
class Variant:
    """A model in the runtime that is measured, and what is known of it."""

    facts: dict[str, Any]
    load: Callable[[int], Recommender]
    """On a number of threads."""
    recommender: Recommender

    def recommend(self, histories: Histories, excluded: Histories) -> NDArray[np.int64]:
        """As `evaluation` calls it."""
        return self.recommender.rank(histories, excluded)[0][:, :10]


def run(section: MeasureSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes measure.json, quality.npz and latency.npz. Returns p50 and validation NDCG@10 of the variants, by name."""
    from benchmarks import environment
    from compress.data.interactions import Interactions
    from compress.metrics import ranking_metrics
    from deploy.runtimes.peak import peak_gflops

    # Before anything else is loaded: the waiting threads of other runtimes would share the processor with it.
    peaks = {str(count): peak_gflops(count) for count in thread_counts(section)}
    interactions = Interactions.load(inputs["data"].folder)
    variants = _variants(section, inputs)
    quality, markov = _recommendations(variants, interactions)
    _save(workspace.folder / "quality.npz", quality | {"item_popularity": interactions.popularity()})
    latency, timed = _latencies(section, variants, interactions)
    _save(workspace.folder / "latency.npz", latency)
    rates = sustained_rates(section, variants, interactions)
    data = inputs["data"].metrics
    write_json(
        workspace.folder / "measure.json",
        {
            "seed": workspace.seed,
            "environment": {**environment.describe(section.threads), "peak_gflops": peaks},
            "data": {key: data[key] for key in ("users", "items", "interactions", "split", "judged_on")},
            "roles": {
                "teacher": section.teacher,
                "reference": eager_name(section.teacher),
                "control": section.control,
                "candidates": list(section.candidates),
                "min_validation_ratio": section.min_validation_ratio,
            },
            "baselines": {"popularity": {}, "markov": markov},
            "variants": [
                variant.facts | timed[name] | {"sizing": rates.get(name, [])} for name, variant in variants.items()
            ],
        },
    )
    targets = interactions.targets("validation")
    return {
        name: {
            "validation_ndcg@10": round(
                float(ranking_metrics(quality[f"{name}/validation"], targets)["ndcg@10"].mean()), 6
            ),
            "p50_ms": round(float(np.median(latency[f"{name}/model/{section.batch_sizes[0]}"])), 6),
        }
        for name in variants
    }


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)


def eager_name(stage: str) -> str:
    """The variant that runs a stage's model in eager PyTorch."""
    return f"{stage}-eager"


def _variants(section: MeasureSection, inputs: Mapping[str, Artifact]) -> dict[str, Variant]:
    """The teacher as people run it, then every exported bundle."""
    from compress import models
    from deploy import bundle
    from deploy.flops import flops_by_length
    from deploy.recommender import Recommender
    from deploy.runtimes.torch import TorchEager

    export = inputs[section.export]
    checkpoint = inputs[section.teacher].path("model")
    family, model = models.load(checkpoint)
    served: dict[str, Variant] = {}
    for name, exported in export.metrics.items():
        folder = export.path(name)
        description = bundle.read(folder)
        facts = {
            "name": name,
            "stage": name,
            "runtime": "onnxruntime-cpu",
            "precision": description.precision,
            "size_bytes": (folder / description.targets["onnxruntime-cpu"]).stat().st_size,
            "bundle": str(folder),
            "loaded_from": str(folder),
            **{key: exported[key] for key in ("kind", "method", "parameters", "flops")},
        }
        load = partial(_load_bundle, folder)
        served[name] = Variant(facts, load, load(section.threads))
    teacher = served[section.teacher]
    description = teacher.recommender.description

    def load_eager(threads: int) -> Recommender:
        return Recommender.load(teacher.facts["bundle"], runtime=TorchEager(family, model, description.top_k, threads))

    eager = load_eager(section.threads)
    facts = teacher.facts | {
        "name": eager_name(section.teacher),
        "runtime": "torch-eager",
        "method": "all logits",
        "size_bytes": (checkpoint / "model.safetensors").stat().st_size,
        "bundle": None,
        "loaded_from": str(checkpoint),
        "flops": flops_by_length(eager.runtime, description),
    }
    return {facts["name"]: Variant(facts, load_eager, eager), **served}


def _load_bundle(folder: Path, threads: int) -> Recommender:
    from deploy.recommender import Recommender

    return Recommender.load(folder, threads=threads)


def _recommendations(
    variants: Mapping[str, Variant], interactions: Interactions
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Top 10 of every user, variant, baseline and split, with the targets; and the Markov chain's parameters."""
    from compress.baselines import popularity, tune_markov
    from compress.evaluation import recommend_all

    parameters, markov = tune_markov(interactions)
    # One request at a time where integers make an answer depend on its batch mates.
    rows: list[tuple[str, Recommend, int]] = [
        (name, variant.recommend, 1 if variant.facts["precision"] == "int8" else 64)
        for name, variant in variants.items()
    ]
    rows += [("popularity", popularity(interactions), 512), ("markov", markov, 512)]
    found: dict[str, NDArray[Any]] = {}
    for split in SPLITS:
        found[f"targets/{split}"] = interactions.targets(split)
        for name, recommend, batch_size in rows:
            found[f"{name}/{split}"] = recommend_all(recommend, interactions, split, batch_size).astype(np.int32)
    lengths = [len(interactions.history("test", user)) for user in interactions.users("test")]
    found["history_length/test"] = np.array(lengths)
    return found, parameters.as_dict()


def _latencies(
    section: MeasureSection, variants: Mapping[str, Variant], interactions: Interactions
) -> tuple[dict[str, NDArray[np.float64]], dict[str, dict[str, Any]]]:
    """Samples by variant, scope and batch size, all interleaved; and what else time and memory say of each variant.

    Every variant runs on one thread and on all of them, and each batch size keeps the faster: a small model may lose
    more to handing work over than it gains, and the baseline gets the same choice.
    """
    samples: dict[str, NDArray[np.float64]] = {}
    facts: dict[str, dict[str, Any]] = {name: {"flops": {}, "lengths": {}, "threads": {}} for name in variants}
    loaded = {(name, count): variants[name].load(count) for name in variants for count in thread_counts(section)}
    for batch in section.batch_sizes:
        histories = _requests(interactions, batch)
        calls: dict[str, Sequence[Call]] = {}
        for (name, count), recommender in loaded.items():
            calls[f"{name}/model/{count}"] = _model_calls(recommender, histories)
            calls[f"{name}/request/{count}"] = _request_calls(recommender, histories)
        taken = interleave(calls, turns=section.rounds, seconds=section.seconds, label=f"latency, batch {batch}")
        for name, variant in variants.items():
            medians = {count: np.median(taken[f"{name}/model/{count}"]) for count in thread_counts(section)}
            fastest = min(medians, key=lambda count: medians[count])
            for scope in ("model", "request"):
                samples[f"{name}/{scope}/{batch}"] = taken[f"{name}/{scope}/{fastest}"]
            length = float(np.mean([loaded[name, 1].arrays(chunk)[0].shape[1] for chunk in histories]))
            constant, linear, square = variant.facts["flops"]
            facts[name]["threads"][str(batch)] = fastest
            facts[name]["lengths"][str(batch)] = round(length, 2)
            facts[name]["flops"][str(batch)] = round(batch * (constant + linear * length + square * length**2))
    for name, variant in variants.items():
        facts[name] |= cold_start(variant, facts[name]["threads"][str(section.batch_sizes[0])])
    return samples, facts


def thread_counts(section: MeasureSection) -> tuple[int, ...]:
    """One, and as many as the recipe allows."""
    return tuple(sorted({1, section.threads}))


def _requests(interactions: Interactions, batch: int) -> list[list[NDArray[Any]]]:
    """Real test histories of real lengths, a batch for each call; the same for every variant."""
    random = np.random.default_rng(0)
    users = random.choice(interactions.users("test"), size=(TIMED_INPUTS, batch))
    return [[interactions.history("test", user) for user in row] for row in users.tolist()]


def _model_calls(recommender: Recommender, requests: Sequence[Histories]) -> list[Call]:
    """The runtime alone: arrays in, arrays out."""
    return [partial(recommender.runtime, *recommender.arrays(histories)) for histories in requests]


def _request_calls(recommender: Recommender, requests: Sequence[Histories]) -> list[Call]:
    """From raw item ids to ranked raw item ids."""
    ids = recommender.item_ids
    raw = [[[ids[item] for item in history] for history in histories] for histories in requests]
    return [partial(recommender.top_k_batch, histories) for histories in raw]


def sustained_rates(
    section: MeasureSection, variants: Mapping[str, Variant], interactions: Interactions
) -> dict[str, list[dict[str, Any]]]:
    """Requests a second of the teacher as people run it and of each candidate, if the recipe asks for it."""
    from tqdm import tqdm

    from benchmarks.sizing import sustained

    sizing = section.sizing
    if sizing is None:
        return {}
    histories = _requests(interactions, 1)
    names = (eager_name(section.teacher), *section.candidates)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    cells = list(product(names, sizing.threads, sizing.concurrency))
    for name, threads, concurrency in tqdm(cells, desc="sizing", leave=False, disable=None):
        workers = [_request_calls(variants[name].load(threads), histories) for _ in range(concurrency)]
        for row in sustained(workers, sizing.limits_ms, sizing.seconds):
            found[name].append({"threads": threads, "concurrency": concurrency, **row})
    return found


def cold_start(variant: Variant, threads: int) -> dict[str, float]:
    """Load and first-request time and peak memory of a variant in a process of its own."""
    from benchmarks import cold_start as program

    folder = Path(variant.facts["loaded_from"]).resolve()
    length = min(20, variant.recommender.description.max_length)
    line = [sys.executable, "-m", program.__name__, str(folder), str(threads), str(length)]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ArtifactError(f"{folder}: cannot be loaded in a process of its own: {said}")
    facts: dict[str, float] = json.loads(ended.stdout)
    return facts


if __name__ == "__main__":
    raise SystemExit(main("measure"))
