"""`python -m recipes recipe.yaml` runs a whole recipe; also the console command `recpress`.

Ends with 0 if the gate passes, 3 if it fails, 2 for a bad recipe or bad data (one line says what).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from compress import command
from compress.errors import RecipeError
from compress.recipe.judging import MeasureSection
from compress.stage import Stage, lineage


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Runs a recipe's stages in the order it lists them."
    parser = argparse.ArgumentParser(prog="python -m recipes", description=description)
    command.add_arguments(parser)
    parser.add_argument("--plan", action="store_true", help="say what would run and why, run nothing")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--only", metavar="A,B", help="these stages and nothing else; their inputs must be there")
    part.add_argument(
        "--from", metavar="STAGE", dest="first", help="this stage, everything after it, and what they lack"
    )
    parser.add_argument("--one-process", action="store_true", help="run the stages in this process, not in one each")
    parsed = parser.parse_args(arguments)
    return command.guarded(lambda: _run(parsed))


def _run(arguments: argparse.Namespace) -> int:
    stages = _selected(command.open_graph(arguments), arguments)
    if arguments.plan:
        return _plan(stages)
    _check_peers(stages)
    made = [command.make(each, arguments, force=arguments.force, here=arguments.one_process) for each in stages]
    passed = all(artifact.metrics.get("passed", True) for artifact in made)
    for artifact in made:
        if artifact.manifest.kind == "report":
            print((artifact.folder / "summary.txt").read_text())
            print(artifact.folder / "report.html")
    return 0 if passed else 3


def _check_peers(stages: Sequence[Stage]) -> None:
    """Other tools are there before hours of training, and not only when they are measured."""
    if any(isinstance(each.section, MeasureSection) and each.section.peers and each.why_not_done() for each in stages):
        from benchmarks.peers.environment import check_environment

        check_environment()


def _selected(stages: list[Stage], arguments: argparse.Namespace) -> list[Stage]:
    known = list(dict.fromkeys(each.name for each in stages))
    named = [*(arguments.only.split(",") if arguments.only else []), *([arguments.first] if arguments.first else [])]
    for name in named:
        if name not in known:
            raise RecipeError(f"{arguments.recipe}: no stage {name!r}; stages: {', '.join(known)}")
    if arguments.only:
        return [each for each in stages if each.name in named]
    if arguments.first:
        chosen = [each for each in stages if each.name in known[known.index(arguments.first) :]]
        missing = {source.folder for each in chosen for source in lineage(each) if source.why_not_done()}
        return [each for each in stages if each in chosen or each.folder in missing]
    return stages


def _plan(stages: Sequence[Stage]) -> int:
    """A line per stage: whether it is cached, else why it runs."""
    runs = 0
    for each in stages:
        why = each.why_not_done()
        runs += bool(why)
        print(f"{each.label:<20} {'run' if why else 'cached':<8} {each.kind:<10} {why or each.folder}")
    print(f"{runs} to run" if runs else "nothing to run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
