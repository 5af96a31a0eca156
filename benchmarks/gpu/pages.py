"""What was measured on a GPU, for people: a report's pages, and the table of all reports in README.md and docs/gpu.md.

`python -m benchmarks.gpu.pages` writes that table anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import Row, Table, digits
from benchmarks.gpu.verdict import KEPT
from benchmarks.pages import markdown_table, rendered
from compress.artifact import write_atomically
from compress.provenance import ROOT

Json = dict[str, Any]

PAGES = (ROOT / "README.md", ROOT / "docs" / "gpu.md")
BEGIN, END = "<!-- GPUs: python -m benchmarks.gpu.pages -->", "<!-- end of GPUs -->"
NOTHING = "**Not yet run on a GPU**: no result is on record. `make gpu` makes one in `benchmarks/results/`."

NOT_REPLAYED = ", not recorded"
"""Behind the name of a row whose engine holds something that no CUDA graph may."""

HOW = (
    "Everything is held to the first row: the teacher's Hugging Face model in eager PyTorch, float32 without TF32.",
    "p50 and p95: wall clock of a call, arrays in and arrays out, both transfers included; warm-up, each timed request "
    "asked once before, then all rows in turn on the same real histories. Samples are in samples.npz.",
    "Device: mean of 20 runs in a row, inputs and outputs staying on the GPU, by CUDA events; of ONNX Runtime, whose "
    "stream is its own, by the clock. CUDA graphs: one per shape of call, recorded once and replayed; a row that could "
    "not be recorded says so.",
    "Speedups are ratios of medians with a bootstrap 95% interval. NDCG@10 is of test users, its ratio paired, users "
    "resampled.",
    "Of peak: multiply-adds of a call, two operations each, over device time and the fastest product of large square "
    "matrices in the row's precision. Of copy: its weights' bytes, read once, over device time and the fastest copy; "
    "what stays in the GPU's cache may go beyond it.",
    "Prepare: building an engine, lowering a graph. Load: from files to a runtime, libraries and CUDA being there. "
    "First request: compiling, choosing kernels and recording included. Memory: what stays taken on the GPU after it; "
    "at most: what answering took besides.",
)


def write(report: Json, folder: Path) -> None:
    """Writes report.md and report.html."""
    write_atomically(folder / "report.md", markdown(report))
    write_atomically(folder / "report.html", html(report))


def markdown(report: Json) -> str:
    lines = [f"# {title(report)}", "", headline(report), "", f"**{verdict(report)}**", ""]
    for table in (*([_bars_table(report)] if report["bars"] else []), *tables(report)):
        lines += [*markdown_table(table), ""]
    lines += ["## How it was measured", "", *(f"- {sentence}" for sentence in HOW)]
    return "\n".join(lines) + "\n"


def html(report: Json) -> str:
    """One file that needs no other."""
    bars = report["bars"]
    return rendered(
        report={
            "recipe": title(report),
            "gates": bars,
            "passed": bool(bars) and all(bar["passed"] for bar in bars),
            "variants": [],
            "warnings": warnings(report),
            "choice": {"int8": None},
        },
        headline=f" · {headline(report)}",
        verdict=verdict(report),
        gates=[(bar | {"note": bar["row"]}, _interval(bar), f"{bar['required']:g}x") for bar in bars],
        charts={},
        tables=tables(report),
        how=HOW,
    )


def title(report: Json) -> str:
    machine = report["machine"]
    return f"{report['recipe']} on {machine.get('gpu', 'no GPU')}"


def headline(report: Json) -> str:
    what = f"{report['users']:,} test users · `{report['command']}`"
    return f"{what} · commit {report['commit']} · {report['seconds']:.0f} s"


def verdict(report: Json) -> str:
    bars = report["bars"]
    if report["machine"]["device"] != "cuda":
        return "NOT A RESULT: tried out without a GPU"
    if not bars:
        return f"NO VERDICT: no student that keeps {KEPT:.0%} of NDCG@10 was timed beside the teacher"
    failed = sum(not bar["passed"] for bar in bars)
    return f"FAILED: {failed} of {len(bars)} bars" if failed else f"PASSED: {len(bars)} of {len(bars)} bars"


def warnings(report: Json) -> list[str]:
    """What a reader must know before the numbers."""
    return [f"{len(report['left_out'])} rows were left out; the last tables say why"] if report["left_out"] else []


def tables(report: Json) -> list[Table]:
    """Every number of a report but the bars'."""
    found = [
        _quality_table(report),
        *(_latency_table(report, batch, length) for batch, length in _shapes(report)),
        _beside_table(report),
        _integers_table(report),
        _start_table(report),
        _peaks_table(report),
        _left_out_table(report),
        _machine_table(report),
    ]
    return [table for table in found if table.rows]


