"""Finished measure stages in which everything is known, and what tests ask of reports about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages
from compress import artifact
from compress.artifact import Artifact
from compress.recipe.judging import FidelityGate, GateSection, LatencyGate, QualityGate, SizeGate

USERS = 120
ITEMS = 2500
"""Item i was used i + 5 times in training; the targets of tests are the first fifty."""
NAMES = ("teacher-eager", "teacher", "student", "control", "table8", "int8")
HITS = {
    "teacher-eager": 60,
    "teacher": 60,
    "student": 57,
    "control": 45,
    "table8": 57,
    "int8": 56,
    "popularity": 12,
    "markov": 36,
}
"""Users whose target comes first; everyone else's is not in the list, so that NDCG@10 is hits / USERS."""
MS = {"teacher-eager": 8.0, "teacher": 1.0, "student": 0.195, "control": 0.20, "table8": 0.19, "int8": 0.10}
BYTES = {
    "teacher-eager": 4_000_000,
    "teacher": 3_800_000,
    "student": 900_000,
    "control": 900_000,
    "table8": 400_000,
    "int8": 300_000,
}
KEPT = {"teacher-eager": 10, "teacher": 10, "student": 8, "control": 5, "table8": 8, "int8": 7}
"""Items of the teacher's list that a variant's list holds too."""

SIZING = {
    name: [
        {"limit_ms": limit, "threads": 1, "concurrency": 2, "saturated": limit == 50, "requests_per_second": rate}
        | late
        for limit, rate, late in ((20, None, {"p50": None, "p99": None}), (50, rate, {"p50": 9.0, "p99": 48.7}))
    ]
    for name, rate in (("teacher-eager", 123.4), ("int8", 4321.0))
}

ALL_GATES = GateSection(
    quality=QualityGate(min_low=0.8, min_ratio=0.9),
    fidelity=FidelityGate(min_overlap=0.7),
    latency=LatencyGate(min_speedup={1: 50, 32: 50}),
    size=SizeGate(min_ratio=10),
)

draw_html = pages.html

Judged = Callable[..., dict[str, Any]]


def measure(
    folder: Path,
    seed: int = 0,
    *,
    validation: Mapping[str, int] | None = None,
    test: Mapping[str, int] | None = None,
    ms: Mapping[str, float] | None = None,
    size_bytes: Mapping[str, int] | None = None,
    users: int = USERS,
) -> Artifact:
    """A finished measure stage in which everything is known; keywords replace defaults by variant name."""
    folder.mkdir(parents=True)
    ms = {**MS, **(ms or {})}
    targets = np.arange(users) % 50
    quality: dict[str, Any] = {
        "targets/test": targets,
        "targets/validation": targets,
        "history_length/test": np.arange(users) + 1,
        "item_popularity": np.arange(ITEMS) + 5,
    }
    for name in HITS:
        for split, hits in (("validation", validation), ("test", test)):
            if (name, split) == ("teacher-eager", "validation"):  # whom measure does not ask
                continue
            quality[f"{name}/{split}"] = rankings(targets, {**HITS, **(hits or {})}[name], KEPT.get(name, 0))
    np.savez(folder / "quality.npz", **quality)
    noise = np.random.default_rng(0).permutation(np.linspace(0.9, 1.1, 40))
    latency: dict[str, Any] = {
        f"{name}/{scope}/{batch}": ms[name] * noise * batch**0.5 * extra
        for name in NAMES
        for scope, extra in (("model", 1.0), ("request", 1.2))
        for batch in (1, 32)
    }
    np.savez(folder / "latency.npz", **latency)
    (folder / "measure.json").write_text(json.dumps(description(seed, {**BYTES, **(size_bytes or {})})))
    fields = {
        "name": "measure",
        "kind": "measure",
        "fingerprint": "",
        "ingredients": {},
        "metrics": {},
        "environment": {},
    }
    return artifact.write(folder, seed=seed, seconds=0.0, **fields)


