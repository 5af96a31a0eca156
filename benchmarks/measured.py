"""What the measure stages of all seeds left, pooled.

I: items, U: users, K: length of the recommended list, S: seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.slices import describe_catalogue
from compress.artifact import Artifact
from compress.errors import ArtifactError
from compress.metrics import Estimate, Floats, Ids, estimate, overlap, ranking_metrics

Json = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What the measure stage left: an entry for each training seed, all of the same users."""

    records: Sequence[Json]
    rankings: Sequence[Mapping[str, Ids]]
    latencies: Sequence[Mapping[str, Floats]]

    @classmethod
    def load(cls, artifacts: Iterable[Artifact]) -> Measured:
        """Raises ArtifactError if the seeds were measured on different users or variants."""
        loaded = [
            (
                json.loads(artifact.path("measure.json").read_text(encoding="utf-8")),
                _arrays(artifact.path("quality.npz")),
                _arrays(artifact.path("latency.npz")),
            )
            for artifact in artifacts
        ]
        records, rankings, latencies = zip(*sorted(loaded, key=lambda entry: int(entry[0]["seed"])), strict=True)
        for record, ranking in zip(records, rankings, strict=True):
            same_users = np.array_equal(ranking["targets/test"], rankings[0]["targets/test"])
            if not same_users or _names(record) != _names(records[0]):
                raise ArtifactError(
                    f"seed {record['seed']} was measured on other users or variants than seed {records[0]['seed']}; "
                    "measure both again with python -m benchmarks.measure recipe.yaml --force"
                )
        return cls(records, rankings, latencies)

    @property
    def seeds(self) -> list[int]:
        return [record["seed"] for record in self.records]

    @property
    def roles(self) -> Json:
        roles: Json = self.records[0]["roles"]
        return roles

    @property
    def names(self) -> list[str]:
        return _names(self.records[0])

    @property
    def peaks_gflops(self) -> dict[str, float]:
        """By number of threads; the best that any seed's run saw."""
        peaks = [record["environment"]["peak_gflops"] for record in self.records]
        return {threads: max(peak[threads] for peak in peaks) for threads in peaks[0]}

    def facts(self, name: str) -> list[Json]:
        """What each seed says of a variant."""
        return [variant for record in self.records for variant in record["variants"] if variant["name"] == name]

    def mean(self, name: str, fact: str, batch: int | None = None) -> float:
        values = [facts[fact] if batch is None else facts[fact][str(batch)] for facts in self.facts(name)]
        return float(np.mean(values))

    def scores(self, name: str, split: str) -> dict[str, Floats]:
        """Every metric of every user, seeds stacked: (S, U) each."""
        each = [
            ranking_metrics(seed[f"{name}/{split}"], seed[f"targets/{split}"], whole=self.records[0]["whole_lists"])
            for seed in self.rankings
        ]
        stacked = {metric: np.stack([scores[metric] for scores in each]) for metric in each[0]}
        return {metric: values for metric, values in stacked.items() if not np.isnan(values).all()}

    def validation(self, name: str) -> float | None:
        """Mean NDCG@10 of validation users, whom the eager teacher is not asked about."""
        if f"{name}/validation" not in self.rankings[0]:
            return None
        return float(np.nanmean(self.scores(name, "validation")["ndcg@10"]))

    @cached_property
    def control(self) -> str | None:
        """Of the trials on labels alone the one that ranks best for validation users; None of a recipe without."""
        trials: list[str] = self.roles["controls"]
        return max(trials, key=lambda name: self.validation(name) or 0.0, default=None)

    def overlap(self, name: str, other: str) -> Json:
        """Mean share of `other`'s test top 10 that is in `name`'s, each seed with its own, and its interval."""
        tens = [(seed[f"{name}/test"][:, :10], seed[f"{other}/test"][:, :10]) for seed in self.rankings]
        found = estimate(np.stack([overlap(*pair) for pair in tens]))
        return {"overlap@10": found.mean, "overlap@10_ci95": ends(found)}

    @property
    def item_popularity(self) -> Ids:
        """How often the training part has each item, (I,)."""
        return self.rankings[0]["item_popularity"]

    @property
    def target_popularity(self) -> Ids:
        """How often the training part has each user's test target, of several the first, (U,)."""
        targets = self.rankings[0]["targets/test"]
        first_U: Ids = targets if targets.ndim == 1 else targets[:, 0]
        return np.where(first_U >= 0, self.item_popularity[first_U], 0)

    def catalogue(self, name: str) -> dict[str, float]:
        """What a variant or baseline recommends to test users."""
        return describe_catalogue([seed[f"{name}/test"] for seed in self.rankings], self.item_popularity)

    def timed(self, name: str) -> list[tuple[str, int]]:
        """Scopes and batch sizes with latency samples, in a fixed order."""
        found = {key.rpartition("/") for seed in self.latencies for key in seed if key.startswith(f"{name}/")}
        return sorted((scope.removeprefix(f"{name}/"), int(batch)) for scope, _, batch in found)

    def samples(self, name: str, scope: str, batch: int) -> list[Floats]:
        """Milliseconds, an array for each seed's run."""
        return [seed[f"{name}/{scope}/{batch}"] for seed in self.latencies]


def ends(value: Estimate) -> list[float]:
    return [value.low, value.high]


def _names(record: Json) -> list[str]:
    return [variant["name"] for variant in record["variants"]]


def _arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
