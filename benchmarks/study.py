"""A study of losses in two rounds: every way to teach on one seed, then the best ways on several seeds and data sets.

`python -m benchmarks.study SCREENING.yaml --finals A.yaml B.yaml` runs the screening recipe, ranks its candidates on
validation users, and writes and runs for each final recipe one with the best of them in place of its stage `student`.
All of it resumes like any run: what is there is not made again.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from compress import artifact, recipe
from compress.artifact import write_atomically, write_json
from compress.command import guarded
from compress.errors import RecipeError
from compress.recipe.training import DistillSection

TEMPLATE = "student"
"""The stage of a final recipe that every way takes the place of."""

GOOD = 0.98
"""Of the best validation NDCG@10: who shares more of the teacher's top 10 but ranks worse than this is no winner."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """A list of losses, and what it did in the first round, on validation users."""

    name: str
    losses: Sequence[Json]
    ndcg: float
    overlap: float
    """Share of the teacher's top 10."""


def screened(path: Path, runs: Path) -> list[Way]:
    """The ways of a screening recipe that was run, the best first, judged on validation users of its first seed.

    The more of the teacher's top 10 the better, among those that rank `GOOD`; stages with the same losses are one way.
    """
    parsed = recipe.load(path)
    found: dict[str, Way] = {}
    for name, stage in parsed.stages.items():
        if isinstance(stage, DistillSection):
            losses = [loss.model_dump(mode="json", exclude_unset=True) for loss in stage.losses]
            made = artifact.read(runs / parsed.name / f"seed-{parsed.seeds[0]}" / name).metrics
            found.setdefault(json.dumps(losses), Way(name, losses, made["ndcg@10"], made["overlap@10"]))
    least = GOOD * max(way.ndcg for way in found.values())
    return sorted(found.values(), key=lambda way: (way.ndcg < least, -way.overlap))


def final(path: Path, ways: Sequence[Way], folder: Path) -> tuple[Path, list[Way], list[str]]:
    """Writes the recipe `path` with ways in place of its student into `folder`.

    Returns: where, the ways in it, and a line for each that does not fit its models: losses name layers.
    """
    content = _located(path)
    if TEMPLATE not in content.get("stages", {}):
        raise RecipeError(f"{path}: stages: a final recipe has a stage {TEMPLATE!r}, whose losses the study exchanges")
    fit: list[Way] = []
    misfits: list[str] = []
    target = folder / path.name
    for way in ways:
        write_atomically(target, yaml.safe_dump(_with(content, [*fit, way]), sort_keys=False))
        try:
            recipe.load(target)
            fit.append(way)
        except RecipeError as error:
            misfits.append(f"{way.name}: {error}")
    if not fit:
        raise RecipeError(f"{path}: no way of the study fits: {misfits[0] if misfits else 'there are none'}")
    write_atomically(target, yaml.safe_dump(_with(content, fit), sort_keys=False))
    return target, fit, misfits


def _located(path: Path) -> Json:
    """A recipe as written, but for paths, which are relative to its folder: what is made of it lies in another."""
    content: Json = yaml.safe_load(path.read_text(encoding="utf-8"))
    parsed = recipe.load(path)
    for written, section in ((content, {"data": parsed.data}), (content["stages"], parsed.stages)):
        for name in written.keys() & section.keys():
            for keys, place in section[name].paths():
                node = written[name]
                for key in keys[:-1]:
                    node = node[key]
                node[keys[-1]] = str(place)
    return content


def _with(content: Json, ways: Sequence[Way]) -> Json:
    """A recipe whose student became one stage a way, there and wherever a list names it."""
    names = [way.name for way in ways]

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [each for one in value for each in (names if one == TEMPLATE else [named(one)])]
        return {key: named(one) for key, one in value.items()} if isinstance(value, dict) else value

    stages: Json = {}
    for name, stage in content["stages"].items():
        if name == TEMPLATE:
            stages |= {way.name: {**copy.deepcopy(stage), "losses": list(way.losses)} for way in ways}
        else:
            stages[name] = named(stage)
    return {**named(content), "stages": stages}


