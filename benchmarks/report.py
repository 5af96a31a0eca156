"""Pools the seeds, chooses one candidate on validation and judges the gates on test, once.

`python -m benchmarks.report recipe.yaml` makes a recipe's report;
`python -m benchmarks.report NEW --against OLD [--markdown FILE]` compares two of them.

U: users, S: seeds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.choice import Choice
from benchmarks.gates import judge, judge_foretold, speedups
from benchmarks.learning import describe_training
from benchmarks.measured import Measured, ends
from benchmarks.slices import describe_slices, slice_users
from compress.artifact import Artifact, write_json
from compress.command import guarded
from compress.command import main as stage_main
from compress.metrics import Floats, compare, estimate, quantile_interval, ratio_of_medians
from compress.recipe.judging import GateSection
from compress.stage import Workspace
from deploy.clock import TIMED_PER_TURN

SCHEMA_VERSION = 1

DISTURBED = 10.0
"""Median over fastest call: lengths of histories explain a few times, threads that wait for a busy core hundreds."""

ENOUGH = 200
"""Samples, for a p99: of fewer it is the slowest call, or nearly."""

Json = dict[str, Any]
Scores = Mapping[str, Floats]
"""Metric -> a value of each seed and user, (S, U)."""


def run(section: GateSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> Json:
    """Writes report.json and its pages. Returns whether every gate passed, and the chosen candidate's main numbers."""
    from benchmarks import environment, pages

    measured = Measured.load(artifact for name, artifact in inputs.items() if name.startswith("measure-"))
    choice = choose_measured(measured)
    chosen_name = choice.chosen
    variants = describe_variants(measured, chosen_name)
    by_name = {variant["name"]: variant for variant in variants}
    chosen, teacher = by_name[chosen_name], by_name[measured.roles["teacher"]]
    peers = [by_name[name] for name in measured.roles["peers"]]
    gates = judge(section, chosen, by_name[measured.roles["reference"]], peers)
    gates += judge_foretold(variants)
    report: Json = {
        "schema_version": SCHEMA_VERSION,
        "recipe": workspace.folder.parent.name,
        "commit": environment.commit(),
        "seeds": measured.seeds,
        "environment": measured.records[0]["environment"] | {"peak_gflops": measured.peaks_gflops},
        "data": measured.records[0]["data"],
        "baselines": describe_baselines(measured),
        "variants": variants,
        "choice": choice.describe(),
        "control": measured.control and {"name": measured.control, "trials": len(measured.roles["controls"])},
        "gates": gates,
        "passed": all(gate["passed"] for gate in gates),
        "warnings": [*warn_of_quality(teacher), *warn_of_timings(measured)],
    }
    write_json(workspace.folder / "report.json", report)
    pages.write(report, workspace.folder)
    ndcg = chosen["vs_teacher"]["ndcg@10"]
    return {
        "passed": report["passed"],
        "chosen": chosen_name,
        "ndcg_ratio": ndcg and ndcg["ratio"],
        "overlap@10": chosen["vs_teacher"]["overlap@10"],
        "ndcg_ratio_low": ndcg and ndcg["ci95"][0],
        "speedup": {str(batch): row["ratio"] for batch, row in speedups(chosen, measured.roles["reference"]).items()},
        "size_ratio": by_name[measured.roles["reference"]]["size_bytes"] / chosen["size_bytes"],
    }


def choose_measured(measured: Measured) -> Choice:
    """Which candidate to serve, from validation users, latencies and file sizes: test users play no part."""
    names = measured.roles["candidates"]
    medians = {
        name: [
            np.median(np.concatenate(measured.samples(name, *key))) for key in measured.timed(name) if key[0] == "model"
        ]
        for name in names
    }
    return Choice(
        {name: measured.validation(name) or 0.0 for name in names},
        {name: math.exp(np.mean(np.log(values))) for name, values in medians.items()},
        {name: measured.mean(name, "size_bytes") for name in names},
        measured.roles["min_validation_ratio"],
        [name for name in names if measured.facts(name)[0]["precision"] == "int8"],
    )


