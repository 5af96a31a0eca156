"""A report for people: report.md, report.html and the terminal's summary.txt, all from the report's own numbers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.artifact import write_atomically

Json = dict[str, Any]

WIDTH = 100
"""Columns of a terminal."""

HOW = (
    "Quality: leave-one-out by time, every user's last item against the whole catalogue, seen items filtered, on the "
    "exported file in the runtime that serves it. Choices are made on validation items; test items are judged once.",
    "Intervals are bootstrap 95% intervals over users; a comparison is paired, and a user's seeds are resampled "
    "together.",
    "Latency: warm-up, then the variants in turn on the same real histories, all samples kept. Model time is the "
    "runtime alone; request time goes from raw item ids to ranked item ids. A speedup is a ratio of one run's medians, "
    "over several seeds the geometric mean of each run's.",
    "Share of peak: the multiply-adds of a call, two operations each, over the median time and the machine's fastest "
    "measured float32 matrix product; INT8 kernels may go beyond it.",
)


@dataclass(frozen=True)
class Row:
    cells: Sequence[str]
    style: str = ""
    """A role, or "chosen": which colour the page gives it."""


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    words: int = 1
    """Leading columns that hold words; the others hold numbers."""


def write(report: Json, folder: Path) -> None:
    """Writes the three pages."""
    write_atomically(folder / "summary.txt", terminal(report))
    write_atomically(folder / "report.md", markdown(report))
    write_atomically(folder / "report.html", html(report))


def terminal(report: Json) -> str:
    """Plain text, at most 100 columns."""
    batches = _end_batches(report)
    head = ["variant", "NDCG@10", "of teacher's", "top-10"]
    head += [f"ms b{batch}" for batch in batches] + [f"x b{batch}" for batch in batches] + ["MB"]
    rows = [_terminal_row(report, variant, batches) for variant in report["variants"]]
    blank = [""] * (len(head) - 2)
    rows += [["  " + name, _short(entry["quality"]["ndcg@10"]), *blank] for name, entry in report["baselines"].items()]
    lines = [
        headline(report),
        "",
        *_aligned(["  " + head[0], *head[1:]], rows),
        "",
        *textwrap.wrap(
            f"* chosen on validation. [] 95% interval. top-10: overlap with the teacher's. "
            f"ms: p50 model time. x: over {_reference(report)}.",
            WIDTH,
        ),
    ]
    for warning in report["warnings"]:
        lines += ["", *textwrap.wrap(f"WARNING: {warning}", WIDTH)]
    lines += ["", *_terminal_gates(report["gates"]), verdict(report)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def markdown(report: Json) -> str:
    """GitHub's markdown, without charts."""
    lines = [f"# {report['recipe']}", "", headline(report), "", f"**{verdict(report)}**", ""]
    lines += [line for warning in report["warnings"] for line in (f"> **Warning:** {warning}", "")]
    for table in (*([gates_table(report)] if report["gates"] else []), *tables(report)):
        lines += [f"## {table.title}", "", *_markdown_rows(table), "", *([table.note, ""] if table.note else [])]
    lines += ["## How it was measured", "", *(f"- {sentence}" for sentence in HOW)]
    return "\n".join(lines) + "\n"


def html(report: Json) -> str:
    """One file that needs no other."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from benchmarks import plots

    charts = {
        "Quality and latency": plots.quality_against_latency(report),
        "Latency percentiles": plots.latency_percentiles(report),
        "File size": plots.file_sizes(report),
    }
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template("report.html.jinja").render(
        report=report,
        headline=headline(report),
        verdict=verdict(report),
        gates=[(gate, *_gate_cells(gate)) for gate in report["gates"]],
        charts={title: Markup(svg) for title, svg in charts.items()},
        tables=tables(report),
        how=HOW,
    )


def headline(report: Json) -> str:
    """What was measured, in one line."""
    data, seeds = report["data"], ", ".join(map(str, report["seeds"]))
    return (
        f"{report['recipe']} · {data['users']:,} users, {data['items']:,} items · "
        f"seed{'s' if len(report['seeds']) > 1 else ''} {seeds} · commit {report['commit']}"
    )


def verdict(report: Json) -> str:
    gates = report["gates"]
    if not gates:
        return "NO GATE"
    failed = sum(not gate["passed"] for gate in gates)
    return f"FAILED: {failed} of {len(gates)} gates" if failed else f"PASSED: {len(gates)} of {len(gates)} gates"


def tables(report: Json) -> list[Table]:
    """Every number of the report, apart from the gates'."""
    return [
        _quality_table(report),
        _comparison_table(report),
        _latency_table(report),
        _cost_table(report),
        _slices_table(report),
        _environment_table(report),
    ]