def rows(ways: Sequence[Way], report: Mapping[str, Any]) -> list[Json]:
    """Of each way in a report: against its teacher and its control, both paired over users and seeds."""
    by_name = {variant["name"]: variant for variant in report["variants"]}
    return [
        {
            "way": way.name,
            "losses": list(way.losses),
            "screened": {"ndcg@10": way.ndcg, "overlap@10": way.overlap},
            "overlap@10": by_name[way.name]["vs_teacher"]["overlap@10"],
            "popularity_drift": by_name[way.name]["vs_teacher"]["popularity_drift"],
            "vs_teacher": by_name[way.name]["vs_teacher"]["ndcg@10"],
            "vs_control": (by_name[way.name]["vs_control"] or {}).get("ndcg@10"),
            "training": by_name[way.name]["training"],
        }
        for way in ways
    ]


def table(name: str, found: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of `rows`."""

    def ratio(compared: Mapping[str, Any] | None) -> str:
        return "" if compared is None else "{:.3f} [{:.3f}, {:.3f}]".format(compared["ratio"], *compared["ci95"])

    lines = [
        f"| {name} | top 10 shared | NDCG@10 / teacher's | NDCG@10 / control's | popularity drift |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        lines.append(
            f"| {row['way']} | {row['overlap@10']:.3f} | {ratio(row['vs_teacher'])} | {ratio(row['vs_control'])} "
            f"| {row['popularity_drift']:+.4f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ends as a run does: with 0, with 2 and one line where a recipe is bad; a failed gate stops nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("screening", type=Path, metavar="SCREENING.yaml")
    parser.add_argument("--finals", type=Path, nargs="+", default=[], metavar="RECIPE.yaml")
    parser.add_argument("--best", type=int, default=4, help="how many ways go on (default: 4)")
    parser.add_argument("--seeds", default="0,1,2", help="of the finals (default: 0,1,2)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all artifacts (default: runs)")
    parsed = parser.parse_args(arguments)
    return guarded(lambda: _study(parsed))


def _study(arguments: argparse.Namespace) -> int:
    if arguments.best < 1:
        raise RecipeError(f"--best {arguments.best}: at least one way goes on")
    _run(arguments.screening, arguments.runs)
    ways = screened(arguments.screening, arguments.runs)
    folder = arguments.runs / recipe.load(arguments.screening).name / "study"
    folder.mkdir(parents=True, exist_ok=True)
    finals: dict[str, list[Json]] = {}
    pages = ["| way | validation NDCG@10 | top 10 shared |", "|---|---|---|"]
    pages += [f"| {way.name} | {way.ndcg:.4f} | {way.overlap:.3f} |" for way in ways]
    for path in arguments.finals:
        target, fit, misfits = final(path, ways[: arguments.best], folder)
        _run(target, arguments.runs, "--seeds", arguments.seeds)
        name = recipe.load(target).name
        report = json.loads((arguments.runs / name / "report" / "report.json").read_text(encoding="utf-8"))
        finals[name] = rows(fit, report)
        pages += ["", table(name, finals[name]), *(f"\nleft out: {line}" for line in misfits)]
    write_json(folder / "study.json", {"screening": [asdict(way) for way in ways], "finals": finals})
    write_atomically(folder / "study.md", "\n".join(pages) + "\n")
    print("\n".join(pages))
    print(folder / "study.md")
    return 0


def _run(path: Path, runs: Path, *more: str) -> None:
    """Raises SystemExit with a run's status unless it ended, be it with a failed gate."""
    ended = subprocess.run([sys.executable, "-m", "recipes", str(path), "--runs", str(runs), *more]).returncode
    if ended not in (0, 3):
        raise SystemExit(ended)


if __name__ == "__main__":
    sys.exit(main())
