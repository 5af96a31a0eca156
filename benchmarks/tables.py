"""The report's numbers as tables of words, for its pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import cells
from benchmarks.cells import Row, Table

Json = dict[str, Any]


def tables(report: Json) -> list[Table]:
    """Every number of the report, apart from the gates'."""
    return [
        _quality_table(report),
        *([_prediction_table(report)] if report["variants"][0]["prediction"] else []),
        _comparison_table(report),
        _choice_table(report),
        *([_int8_table(report)] if any(variant["vs_floats"] for variant in report["variants"]) else []),
        *([_invariance_table(report)] if any(variant["invariance"] for variant in report["variants"]) else []),
        _latency_table(report),
        _cost_table(report),
        *([_training_table(report)] if any(variant["training"] for variant in report["variants"]) else []),
        *([_foretold_table(report)] if any(variant["foretold"] for variant in report["variants"]) else []),
        _slices_table(report),
        _catalogue_table(report),
        *([_sizing_table(report)] if any(variant["sizing"] for variant in report["variants"]) else []),
        _environment_table(report),
    ]


def gates_table(report: Json) -> Table:
    rows = []
    for gate in report["gates"]:
        measured, required = cells.gate(gate)
        note = f" ({gate['note']})" if gate["note"] else ""
        rows.append(Row([gate["name"] + note, required, measured, "passed" if gate["passed"] else "**failed**"]))
    return Table("Gates", ["gate", "at least", "measured", ""], rows)


PREDICTION = {
    "auc": "AUC",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1-score": "F1",
}


def _quality_table(report: Json) -> Table:
    metrics = {
        metric: metric.replace("ndcg", "NDCG").replace("recall", "Recall").replace("mrr", "MRR").replace("auc", "AUC")
        for metric in report["variants"][0]["quality"]
    }
    rows = [
        cells.row(
            variant,
            variant["kind"],
            variant["runtime"],
            variant["precision"],
            variant["method"] or "",
            *(cells.interval(variant["quality"][metric]) for metric in metrics),
            "" if (found := variant["validation"]["ndcg@10"]) is None else f"{found:.4f}",
        )
        for variant in report["variants"]
    ]
    for name, baseline in report["baselines"].items():
        tuned = ", ".join(f"{key} {value}" for key, value in baseline["parameters"].items())
        quality = [cells.interval(baseline["quality"][metric]) for metric in metrics]
        rows.append(Row([name, "baseline", "", "", tuned, *quality, ""], "baseline"))
    head = ["variant", "made by", "runtime", "precision", "method", *metrics.values(), "NDCG@10, validation"]
    return Table("Quality", head, rows, f"{report['data']['judged_users']['test']:,} users.", words=5)


def _prediction_table(report: Json) -> Table:
    rows = [
        cells.row(variant, *(f"{variant['prediction'][key]:.4f}" for key in PREDICTION))
        for variant in report["variants"]
    ]
    note = "All users together. A yes is a probability of one half or more; precision, recall and F1 are of yes."
    return Table("Prediction of labels", ["variant", *PREDICTION.values()], rows, note)


def _comparison_table(report: Json) -> Table:
    rows = []
    for variant in report["variants"]:
        teacher = variant["vs_teacher"]
        same = variant["role"] == "teacher"  # a comparison with itself is no measurement
        rows.append(
            cells.row(
                variant,
                "" if same else cells.ratio(teacher["ndcg@10"]),
                "" if same else cells.difference(teacher["ndcg@10"]),
                "" if same else f"{teacher['overlap@10']:.3f}",
                cells.ratio((variant["vs_control"] or {}).get("ndcg@10")),
                cells.ratio(variant["vs_markov"]["ndcg@10"]),
            )
        )
    head = ["variant", "ratio to teacher", "difference", "overlap@10", "ratio to control", "ratio to Markov chain"]
    note = "NDCG@10." + (f" {_control(report['control'])}" if report["control"] else "")
    return Table("Against the teacher, the control and the Markov chain", head, rows, note)


def _control(control: Json) -> str:
    """Who it is, in a sentence."""
    tuned = f", the best of {control['trials']} trials on validation users" if control["trials"] > 1 else ""
    return f"The control, {control['name']}, is the same student trained on labels alone{tuned}."


def _choice_table(report: Json) -> Table:
    styles = {variant["name"]: cells.style(variant) for variant in report["variants"]}
    rows = [
        Row(
            [
                row["name"],
                "" if row["validation_ratio"] is None else f"{row['validation_ratio']:.4f}",
                cells.digits(row["latency_ms"]),
                f"{row['times_chosen']:.2f}x",
                cells.digits(row["size_bytes"] / 1e6),
                row["why"],
            ],
            styles[row["name"]],
        )
        for row in report["choice"]["candidates"]
    ]
    head = ["candidate", "of the best validation NDCG@10", "ms", "time over the chosen's", "file MB", ""]
    note = "ms: p50 of model time, the geometric mean of all batch sizes."
    return Table("The choice", head, rows, note)