def gates_table(report: Json) -> Table:
    rows = []
    for gate in report["gates"]:
        measured, required = _gate_cells(gate)
        note = f" ({gate['note']})" if gate["note"] else ""
        rows.append(Row([gate["name"] + note, required, measured, "passed" if gate["passed"] else "**failed**"]))
    return Table("Gates", ["gate", "at least", "measured", ""], rows)


def _quality_table(report: Json) -> Table:
    metrics = {"ndcg@10": "NDCG@10", "recall@10": "Recall@10", "mrr@10": "MRR@10"}
    rows = [
        Row(
            [
                _name(variant),
                variant["kind"],
                variant["runtime"],
                variant["precision"],
                variant["method"] or "",
                *(_interval(variant["quality"][metric]) for metric in metrics),
                f"{variant['validation']['ndcg@10']:.4f}",
            ],
            _style(variant),
        )
        for variant in report["variants"]
    ]
    for name, baseline in report["baselines"].items():
        tuned = ", ".join(f"{key} {value}" for key, value in baseline["parameters"].items())
        quality = [_interval(baseline["quality"][metric]) for metric in metrics]
        rows.append(Row([name, "baseline", "", "", tuned, *quality, ""], "baseline"))
    head = ["variant", "made by", "runtime", "precision", "method", *metrics.values(), "NDCG@10, validation"]
    return Table("Quality", head, rows, f"{report['data']['users']:,} users, one held-out item each.", words=5)


def _comparison_table(report: Json) -> Table:
    rows = []
    for variant in report["variants"]:
        teacher = variant["vs_teacher"]
        same = variant["role"] == "teacher"  # a comparison with itself is no measurement
        rows.append(
            Row(
                [
                    _name(variant),
                    "" if same else _ratio(teacher["ndcg@10"]),
                    "" if same else _difference(teacher["ndcg@10"]),
                    "" if same else f"{teacher['overlap@10']:.3f}",
                    _ratio((variant["vs_control"] or {}).get("ndcg@10")),
                    _ratio(variant["vs_markov"]["ndcg@10"]),
                ],
                _style(variant),
            )
        )
    head = ["variant", "ratio to teacher", "difference", "overlap@10", "ratio to control", "ratio to Markov chain"]
    note = "NDCG@10. The control is the same student trained on labels alone."
    return Table("Against the teacher, the control and the Markov chain", head, rows, note)


def _latency_table(report: Json) -> Table:
    overs = list(dict.fromkeys(row["over"] for variant in report["variants"] for row in variant["speedup"]))
    rows = []
    for variant in report["variants"]:
        speedups = {(row["over"], row["scope"], row["batch"]): row for row in variant["speedup"]}
        for row in variant["latency_ms"]:
            gained = [speedups.get((over, row["scope"], row["batch"])) for over in overs]
            rows.append(
                Row(
                    [
                        _name(variant),
                        row["scope"],
                        str(row["batch"]),
                        f"{row['length']:.0f}",
                        " or ".join(map(str, row["threads"])),
                        f"{_digits(row['p50'])} [{_digits(row['p50_ci95'][0])}, {_digits(row['p50_ci95'][1])}]",
                        _digits(row["p95"]),
                        _digits(row["p99"]),
                        f"{row['samples']:,}",
                        "" if row["peak_fraction"] is None else f"{row['peak_fraction']:.1%}",
                        *(_speedup(found) for found in gained),
                    ],
                    _style(variant),
                )
            )
    head = ["variant", "scope", "batch", "length", "threads", "p50 ms", "p95 ms", "p99 ms", "samples", "of peak"]
    return Table(
        "Latency",
        [*head, *(f"faster than {over}" for over in overs)],
        rows,
        "Length: mean of the padded histories.",
        words=2,
    )


def _cost_table(report: Json) -> Table:
    rows = [
        Row(
            [
                _name(variant),
                f"{variant['parameters']:,}",
                _digits(variant["size_bytes"] / 1e6),
                _digits(variant["load_ms"]),
                _digits(variant["first_request_ms"]),
                f"{variant['peak_memory_bytes'] / 1e6:,.0f}",
            ],
            _style(variant),
        )
        for variant in report["variants"]
    ]
    head = ["variant", "parameters", "file MB", "load ms", "first request ms", "peak memory MB"]
    return Table("Size, loading and memory", head, rows, "Each in a process of its own.")


