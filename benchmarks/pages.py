"""A report for people: report.md, report.html and the terminal's summary.txt, all from the report's own numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cells
from benchmarks.cells import Table
from benchmarks.tables import gates_table, main_scope, model_rows, tables
from compress.artifact import write_atomically

Json = dict[str, Any]

WIDTH = 100
"""Columns of a terminal."""

SPLITS = {
    "leave-one-out": "leave-one-out by time, a user's last item",
    "time": "the latest interactions of all",
    "given": "the given split",
}

HOW = (
    "Intervals are bootstrap 95% intervals over users; a comparison is paired, and a user's seeds are resampled "
    "together.",
    "Latency: warm-up, then the variants in turn on the same real histories, all samples kept. Model time is the "
    "runtime alone; request time goes from raw item ids to ranked item ids. A speedup is a ratio of one run's medians, "
    "over several seeds the geometric mean of each run's.",
    "Share of peak: the multiply-adds of a call, two operations each, over the median time and the machine's fastest "
    "measured float32 matrix product; INT8 kernels may go beyond it.",
)


def _how(report: Json) -> tuple[str, ...]:
    """How the numbers came about, in sentences."""
    data = report["data"]
    return (
        f"Quality: {SPLITS[data['split']]} against the {data['judged_on']}, seen items filtered, on the exported file "
        "in the runtime that serves it. Choices are made on validation items; test items are judged once.",
        *HOW,
    )


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
            f"ms: p50 model time, of other tools the whole request. x: over {_reference(report)}.",
            WIDTH,
        ),
    ]
    for warning in report["warnings"]:
        lines += ["", *textwrap.wrap(f"WARNING: {warning}", WIDTH)]
    if report["choice"]["int8"]:
        lines += ["", *textwrap.wrap(report["choice"]["int8"], WIDTH)]
    lines += ["", *_terminal_gates(report["gates"]), verdict(report)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def markdown(report: Json) -> str:
    """GitHub's markdown, without charts."""
    lines = [f"# {report['recipe']}", "", headline(report), "", f"**{verdict(report)}**", ""]
    lines += [line for warning in report["warnings"] for line in (f"> **Warning:** {warning}", "")]
    lines += [report["choice"]["int8"], ""] if report["choice"]["int8"] else []
    for table in (*([gates_table(report)] if report["gates"] else []), *tables(report)):
        lines += [*markdown_table(table), ""]
    lines += ["## How it was measured", "", *(f"- {sentence}" for sentence in _how(report))]
    return "\n".join(lines) + "\n"


def html(report: Json) -> str:
    """One file that needs no other."""
    from markupsafe import Markup

    from benchmarks import plots

    charts = {
        "Quality and latency": plots.quality_against_latency(report),
        "Latency percentiles": plots.latency_percentiles(report),
        "File size": plots.file_sizes(report),
        **({"Learning curves": plots.learning_curves(report)} if plots.is_followed(report) else {}),
        **({"What stays of each layer": plots.kept_layers(report)} if plots.is_pruned(report) else {}),
    }
    return rendered(
        report=report,
        headline=headline(report),
        verdict=verdict(report),
        gates=[(gate, *cells.gate(gate)) for gate in report["gates"]],
        charts={title: Markup(svg) for title, svg in charts.items()},
        tables=tables(report),
        how=_how(report),
    )


def rendered(**parts: Any) -> str:
    """The template of all reports, filled in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template("report.html.jinja").render(**parts)


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


def _terminal_row(report: Json, variant: Json, batches: Sequence[int]) -> list[str]:
    medians = {row["batch"]: row["p50"] for row in model_rows(variant)}
    gained = {
        row["batch"]: row["ratio"]
        for row in variant["speedup"]
        if row["scope"] == main_scope(variant) and row["over"] == _reference(report)
    }
    teacher = variant["vs_teacher"]
    same = variant["role"] == "teacher"
    return [
        ("* " if variant["chosen"] else "  ") + variant["name"],
        _short(variant["quality"]["ndcg@10"]),
        "" if same or not teacher["ndcg@10"] else _short(teacher["ndcg@10"] | {"mean": teacher["ndcg@10"]["ratio"]}, 2),
        "" if same else f"{teacher['overlap@10']:.2f}",
        *(cells.digits(medians[batch]) if batch in medians else "" for batch in batches),
        *(f"{cells.digits(gained[batch])}x" if batch in gained else "" for batch in batches),
        cells.digits(variant["size_bytes"] / 1e6),
    ]


def _terminal_gates(gates: Iterable[Json]) -> list[str]:
    lines = []
    for gate in gates:
        measured, required = cells.gate(gate)
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


def markdown_table(table: Table, level: int = 2) -> list[str]:
    """Lines of a heading, the table and its note."""
    body = [[cell.replace("|", "\\|") for cell in row.cells] for row in table.rows]
    rule = ["---" if column < table.words else "---:" for column in range(len(table.head))]
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.head, rule, *body)]
    return [f"{'#' * level} {table.title}", "", *lines, *(["", table.note] if table.note else [])]


def _end_batches(report: Json) -> list[int]:
    """The smallest and the largest batch size: what a terminal has room for."""
    found = sorted({row["batch"] for variant in report["variants"] for row in variant["latency_ms"]})
    return found if len(found) < 3 else [found[0], found[-1]]


def _reference(report: Json) -> str:
    return next(str(variant["name"]) for variant in report["variants"] if variant["role"] == "reference")


def _short(value: Mapping[str, Any], places: int = 3) -> str:
    mean, low, high = (f"{number:.{places}f}" for number in (value["mean"], *value["ci95"]))
    return f"{mean} [{low},{high}]"
