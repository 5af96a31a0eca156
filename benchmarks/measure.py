"""Measures every exported model: quality on validation and test users, latency beside the teacher in eager PyTorch.

`python -m benchmarks.measure recipe.yaml`

What it leaves is raw, for `report` to pool and judge: recommended items per user, and every latency sample.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.foretold import foretold
from benchmarks.variants import Variant, eager_name, variants_of
from benchmarks.workload import CALLS, flops, requests, shape
from compress.artifact import Artifact, write_atomically, write_json
from compress.command import main
from compress.data.histories import MASKED
from compress.data.interactions import JUDGED
from compress.errors import RecipeError
from compress.recipe.judging import MeasureSection
from compress.stage import Workspace
from deploy.clock import Call, interleave

if TYPE_CHECKING:  # torch is loaded when there is work, not to find out that there is none
    from compress.data.histories import Recommend
    from compress.data.interactions import Interactions, Split

SPLITS: tuple[Split, ...] = ("validation", "test")


def run(section: MeasureSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes measure.json, quality.npz and latency.npz. Returns p50 and validation NDCG@10 of the variants, by name."""
    from benchmarks import environment
    from benchmarks.peers.environment import check_environment
    from compress.data.interactions import Interactions
    from compress.metrics import ranking_metrics
    from deploy.runtimes.peak import peak_gflops

    # Before anything else is loaded: the waiting threads of other runtimes would share the processor with it.
    if section.peers:
        check_environment()
    peaks = {str(count): peak_gflops(count) for count in thread_counts(section)}
    interactions = Interactions.of(inputs)
    variants = variants_of(section, inputs, workspace.resume)
    longest = interactions.longest_list("test")
    if interactions.labels and listed(variants) < longest:
        raise RecipeError(
            f"stages.{section.export}.top_k: {listed(variants)}; users were asked about up to {longest} items, and all "
            "labels are predicted"
        )
    lists = workspace.resume / "lists"
    quality, baselines = _recommendations(variants, interactions, inputs[section.teacher].path("model"), lists)
    _save(workspace.folder / "quality.npz", quality | {"item_popularity": interactions.popularity()})
    latency, timed = _latencies(section, variants, interactions)
    _save(workspace.folder / "latency.npz", latency)
    told = foretold(inputs[section.profile], variants) if section.profile else {}
    rates = sustained_rates(section, variants, interactions)
    data = inputs["data"].metrics
    write_json(
        workspace.folder / "measure.json",
        {
            "seed": workspace.seed,
            "environment": {**environment.describe(section.threads), "peak_gflops": peaks},
            "data": {key: data[key] for key in ("users", "items", "interactions", "split", "judged_users")}
            | {"judged_on": _judged_on(inputs)},
            "roles": {
                "teacher": section.teacher,
                "reference": eager_name(section.teacher),
                "controls": list(section.controls),
                "candidates": list(section.candidates),
                "peers": list(section.peers),
                "min_validation_ratio": section.min_validation_ratio,
            },
            "whole_lists": listed(variants) >= longest,
            "baselines": baselines,
            "variants": [
                variant.facts
                | timed[name]
                | {"sizing": rates.get(name, []), "prediction": _prediction(variant, interactions)}
                | {"foretold": told.get(name, []), "invariance": _invariance(variant, interactions)}
                for name, variant in variants.items()
            ],
        },
    )
    return {
        name: {
            "validation_ndcg@10": round(
                float(
                    np.nanmean(ranking_metrics(quality[f"{name}/validation"], quality["targets/validation"])["ndcg@10"])
                ),
                6,
            ),
            "p50_ms": round(float(np.median(latency[f"{name}/model/{section.batch_sizes[0]}"])), 6),
        }
        for name in variants
        if f"{name}/validation" in quality
    }