def _int8_table(report: Json) -> Table:
    """Each int8 model beside its own floats; what predicts labels by AUC, what ranks by NDCG@10."""
    rounded = [variant for variant in report["variants"] if variant["vs_floats"]]
    predicts = any(variant["prediction"] for variant in rounded)
    batches = sorted({row["batch"] for variant in rounded for row in variant["vs_floats"]["speedup"]})
    rows = []
    for variant in rounded:
        floats = variant["vs_floats"]
        gained = {row["batch"]: row for row in floats["speedup"]}
        rows.append(
            cells.row(
                variant,
                floats["name"],
                cells.difference(floats.get("auc")) if predicts else cells.ratio(floats["ndcg@10"]),
                f"{floats['overlap@10']:.3f}",
                *(cells.speedup(gained.get(batch)) for batch in batches),
                cells.digits(variant["size_bytes"] / 1e6),
                cells.digits(floats["size_bytes"] / 1e6),
            )
        )
    quality = "AUC, difference" if predicts else "ratio of NDCG@10"
    head = ["int8 variant", "rounded from", quality, "overlap@10", *(f"faster, batch {batch}" for batch in batches)]
    notes = ["Beside its own model in floating point, served in the same run; model time."]
    notes += [
        f"{variant['name']} does not pay: at no batch size does its interval lie above 1x."
        for variant in rounded
        if not variant["vs_floats"]["pays"]
    ]
    head += ["file MB", "MB in floating point"]
    return Table("What int8 costs and saves", head, rows, " ".join(notes), words=2)


def _invariance_table(report: Json) -> Table:
    rows = []
    for variant in report["variants"]:
        found = variant["invariance"]
        if found is None:
            continue
        said = [
            f"{agreed[key]:.1%}" if key == "same" else f"{agreed[key]:.3f}"
            for agreed in (found["padded"], found["batch"])
            if agreed
            for key in ("same", "overlap")
        ]
        rows.append(cells.row(variant, f"{found['users']:,}", *said, *[""] * (4 - len(said))))
    head = ["int8 variant", "users", "padded: same top 10", "overlap", "in a batch of 32: same top 10", "overlap"]
    note = "Beside the answer to the same history alone. Padded: to the longest history; of candidates ranked for one "
    return Table(
        "Whether company changes an answer", head, rows, note + "user, to the longest candidate, and there is no batch."
    )


def _latency_table(report: Json) -> Table:
    overs = list(dict.fromkeys(row["over"] for variant in report["variants"] for row in variant["speedup"]))
    rows = []
    for variant in report["variants"]:
        speedups = {(row["over"], row["scope"], row["batch"]): row for row in variant["speedup"]}
        for row in variant["latency_ms"]:
            gained = [speedups.get((over, row["scope"], row["batch"])) for over in overs]
            rows.append(
                cells.row(
                    variant,
                    row["scope"],
                    str(row["batch"]),
                    f"{row['length']:.0f}" if row["length"] else "",
                    f"{row['padding']:.1%}" if row["length"] else "",
                    " or ".join(map(str, row["threads"])),
                    cells.median(row),
                    cells.digits(row["p95"]),
                    "" if row["p99"] is None else cells.digits(row["p99"]),
                    f"{row['samples']:,}",
                    "" if not row["peak_fraction"] else f"{row['peak_fraction']:.1%}",
                    *(cells.speedup(found) for found in gained),
                )
            )
    head = [
        "variant",
        "scope",
        "batch",
        "length",
        "padded",
        "threads",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "samples",
        "of peak",
    ]
    return Table(
        "Latency",
        [*head, *(f"faster than {over}" for over in overs)],
        rows,
        "Length: mean of the padded histories.",
        words=2,
    )


def _cost_table(report: Json) -> Table:
    rows = [
        cells.row(
            variant,
            f"{variant['parameters']:,}",
            cells.digits(variant["size_bytes"] / 1e6),
            cells.digits(variant["load_ms"]),
            cells.digits(variant["first_request_ms"]),
            f"{variant['peak_memory_bytes'] / 1e6:,.0f}",
        )
        for variant in report["variants"]
    ]
    head = ["variant", "parameters", "file MB", "load ms", "first request ms", "peak memory MB"]
    note = "Each in a process of its own, which begins and imports what it needs as part of loading."
    return Table("Size, loading and memory", head, rows, note)


def _training_table(report: Json) -> Table:
    rows = []
    for variant in report["variants"]:
        trained = variant["training"]
        if trained is None or variant["role"] == "reference":
            continue
        converged = trained["converged"]
        rows.append(
            cells.row(
                variant,
                f"{trained['steps']:,}",
                f"{trained['seconds']:,.0f}",
                f"{trained['teacher_seconds']:,.0f}" if trained["teacher_seconds"] else "",
                f"{trained['peak_memory_bytes'] / 1e6:,.0f}",
                f"{converged['steps']:,}" if converged else "",
                f"{converged['seconds']:,.0f}" if converged else "",
            )
        )
    head = ["variant", "steps", "seconds", "asking teachers", "peak memory MB", "steps to 98%", "seconds to 98%"]
    note = "98%: of the last NDCG@10 of validation users, judged after every epoch with learning_curve: true. Seconds "
    return Table(
        "Training", head, rows, note + "are without validation; a cache of the teachers' answers is asked for once."
    )