def describe_variants(measured: Measured, chosen: str) -> list[Json]:
    """The rows of the report."""
    roles, control = measured.roles, measured.control
    test = {name: measured.scores(name, "test") for name in (*measured.names, "markov")}
    slices = describe_slices(
        slice_users(measured.rankings[0]["history_length/test"], measured.target_popularity),
        {name: test[name]["ndcg@10"] for name in measured.names},
        roles["teacher"],
    )
    catalogue = {name: measured.catalogue(name) for name in measured.names}
    return [
        {
            **{
                key: measured.facts(name)[0][key] for key in ("name", "stage", "kind", "runtime", "precision", "method")
            },
            "role": _role(name, roles | {"control": control}),
            "chosen": name == chosen,
            "parameters": round(measured.mean(name, "parameters")),
            "size_bytes": round(measured.mean(name, "size_bytes")),
            "layers": measured.facts(name)[0]["layers"]["shapes"],
            "training": describe_training([facts["training"] for facts in measured.facts(name)]),
            "foretold": [
                {**row, "seed": record["seed"]}
                for record, facts in zip(measured.records, measured.facts(name), strict=True)
                for row in facts["foretold"]
            ],
            "validation": {"ndcg@10": measured.validation(name)},
            "quality": _quality(test[name]),
            "prediction": _prediction(measured, name),
            "vs_teacher": {
                **_differences(test[name], test[roles["teacher"]]),
                **measured.overlap(name, roles["teacher"]),
                "popularity_drift": catalogue[name]["popularity@10"] - catalogue[roles["teacher"]]["popularity@10"],
            },
            "vs_control": _differences(test[name], test[control]) if control and name in roles["candidates"] else None,
            "vs_markov": _differences(test[name], test["markov"]),
            "vs_floats": _vs_floats(measured, name, test),
            "slices": slices[name],
            "catalogue": catalogue[name],
            "invariance": _invariance(measured, name),
            "latency_ms": [_latency(measured, name, scope, batch) for scope, batch in measured.timed(name)],
            "speedup": [
                _speedup(measured, name, over, scope, batch)
                for over in dict.fromkeys((roles["reference"], roles["teacher"], *roles["peers"]))
                if name not in (over, roles["reference"])
                for scope, batch in measured.timed(name)
                if (scope, batch) in measured.timed(over)
            ],
            "sizing": _sizing(measured, name),
            **{key: measured.mean(name, key) for key in ("load_ms", "first_request_ms")},
            "peak_memory_bytes": round(measured.mean(name, "peak_memory_bytes")),
        }
        for name in measured.names
    ]


def describe_baselines(measured: Measured) -> Json:
    """What a model must beat: quality and parameters of the recommenders that are not neural."""
    return {
        name: {
            "quality": _quality(measured.scores(name, "test")),
            "catalogue": measured.catalogue(name),
            "parameters": parameters,
        }
        for name, parameters in measured.records[0]["baselines"].items()
    }


def warn_of_quality(teacher: Json) -> list[str]:
    """Whether the teacher is below what needs no training at all."""
    against = teacher["vs_markov"]["ndcg@10"]
    if against is None or against["ci95"][1] >= 1:
        return []
    low, high = against["ci95"]
    return [
        f"the teacher ranks below the Markov chain (ratio {against['ratio']:.2f} [{low:.2f}, {high:.2f}]): "
        "it is not yet worth compressing"
    ]


def warn_of_timings(measured: Measured) -> list[str]:
    """Variants whose typical call waits for something; the gate still judges what was measured.

    Requests of different sizes spread all variants alike: what counts is more spread than another one has.
    """
    spread: dict[tuple[str, int], dict[str, tuple[float, float]]] = {}
    for name in measured.names:
        for scope, batch in measured.timed(name):
            samples = np.concatenate(measured.samples(name, scope, batch))
            spread.setdefault((scope, batch), {})[name] = float(np.median(samples)), float(samples.min())
    return [
        f"the timings of {name} were disturbed ({scope}, batch {batch}: median {median:.3g} ms, fastest "
        f"{fastest:.3g} ms): quote no speedup; measure again on an idle machine"
        for (scope, batch), found in spread.items()
        for name, (median, fastest) in found.items()
        if median / fastest > DISTURBED * min(each / least for each, least in found.values())
    ]


def _role(name: str, roles: Json) -> str:
    for role in ("teacher", "reference", "control"):
        if name == roles[role]:
            return role
    return "candidate" if name in roles["candidates"] else "other"


def _prediction(measured: Measured, name: str) -> Json | None:
    """The mean of the seeds; null where the data has no labels."""
    each = [facts["prediction"] for facts in measured.facts(name) if facts["prediction"]]
    if not each:
        return None
    yes = [found["classification"]["yes"] for found in each]
    return {
        **{key: float(np.mean([found[key] for found in each])) for key in ("auc", "log_loss", "calibration_error")},
        **{key: float(np.mean([found[key] for found in yes])) for key in ("precision", "recall", "f1-score")},
        "accuracy": float(np.mean([found["classification"]["accuracy"] for found in each])),
    }