PASSED = {True: "passed", False: "**failed**"}
PAYS = {True: "yes", False: "no", None: "not clear"}


def _bars_table(report: Json) -> Table:
    quality = {row["name"]: row["vs_reference"] for row in report["rows"]}
    rows = []
    for bar in report["bars"]:
        against = quality[bar["row"]]
        ranked = [_plain_interval(against["ndcg@10"]) if against["ndcg@10"] else "", f"{against['overlap@10']:.3f}"]
        rows.append(
            Row([bar["name"], bar["row"], f"{bar['required']:g}x", _interval(bar), PASSED[bar["passed"]], *ranked])
        )
    head = ["bar", "row", "at least", "measured", "", "NDCG@10, ratio", "top 10 shared"]
    note = (
        "A bar is passed on the low end of its interval. Held to them is the student's fastest row of those that keep "
        f"{KEPT:.0%} of the first row's NDCG@10."
    )
    return Table("Verdict", head, rows, note, words=2)


def _quality_table(report: Json) -> Table:
    rows = []
    for row in report["rows"]:
        mean, against = row["ndcg@10"], row["vs_reference"]
        low, high = mean["ci95"]
        own = row["name"] == report["reference"]  # a comparison with itself is no measurement
        rows.append(
            Row(
                [
                    row["name"],
                    f"{mean['mean']:.4f} [{low:.4f}, {high:.4f}]",
                    "" if own or not against["ndcg@10"] else _plain_interval(against["ndcg@10"]),
                    "" if own else f"{against['overlap@10']:.3f}",
                ],
                _style(report, row),
            )
        )
    return Table("Quality on test users", ["row", "NDCG@10", "ratio to the first", "top 10 shared"], rows)


def _latency_table(report: Json, batch: int, length: int | None) -> Table:
    rows = []
    for row in report["rows"]:
        own = row["name"] == report["reference"]
        for timing in row["timings"]:
            if (timing["batch"], timing["length"]) == (batch, length):
                rows.append(
                    Row(
                        [
                            row["name"] + (NOT_REPLAYED if timing["replayed"] is False else ""),
                            digits(timing["p50_ms"]),
                            digits(timing["p95_ms"]),
                            digits(timing["device_ms"]),
                            f"{timing['users_per_second']:,.0f}",
                            _interval(timing["speedup"]) if timing["speedup"] and not own else "",
                            _percent(timing["peak_share"]),
                            _percent(timing["copy_share"]),
                            _mebibytes(timing["peak_bytes"]),
                        ],
                        _style(report, row),
                    )
                )
    lengths = f", histories of {length}" if length else ", histories as they are"
    head = ["row", "p50 ms", "p95 ms", "device ms", "users/s", "over the first", "of peak", "of copy", "MiB at most"]
    return Table(f"Batch {batch}{lengths}", head, rows)


def _beside_table(report: Json) -> Table:
    rows = [Row([each["row"], each["over"], str(each["batch"]), _interval(each)]) for each in report["beside"]]
    note = (
        "The teacher's fastest row of each kind: what a smaller model is worth where the runtime is chosen well anyway."
    )
    return Table("Beside the teacher in other runtimes", ["row", "over", "batch", "times faster"], rows, note, words=2)


def _integers_table(report: Json) -> Table:
    rows = [
        Row(
            [
                each["row"],
                each["over"],
                str(each["batch"]),
                str(each["length"] or "any"),
                _interval(each),
                f"{digits(each['bytes_ratio'])}x",
                PAYS[each["pays"]],
            ]
        )
        for each in report["int8"]
    ]
    head = ["row", "over", "batch", "length", "times faster", "times smaller", "pays"]
    note = "The same weights in half precision, run the same way. It pays if it is 1.05 times faster for certain."
    return Table("Does INT8 pay here?", head, rows, note, words=2)


def _start_table(report: Json) -> Table:
    rows = [
        Row(
            [
                row["name"],
                *(f"{row[key]:,.0f}" for key in ("prepare_ms", "load_ms", "first_request_ms")),
                *(_mebibytes(row[key]) for key in ("weights_bytes", "memory_bytes")),
            ],
            _style(report, row),
        )
        for row in report["rows"]
    ]
    head = ["row", "prepare ms", "load ms", "first request ms", "weights MiB", "memory MiB"]
    return Table("Start and memory", head, rows)


def _peaks_table(report: Json) -> Table:
    peaks = report["peaks"]
    rows = [Row([f"product, {name}", f"{digits(value)} TFLOP/s"]) for name, value in peaks["tflops"].items()]
    rows.append(Row(["copy", f"{digits(peaks['copy_gb_per_s'])} GB/s"]))
    return Table("What the machine can do", ["measured", ""], rows)


def _left_out_table(report: Json) -> Table:
    rows = [Row([each["row"], each["why"]]) for each in report["left_out"]]
    return Table("Left out", ["row", "why"], rows, words=2)


