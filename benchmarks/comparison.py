"""Two reports side by side, as a markdown table for a pull request."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import model_rows
from compress.errors import ArtifactError, GateFailed

Json = dict[str, Any]
Measure = Callable[[Json], float | None]

REQUIRED = ("schema_version", "recipe", "commit", "environment", "variants", "gates", "passed")


def main(arguments: Sequence[str]) -> int:
    """Raises: ArtifactError if a file is no report, GateFailed if the new report's gates failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="Compares two reports.")
    parser.add_argument("new", type=Path, metavar="NEW", help="a report.json, or a folder that holds one")
    parser.add_argument("--against", type=Path, required=True, metavar="OLD", help="the report to compare with")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the comparison there as well")
    options = parser.parse_args(arguments)
    new, old = read(options.new), read(options.against)
    page = compare_reports(new, old)
    print(page, end="")
    if options.markdown:
        try:
            options.markdown.write_text(page, encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"--markdown {options.markdown}: {error.strerror}") from None
    if not new["passed"]:
        failed = "; ".join(gate["name"] for gate in new["gates"] if not gate["passed"])
        raise GateFailed(f"{options.new}: the gate failed: {failed}")
    return 0


def read(path: Path) -> Json:
    """The report in a file or folder. Raises ArtifactError if there is none."""
    file = path / "report.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{file}: {error.strerror}; name a report.json or a folder that holds one") from None
    except ValueError:
        raise ArtifactError(f"{file}: not JSON; name a report.json or a folder that holds one") from None
    missing = [key for key in REQUIRED if not isinstance(content, dict) or key not in content]
    if missing:
        raise ArtifactError(f"{file}: no report of a recipe (as one of `make gpu`): {missing[0]} is missing")
    if content["schema_version"] != 1:
        raise ArtifactError(f"{file}: schema {content['schema_version']}, this version compares 1; report again")
    return dict(content)


def compare_reports(new: Json, old: Json) -> str:
    """Old -> new of every variant and gate, in markdown."""
    lines = [
        f"### {new['recipe']}: {old['commit']} → {new['commit']}, "
        f"gate {_verdict(old['passed'])} → {_verdict(new['passed'])}",
        "",
        *_caveats(new, old),
        *_variants_table(new, old),
        "",
        *_gates_table(new, old),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _caveats(new: Json, old: Json) -> list[str]:
    """Why some of the differences may not be the code's."""
    machines = [
        f"{report['environment'].get('cpu')}, {report['environment'].get('threads')} threads" for report in (old, new)
    ]
    notes = []
    if new["recipe"] != old["recipe"]:
        notes.append(f"Two recipes: {old['recipe']} and {new['recipe']}.")
    if machines[0] != machines[1]:
        notes.append(f"Two machines ({machines[0]}; {machines[1]}): compare speedups, not milliseconds.")
    return [line for note in notes for line in (f"> {note}", "")]


def _variants_table(new: Json, old: Json) -> list[str]:
    batches = sorted(
        {row["batch"] for report in (new, old) for variant in report["variants"] for row in model_rows(variant)}
    )
    columns: list[tuple[str, Measure, str]] = [
        ("NDCG@10", lambda variant: variant["quality"]["ndcg@10"]["mean"], ".4f"),
        ("overlap@10", lambda variant: variant["vs_teacher"]["overlap@10"], ".3f"),
        *((f"p50 ms, batch {batch}", _median(batch), ".4g") for batch in batches),
        ("file MB", lambda variant: variant["size_bytes"] / 1e6, ".4g"),
    ]
    if all("catalogue" in variant for report in (new, old) for variant in report["variants"]):  # newer than schema 1
        columns += [
            ("coverage@10", lambda variant: variant["catalogue"]["coverage@10"], ".3f"),
            ("popularity drift", lambda variant: variant["vs_teacher"]["popularity_drift"], "+.3f"),
        ]
    before = {variant["name"]: variant for variant in old["variants"]}
    after = {variant["name"]: variant for variant in new["variants"]}
    rows = []
    for name in (*after, *(name for name in before if name not in after)):
        there, here = before.get(name), after.get(name)
        cells = [_change(there and measure(there), here and measure(here), form) for _, measure, form in columns]
        rows.append([_named(name, there, here), *cells])
    return _table(["variant", *(title for title, _, _ in columns)], rows)


def _gates_table(new: Json, old: Json) -> list[str]:
    before = {gate["name"]: gate for gate in old["gates"]}
    after = {gate["name"]: gate for gate in new["gates"]}
    rows = [
        [name, f"{gate['required']:.4g}", _outcome(before.get(name)), _outcome(after.get(name))]
        for name, gate in (after | {name: gate for name, gate in before.items() if name not in after}).items()
    ]
    return _table(["gate", "at least", "old", "new"], rows) if rows else ["No gates."]


def _named(name: str, there: Json | None, here: Json | None) -> str:
    was, is_now = bool(there and there["chosen"]), bool(here and here["chosen"])
    mark = {(True, True): " (chosen)", (False, True): " (newly chosen)", (True, False): " (no longer chosen)"}
    return name + mark.get((was, is_now), "")


def _median(batch: int) -> Measure:
    return lambda variant: next((row["p50"] for row in model_rows(variant) if row["batch"] == batch), None)


def _change(before: float | None, after: float | None, form: str) -> str:
    if after is None:
        return "" if before is None else f"{before:{form}} → gone"
    if before is None:
        return f"{after:{form}} (new)"
    signed = form.startswith("+")  # a difference, which may be near zero: a percentage of it says nothing
    percent = f" ({after / before - 1:+.1%})" if before and not signed else ""
    return f"{before:{form}} → {after:{form}}{percent}"


def _outcome(gate: Json | None) -> str:
    if gate is None:
        return ""
    measured = "not measured" if gate["measured"] is None else f"{gate['measured']:.4g}"
    return f"{measured} {_verdict(gate['passed'])}"


def _verdict(passed: bool) -> str:
    return "passed" if passed else "**failed**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