def _judged_on(inputs: Mapping[str, Artifact]) -> str:
    """What quality is measured against, in words."""
    for name, source in inputs.items():
        if source.manifest.kind == "retrieve":
            count, recall = source.metrics["candidates"], source.metrics["test"]["recall"]
            return f"{count} candidates that {name} found, with the item in question for {recall:.1%} of the users"
    return str(inputs["data"].metrics["judged_on"])


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _recommendations(
    variants: Mapping[str, Variant], interactions: Interactions, checkpoint: Path, lists: Path
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Best items of every user, variant, baseline and split, with the targets; and what is known of the baselines.

    Args:
        checkpoint: the teacher's model.
        lists: where those that are made are kept from a kill: they take minutes each over texts.

    """
    from compress import models
    from compress.baselines import popularity, tune_markov
    from compress.evaluation import recommend_all

    count = listed(variants)
    parameters, markov = tune_markov(interactions, count)
    family, model = models.load(checkpoint)
    # One request at a time where integers make an answer depend on its batch mates.
    rows: list[tuple[str, Recommend, int]] = [
        (name, variant.recommend, 1 if variant.facts["precision"] == "int8" else 64)
        for name, variant in variants.items()
    ]
    baselines = {"popularity": popularity(interactions, count), "markov": markov}
    baselines |= family.baselines(model, interactions, count)
    rows += [(name, recommend, 512) for name, recommend in baselines.items()]
    found: dict[str, NDArray[Any]] = {}
    for split in SPLITS:
        found[f"targets/{split}"] = interactions.targets(split)
        for name, recommend, batch_size in rows:
            if split == "validation" and name in variants and variants[name].facts["bundle"] is None:
                continue  # nothing is chosen by it, and it may take minutes
            make = partial(recommend_all, recommend, interactions, split, batch_size)
            found[f"{name}/{split}"] = kept(lists / f"{name}-{split}.npy", make)
    found["history_length/test"] = interactions.history_lengths("test", interactions.users("test"))
    return found, {name: parameters.as_dict() if name == "markov" else {} for name in baselines}


def kept(path: Path, make: Callable[[], NDArray[np.integer[Any]]]) -> NDArray[np.int32]:
    """What `make` returns, or returned before a run was killed."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.save(content, make().astype(np.int32), allow_pickle=False)
        write_atomically(path, content.getvalue())
    found: NDArray[np.int32] = np.load(path, allow_pickle=False)
    return found


def listed(variants: Mapping[str, Variant]) -> int:
    """Items of a user that quality is judged on: as many as all graphs answer with."""
    return min(JUDGED, *(variant.recommender.description.top_k for variant in variants.values()))


def _prediction(variant: Variant, interactions: Interactions) -> dict[str, Any] | None:
    """How well a variant predicts the labels of test users; None where there are none."""
    from compress.metrics import prediction_metrics

    if interactions.labels is None or interactions.candidates is None:
        return None
    scores, wanted = [], []
    for user in interactions.users("test"):
        items_1K, scores_1K = variant.recommender.rank(interactions.asked("test", np.array([user])))
        answered_K = scores_1K[0] > MASKED / 2  # what fills a row up is no answer
        found = dict(zip(items_1K[0, answered_K].tolist(), scores_1K[0, answered_K].tolist(), strict=True))
        scores += [found[item] for item in interactions.candidates["test"][user].tolist()]
        wanted += interactions.labels.judged["test"][user].tolist()
    return prediction_metrics(np.array(scores), np.array(wanted))


def _invariance(variant: Variant, interactions: Interactions) -> dict[str, Any] | None:
    """Whether padding and batch mates change the answers of a bundle of ours in int8; None of others."""
    from benchmarks.invariance import invariance

    is_ours = variant.facts["precision"] == "int8" and variant.facts["bundle"] is not None
    return invariance(variant.recommender, interactions) if is_ours else None


def _latencies(
    section: MeasureSection, variants: Mapping[str, Variant], interactions: Interactions
) -> tuple[dict[str, NDArray[np.float64]], dict[str, dict[str, Any]]]:
    """Samples by variant, scope and batch size, all interleaved; and what else time and memory say of each variant.

    Every variant runs on one thread and on all of them, and each batch size keeps the faster: a small model may lose
    more to handing work over than it gains, and the baseline gets the same choice.
    """
    samples: dict[str, NDArray[np.float64]] = {}
    facts: dict[str, dict[str, Any]] = {
        name: {key: {} for key in ("flops", "lengths", "padding", "threads")} for name in variants
    }
    loaded = {(name, count): variants[name].load(count) for name in variants for count in thread_counts(section)}
    for batch in section.batch_sizes:
        asked = requests(interactions, batch)
        calls: dict[str, Sequence[Call]] = {}
        for (name, count), recommender in loaded.items():
            for scope in variants[name].scopes:
                calls[f"{name}/{scope}/{count}"] = CALLS[scope](recommender, asked)
        taken = interleave(calls, turns=section.rounds, seconds=section.seconds, label=f"latency, batch {batch}")
        for name, variant in variants.items():
            first = variant.scopes[0]
            medians = {count: np.median(taken[f"{name}/{first}/{count}"]) for count in thread_counts(section)}
            fastest = min(medians, key=lambda count: medians[count])
            for scope in variant.scopes:
                samples[f"{name}/{scope}/{batch}"] = taken[f"{name}/{scope}/{fastest}"]
            facts[name]["threads"][str(batch)] = fastest
            facts[name]["flops"][str(batch)] = flops(variant.facts["flops"], loaded[name, 1], asked)
            length, padding = shape(loaded[name, 1], asked)
            facts[name]["lengths"][str(batch)], facts[name]["padding"][str(batch)] = length, padding
    for name, variant in variants.items():
        facts[name] |= variant.start(facts[name]["threads"][str(section.batch_sizes[0])])
    return samples, facts


def thread_counts(section: MeasureSection) -> tuple[int, ...]:
    """One, and as many as the recipe allows."""
    return tuple(sorted({1, section.threads}))


def sustained_rates(
    section: MeasureSection, variants: Mapping[str, Variant], interactions: Interactions
) -> dict[str, list[dict[str, Any]]]:
    """Requests a second of the teacher as people run it and of each candidate, if the recipe asks for it."""
    from tqdm import tqdm

    from benchmarks.sizing import sustained

    sizing = section.sizing
    if sizing is None:
        return {}
    asked = requests(interactions, 1)
    names = (eager_name(section.teacher), *section.candidates)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    cells = list(product(names, sizing.threads, sizing.concurrency))
    for name, threads, concurrency in tqdm(cells, desc="sizing", leave=False, disable=None):
        workers = [CALLS["request"](variants[name].load(threads), asked) for _ in range(concurrency)]
        for row in sustained(workers, sizing.limits_ms, sizing.seconds):
            found[name].append({"threads": threads, "concurrency": concurrency, **row})
    return found


if __name__ == "__main__":
    raise SystemExit(main("measure"))