LAYERS: dict[str, list[list[int]]] = {name: [[2, 64], [2, 64]] for name in NAMES}
FORETOLD: dict[str, list[dict[str, Any]]] = {}
INVARIANCE = {
    "int8": {"users": 9, "padded": {"same": 0.75, "overlap": 0.98}, "batch": {"same": 0.625, "overlap": 0.97}}
}
CONTROLS = ["control"]
ROUNDED_FROM = {"int8": "student", "table8": "student"}
TRAINING = {
    "student": {"steps": 20, "train_seconds": 4.0, "peak_memory_bytes": 10**9, "curve": [[10, 0.05], [20, 0.1]]},
    "control": {"steps": 30, "train_seconds": 3.0, "peak_memory_bytes": 10**9},
}


def rankings(targets: np.ndarray[Any, Any], hits: int, kept: int) -> np.ndarray[Any, Any]:
    shared, own = np.arange(1000, 1010), np.arange(2000, 2010)
    lists = np.tile(np.concatenate([own[: 10 - kept], shared[10 - kept :]]), (len(targets), 1))
    lists[:hits, 0] = targets[:hits]
    return lists


def description(seed: int, size_bytes: Mapping[str, int]) -> dict[str, Any]:
    return {
        "seed": seed,
        "environment": {
            "cpu": "A <fast> one",
            "cpus": "2",
            "threads": 2,
            "gpu": None,
            "versions": {"torch": "1"},
            "peak_gflops": {"1": 60.0, "2": 100.0},
        },
        "data": {
            "users": USERS,
            "items": 50,
            "interactions": 4321,
            "split": "leave-one-out",
            "judged_users": {"validation": 4, "test": 4},
            "judged_on": "full catalogue",
        },
        "roles": {
            "teacher": "teacher",
            "reference": "teacher-eager",
            "controls": CONTROLS,
            "candidates": ["student", "table8", "int8"],
            "peers": [],
            "min_validation_ratio": 0.95,
        },
        "whole_lists": False,
        "baselines": {"popularity": {}, "markov": {"window": 3, "smoothing": 80, "items": 3, "decay": 0.8}},
        "variants": [
            {
                "name": name,
                "stage": name.removesuffix("-eager"),
                "kind": "distill" if name == "student" else "finetune",
                "runtime": "torch-eager" if name == "teacher-eager" else "onnxruntime-cpu",
                "precision": "int8" if name == "int8" else "fp32",
                "method": "one | position",
                "threads": {"1": 1, "32": 2},
                "parameters": 1000,
                "size_bytes": size_bytes[name],
                "flops": {"1": 10_000_000, "32": 320_000_000},
                "lengths": {"1": 60.5, "32": 99.0},
                "padding": {"1": 0.0, "32": 0.25},
                "load_ms": 20.0 + seed,
                "first_request_ms": 2.0,
                "peak_memory_bytes": 100_000_000,
                "sizing": SIZING.get(name, []),
                "prediction": None,
                "layers": {"hidden_size": 16, "shapes": LAYERS[name]},
                "foretold": FORETOLD.get(name, []),
                "invariance": INVARIANCE.get(name),
                "linear": "dynamic" if name == "int8" else "none",
                "rounded_from": ROUNDED_FROM.get(name),
                "training": TRAINING.get(name),
                "bundle": "runs/secret/place",
                "loaded_from": ["runs/secret/place", "runs/secret/model"],
            }
            for name in NAMES
        ],
    }


def chosen(made: Mapping[str, Any]) -> str:
    (name,) = [variant["name"] for variant in made["variants"] if variant["chosen"]]
    return str(name)


def variant(made: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(dict(row) for row in made["variants"] if row["name"] == name)


def gate_of(made: Mapping[str, Any], words: str) -> dict[str, Any]:
    (gate,) = [gate for gate in made["gates"] if words in gate["name"]]
    return dict(gate)