def _invariance(measured: Measured, name: str) -> Json | None:
    """The mean of the seeds; null of what is in floating point."""
    each = [facts["invariance"] for facts in measured.facts(name) if facts["invariance"]]
    if not each:
        return None

    def mean(company: str) -> Json | None:
        told = [found[company] for found in each if found[company]]
        return {key: float(np.mean([agreed[key] for agreed in told])) for key in told[0]} if told else None

    return {"users": each[0]["users"], "padded": mean("padded"), "batch": mean("batch")}


def _quality(scores: Scores) -> Json:
    return {
        metric: {"mean": value.mean, "ci95": ends(value)}
        for metric, value in ((metric, estimate(values)) for metric, values in scores.items())
    }


def _differences(ours: Scores, theirs: Scores) -> Json:
    """Paired comparisons by metric; null where the reference hits nothing and no ratio can be formed."""
    found: Json = dict.fromkeys(ours)
    for metric in ours:
        if np.nan_to_num(theirs[metric]).any():
            compared = compare(ours[metric], theirs[metric])
            found[metric] = {
                "ratio": compared.ratio.mean,
                "difference": compared.difference.mean,
                "ci95": ends(compared.ratio),
                "difference_ci95": ends(compared.difference),
            }
    return found


def _vs_floats(measured: Measured, name: str, test: Mapping[str, Scores]) -> Json | None:
    """An int8 model beside the one in floating point that it is the rounding of; None unless one runtime served both.

    It pays if it is faster at any batch size: a smaller file that answers no sooner is the lesser half of int8.
    """
    ours = measured.facts(name)[0]
    floats = ours["rounded_from"]
    if ours["precision"] != "int8" or floats not in measured.names:
        return None
    if measured.facts(floats)[0]["runtime"] != ours["runtime"]:  # eager PyTorch runs no integers
        return None
    rows = [_speedup(measured, name, floats, *key) for key in measured.timed(name) if key[0] == "model"]
    return {
        "name": floats,
        **_differences(test[name], test[floats]),
        **measured.overlap(name, floats),
        "speedup": rows,
        "size_bytes": round(measured.mean(floats, "size_bytes")),
        "pays": any(row["ci95"][0] > 1 for row in rows),
    }


def _latency(measured: Measured, name: str, scope: str, batch: int) -> Json:
    runs = measured.samples(name, scope, batch)
    samples = np.concatenate(runs)
    median = quantile_interval(samples, 0.5, turn=TIMED_PER_TURN)
    threads = [facts["threads"][str(batch)] for facts in measured.facts(name)]
    flops = measured.mean(name, "flops", batch)
    shares = [
        flops / (np.median(run) / 1e3) / (measured.peaks_gflops[str(count)] * 1e9)
        for run, count in zip(runs, threads, strict=True)
    ]
    return {
        "scope": scope,
        "batch": batch,
        "length": measured.mean(name, "lengths", batch),
        "padding": measured.mean(name, "padding", batch),
        "threads": sorted(set(threads)),  # each seed's run keeps the faster number
        "p50": median.mean,
        "p95": float(np.quantile(samples, 0.95)),
        "p99": float(np.quantile(samples, 0.99)) if len(samples) >= ENOUGH else None,
        "p50_ci95": ends(median),
        "samples": len(samples),
        "peak_fraction": float(np.mean(shares)) if scope == "model" else None,
    }


def _speedup(measured: Measured, name: str, over: str, scope: str, batch: int) -> Json:
    runs = (measured.samples(each, scope, batch) for each in (over, name))
    found = ratio_of_medians(*runs, turn=TIMED_PER_TURN)
    return {"scope": scope, "batch": batch, "over": over, "ratio": found.mean, "ci95": ends(found)}


def _sizing(measured: Measured, name: str) -> list[Json]:
    """Of several seeds the run that held the least."""
    runs = zip(*(facts["sizing"] for facts in measured.facts(name)), strict=True)
    return [min(rows, key=lambda row: row["requests_per_second"] or 0) for rows in runs]


def main() -> int:
    """Ends with 0, with 3 if a gate failed, with 2 and one line if there is nothing to report on."""
    if any(part.partition("=")[0] == "--against" for part in sys.argv[1:]):
        from benchmarks import comparison

        return guarded(lambda: comparison.main(sys.argv[1:]))
    return stage_main("report")


if __name__ == "__main__":
    raise SystemExit(main())