def _foretold_table(report: Json) -> Table:
    rows = [
        cells.row(
            variant,
            str(row["batch"]),
            cells.digits(row["predicted_ms"]),
            cells.digits(row["measured_ms"]),
            f"{row['measured_ms'] / row['predicted_ms'] - 1:+.1%}",
        )
        for variant in report["variants"]
        for row in variant["foretold"]
    ]
    note = "By the profile's table of measured parts; on inputs of the sizes that it timed."
    return Table("Latency as foretold", ["variant", "batch", "foretold ms", "measured ms", "off by"], rows, note)


def _slices_table(report: Json) -> Table:
    """A row for each slice: how the chosen variant stands to the teacher, and what every variant ranks there."""
    variants = report["variants"]
    chosen = next(variant for variant in variants if variant["chosen"])
    same = chosen["role"] == "teacher"
    rows = [
        Row(
            [
                part["name"],
                f"{part['users']:,}",
                "" if same else cells.ratio(part["vs_teacher"]) or "the teacher hits nothing",
                *(f"{variant['slices'][place]['ndcg@10']:.4f}" for variant in variants),
            ]
        )
        for place, part in enumerate(chosen["slices"])
    ]
    head = ["users", "number", f"{chosen['name']} over the teacher", *(cells.name(variant) for variant in variants)]
    note = "Terciles of users by length of history and by how often training saw their test item; cold: the tenth with "
    return Table("NDCG@10 by slices of users", head, rows, note + "the shortest histories. Equal users stay together.")


def _catalogue_table(report: Json) -> Table:
    rows = []
    for variant in report["variants"]:
        drift = "" if variant["role"] == "teacher" else f"{variant['vs_teacher']['popularity_drift']:+.3f}"
        rows.append(cells.row(variant, *_catalogue_cells(variant["catalogue"]), drift))
    for name, baseline in report["baselines"].items():
        rows.append(Row([name, *_catalogue_cells(baseline["catalogue"]), ""], "baseline"))
    return Table(
        "What is recommended",
        ["variant", "coverage@10", "popularity@10", "drift"],
        rows,
        "Coverage: share of the catalogue that is in anyone's top 10. Popularity: mean percentile of the recommended "
        "items, 0 the least and 1 the most popular in training; drift: its difference, positive towards popular items.",
    )


def _catalogue_cells(catalogue: Mapping[str, float]) -> list[str]:
    return [f"{catalogue['coverage@10']:.1%}", f"{catalogue['popularity@10']:.3f}"]


def _sizing_table(report: Json) -> Table:
    """A row for each variant, threads and concurrency, a column for each limit."""
    limits = list(dict.fromkeys(row["limit_ms"] for variant in report["variants"] for row in variant["sizing"]))
    rows = []
    for variant in report["variants"]:
        held = {(row["threads"], row["concurrency"], row["limit_ms"]): row for row in variant["sizing"]}
        for threads, concurrency in dict.fromkeys(key[:2] for key in held):
            by_limit = [held[threads, concurrency, limit] for limit in limits]
            rows.append(cells.row(variant, str(threads), str(concurrency), *(_sustained(row) for row in by_limit)))
    return Table(
        "Requests a second that hold a latency",
        ["variant", "threads", "workers", *(f"p99 < {limit:g} ms" for limit in limits)],
        rows,
        "Requests arrive at random and wait for nobody; a latency counts from the arrival, raw ids in and out; in "
        "brackets p99 at that rate. Workers are threads of one process, each with a runtime of its own. *: the workers "
        "have no more to give, whatever the limit. RecPress's own load generator; no MLPerf result.",
    )


def _sustained(row: Json) -> str:
    if row["requests_per_second"] is None:
        return "none"
    return f"{row['requests_per_second']:,.0f}{'*' if row['saturated'] else ''} ({cells.digits(row['p99'])} ms)"


def _environment_table(report: Json) -> Table:
    environment = report["environment"]
    facts = {key: value for key, value in environment.items() if key not in ("versions", "peak_gflops")}
    for threads, peak in environment["peak_gflops"].items():
        facts[f"measured peak, float32, {threads} threads"] = f"{peak:.0f} GFLOP/s"
    facts |= report["data"] | environment["versions"]
    rows = [
        Row([str(key), "none" if value is None else f"{value:,}" if isinstance(value, int) else str(value)])
        for key, value in facts.items()
    ]
    return Table("Environment and data", ["", ""], rows, words=2)


def model_rows(variant: Json) -> list[Json]:
    """Of model time; of another tool, which has only that, of the whole request."""
    scope = main_scope(variant)
    return [row for row in variant["latency_ms"] if row["scope"] == scope]


def main_scope(variant: Json) -> str:
    return "model" if any(row["scope"] == "model" for row in variant["latency_ms"]) else "request"