def _slices_table(report: Json) -> Table:
    slices = report["variants"][0]["slices"]
    head = ["variant", *(f"{part['name']} ({part['users']:,} users)" for part in slices)]
    rows = [
        Row([_name(variant), *(f"{part['ndcg@10']:.4f}" for part in variant["slices"])], _style(variant))
        for variant in report["variants"]
    ]
    return Table("NDCG@10 by length of history", head, rows)


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


def _terminal_row(report: Json, variant: Json, batches: Sequence[int]) -> list[str]:
    medians = {row["batch"]: row["p50"] for row in variant["latency_ms"] if row["scope"] == "model"}
    gained = {
        row["batch"]: row["ratio"]
        for row in variant["speedup"]
        if row["scope"] == "model" and row["over"] == _reference(report)
    }
    teacher = variant["vs_teacher"]
    same = variant["role"] == "teacher"
    return [
        ("* " if variant["chosen"] else "  ") + variant["name"],
        _short(variant["quality"]["ndcg@10"]),
        "" if same or not teacher["ndcg@10"] else _short(teacher["ndcg@10"] | {"mean": teacher["ndcg@10"]["ratio"]}, 2),
        "" if same else f"{teacher['overlap@10']:.2f}",
        *(_digits(medians[batch]) if batch in medians else "" for batch in batches),
        *(f"{_digits(gained[batch])}x" if batch in gained else "" for batch in batches),
        _digits(variant["size_bytes"] / 1e6),
    ]


def _terminal_gates(gates: Iterable[Json]) -> list[str]:
    lines = []
    for gate in gates:
        measured, required = _gate_cells(gate)
        lines.append(f"{'pass' if gate['passed'] else 'FAIL'}  {gate['name'][:66]:<66} {measured:>12} >= {required}")
        lines += textwrap.wrap(gate["note"] or "", WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need; the first is cut where the line would be too long."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    widths[0] = min(widths[0], max(10, WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    lines = []
    for first, *rest in (head, *rows):
        cut = first if len(first) <= widths[0] else first[: widths[0] - 1] + "…"
        cells = [cut.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return lines


def _markdown_rows(table: Table) -> list[str]:
    body = [[cell.replace("|", "\\|") for cell in row.cells] for row in table.rows]
    rule = ["---" if column < table.words else "---:" for column in range(len(table.head))]
    return ["| " + " | ".join(cells) + " |" for cells in (table.head, rule, *body)]


def _end_batches(report: Json) -> list[int]:
    """The smallest and the largest batch size: what a terminal has room for."""
    found = sorted({row["batch"] for variant in report["variants"] for row in variant["latency_ms"]})
    return found if len(found) < 3 else [found[0], found[-1]]


def _reference(report: Json) -> str:
    return next(str(variant["name"]) for variant in report["variants"] if variant["role"] == "reference")


def _name(variant: Json) -> str:
    return f"{variant['name']} (chosen)" if variant["chosen"] else str(variant["name"])


def _style(variant: Json) -> str:
    return "chosen" if variant["chosen"] else str(variant["role"])


def _interval(value: Mapping[str, Any]) -> str:
    low, high = value["ci95"]
    return f"{value['mean']:.4f} [{low:.4f}, {high:.4f}]"


def _short(value: Mapping[str, Any], places: int = 3) -> str:
    mean, low, high = (f"{number:.{places}f}" for number in (value["mean"], *value["ci95"]))
    return f"{mean} [{low},{high}]"


def _ratio(compared: Mapping[str, Any] | None) -> str:
    if not compared:
        return ""
    low, high = compared["ci95"]
    return f"{compared['ratio']:.3f} [{low:.3f}, {high:.3f}]"


def _difference(compared: Mapping[str, Any] | None) -> str:
    if not compared:
        return ""
    low, high = compared["difference_ci95"]
    return f"{compared['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"


def _speedup(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    low, high = map(_digits, found["ci95"])
    return f"{_digits(found['ratio'])}x [{low}, {high}]"


def _gate_cells(gate: Json) -> tuple[str, str]:
    """Measured and required, with digits enough to tell them apart."""
    if gate["measured"] is None:
        return "not measured", f"{gate['required']:.4g}"
    return f"{gate['measured']:.4g}", f"{gate['required']:.4g}"


def _digits(value: float) -> str:
    """Three significant digits with their zeros, and never an exponent."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(places, 0)}f}"