def _machine_table(report: Json) -> Table:
    facts = {key: value for key, value in report["machine"].items() if key != "versions"} | report["machine"][
        "versions"
    ]
    for state in report["states"]:
        said = ", ".join(f"{key} {value}" for key, value in state.items() if key != "after")
        facts |= {f"after {state['after']}": said} if said else {}
    return Table("Machine", ["", ""], [Row([key, str(value)]) for key, value in facts.items()], words=2)


def _shapes(report: Json) -> list[tuple[int, int | None]]:
    """In the order in which they were timed."""
    cells = [(timing["batch"], timing["length"]) for row in report["rows"] for timing in row["timings"]]
    return sorted(set(cells), key=lambda cell: (cell[1] or 0, cell[0]))


def _style(report: Json, row: Json) -> str:
    if row["name"] in {bar["row"] for bar in report["bars"]}:
        return "chosen"
    if row["name"] == report["reference"]:
        return "reference"
    return "teacher" if row["weights_of"] == report["rows"][0]["model"] else "candidate"


def _interval(value: Mapping[str, Any]) -> str:
    if value["ci95"] is None:
        return "not timed"
    low, high = map(digits, value["ci95"])
    return f"{digits(value.get('ratio', value.get('measured')))}x [{low}, {high}]"


def _plain_interval(value: Mapping[str, Any]) -> str:
    low, high = value["ci95"]
    return f"{value['ratio']:.3f} [{low:.3f}, {high:.3f}]"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else digits(count / 2**20)


def summary(results: Path) -> str:
    """All reports of GPUs below a folder: of each the first row, the fastest of each model, and the verdict."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*/*/report.json"))]
    parts = [_summarised(report) for report in found if report["machine"]["device"] == "cuda"]
    return "\n\n".join(parts) or NOTHING


def _summarised(report: Json) -> str:
    shapes = [shape for shape in _shapes(report) if shape[1] is None]
    ends = list(dict.fromkeys((shapes[0], shapes[-1])))
    named = [report["rows"][0], *_fastest(report["rows"][1:], ends)]
    rows = []
    for row in named:
        timings = {(timing["batch"], timing["length"]): timing for timing in row["timings"]}
        against = row["vs_reference"]["ndcg@10"]
        cells = [row["name"], "" if row is named[0] or not against else _plain_interval(against)]
        for shape in ends:
            cells += [digits(timings[shape]["p50_ms"]), f"{digits(timings[shape]['speedup']['ratio'])}x"]
        rows.append(Row([*cells, f"{timings[ends[-1]]['users_per_second']:,.0f}"]))
    head = ["row", "NDCG@10, ratio"]
    for batch, _ in ends:
        head += [f"p50 ms, batch {batch}", "faster"]
    table = Table(title(report), [*head, f"users/s, batch {ends[-1][0]}"], rows)
    where = f"benchmarks/results/{slug(report)}/report.md"
    note = f"{verdict(report)}. `{report['command']}` at {report['commit']}; all rows: [{where}]({{base}}{where})"
    return "\n".join([*markdown_table(table, level=3), "", note])


def _fastest(rows: Sequence[Json], shapes: Sequence[tuple[int, int | None]]) -> list[Json]:
    """Of each model, by its p50 for the first of these shapes, of those that were timed for all."""
    best: dict[str, tuple[float, Json]] = {}
    for row in rows:
        p50 = {(timing["batch"], timing["length"]): timing["p50_ms"] for timing in row["timings"]}
        if all(shape in p50 for shape in shapes):
            known = best.get(row["weights_of"])
            if known is None or p50[shapes[0]] < known[0]:
                best[row["weights_of"]] = (p50[shapes[0]], row)
    return [row for _, row in best.values()]


def slug(report: Json) -> str:
    """Where a report lies below the results: a folder per GPU, in it one per recipe."""
    gpu = report["machine"].get("gpu", report["machine"]["device"])
    return f"{'-'.join(''.join(sign if sign.isalnum() else ' ' for sign in gpu.lower()).split())}/{report['recipe']}"


def with_summary(page: str, results: Path, base: str) -> str:
    """A page whose part between the marks is the summary. Args: base: from the page to the root, for links."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{summary(results).replace('{base}', base)}\n{END}{after}"


def main() -> int:
    from benchmarks.gpu.run import RESULTS

    description = "Writes the table of all reports anew, in README.md and docs/gpu.md."
    argparse.ArgumentParser(prog="python -m benchmarks.gpu.pages", description=description).parse_args()

    for page in PAGES:
        base = "../" * (len(page.relative_to(ROOT).parts) - 1)
        write_atomically(page, with_summary(page.read_text(encoding="utf-8"), RESULTS, base))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
