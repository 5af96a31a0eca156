"""Runs every row that this machine can, holds its quality and its speed to the eager teacher's, writes the report."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import environment
from benchmarks.gpu import machine, pages, verdict
from benchmarks.gpu.loaded import Loaded, reason
from benchmarks.gpu.quality import judged
from benchmarks.gpu.rows import Row, rows_of
from benchmarks.gpu.timing import Shape, timed
from benchmarks.workload import requests
from compress import artifact, command
from compress.artifact import Artifact, write_json
from compress.data.interactions import Interactions
from compress.errors import RecipeError, RecPressError
from compress.recipe.judging import MeasureSection
from compress.stage import Stage, lineage

SCHEMA_VERSION = 1

RESULTS = Path(__file__).resolve().parent.parent / "results"

BATCHES = "1,32,512"

STARTS = 0.7
"""Of the time limit, that stages, engines and compilers may have: the rest is for timings."""

Json = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Measures a recipe's models on a GPU, and says what it left out."
    )
    command.add_arguments(parser)
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the same calls where no GPU is, to try them out"
    )
    parser.add_argument("--batch-sizes", default=BATCHES, metavar=BATCHES)
    parser.add_argument(
        "--lengths",
        metavar="10,50,100",
        help="timed as well: histories of so many items each; default: deciles 1, 5 and 9 of users",
    )
    parser.add_argument("--skip", default="", metavar="WORD,WORD", help="leaves out rows that have such a word")
    parser.add_argument("--minutes", type=float, default=9, help="time limit; stages are made first, and count (9)")
    parser.add_argument("--seconds", type=float, default=8, help="time limit of one batch size and length (8)")
    parser.add_argument(
        "--as-made", action="store_true", help="takes the stages as they are, made by whatever machine and versions"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder per GPU and recipe is written here")
    parsed = parser.parse_args()
    return command.guarded(lambda: _command(parsed))


def _command(arguments: argparse.Namespace) -> int:
    """Ends with 3, as a failed gate does, unless every bar was passed."""
    started = time.monotonic()
    _check_gpu(arguments.device)
    arguments.batch_sizes = _numbers("--batch-sizes", arguments.batch_sizes)
    arguments.lengths = None if arguments.lengths is None else _numbers("--lengths", arguments.lengths)
    measures = [stage for stage in command.open_graph(arguments) if isinstance(stage.section, MeasureSection)]
    if not measures:
        raise RecipeError(f"{arguments.recipe}: measure: the recipe has none; it says which models are compared")
    if not arguments.as_made:
        for stage in lineage(measures[0]):
            command.make(stage, arguments)
    report, samples = run(measures[0], arguments, started)
    folder = arguments.results / pages.slug(report)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    np.savez_compressed(folder / "samples.npz", allow_pickle=False, **samples)
    pages.write(report, folder)
    print(pages.markdown(report))
    print(folder)
    return 0 if report["bars"] and all(bar["passed"] for bar in report["bars"]) else 3


def _check_gpu(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RecPressError(
            f"PyTorch {torch.__version__} of {sys.executable} sees no GPU; take a Python whose torch is a CUDA build, "
            "make gpu GPU_PYTHON=/path/to/python3, or try the calls out with --device cpu"
        )


def run(measure: Stage, arguments: argparse.Namespace, started: float) -> tuple[Json, dict[str, NDArray[np.float64]]]:
    """The report, and all samples in milliseconds by row, batch size and length.

    Args:
        measure: the recipe's, its inputs made: it says which models, and which is the teacher.
        started: when the command was, on the monotonic clock.
    Raises: RecPressError if the teacher does not run.

    """
    section = measure.section
    assert isinstance(section, MeasureSection), "found by its section"
    inputs = _inputs(measure, as_made=arguments.as_made)
    interactions = Interactions.of(inputs)
    limit = 60 * arguments.minutes
    peaks = machine.peaks(arguments.device)
    states = [{"after": "peaks", **machine.state(arguments.device)}]
    with tempfile.TemporaryDirectory(prefix="recpress-gpu-") as scratch:
        rows = list(rows_of(measure, inputs, arguments.device, arguments.batch_sizes, Path(scratch)))
        here, left_out = start(rows, inputs[section.export], interactions, arguments, started + STARTS * limit)
        here, failed = judged(here, interactions, max(arguments.batch_sizes))
        left_out += failed
        if not here or here[0].row is not rows[0]:
            why = next(each["why"] for each in left_out if each["row"] == rows[0].name)
            raise RecPressError(f"{rows[0].name}: everything is held to it, and it does not run: {why}")
        shapes = _shapes(arguments, interactions)
        ends = {Shape(arguments.batch_sizes[end], None) for end in (0, -1)}  # timed even beyond the time limit
        samples: dict[tuple[str, Shape], NDArray[np.float64]] = {}
        with tqdm(shapes, desc="timing", disable=None) as progress:
            for place, shape in enumerate(progress):
                left = started + limit - time.monotonic()
                if left < 0 and shape not in ends:
                    left_out.append({"row": f"{shape}, all rows", "why": f"--minutes {arguments.minutes:g} were over"})
                    continue
                seconds = min(arguments.seconds, max(1.0, left / (len(shapes) - place) / 2))
                found, failed = timed(here, inputs[section.export], interactions, shape, seconds, peaks)
                samples |= {(name, shape): values for name, values in found.items()}
                left_out += failed
                states.append({"after": str(shape), **machine.state(arguments.device)})
        report: Json = {
            "schema_version": SCHEMA_VERSION,
            "recipe": measure.folder.parent.parent.name,
            "commit": environment.commit(),
            "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
            "machine": machine.describe(arguments.device),
            "states": states,
            "peaks": peaks,
            "users": int(interactions.within_reach("test").sum()),
            "reference": rows[0].name,
            "rows": [loaded.facts for loaded in here],
            "left_out": left_out,
        }
    report["bars"], report["beside"] = verdict.bars(report, samples, arguments.batch_sizes)
    report["int8"] = verdict.integers(report, samples)
    report["seconds"] = round(time.monotonic() - started, 1)
    return report, {f"{name}/{shape.key}": values for (name, shape), values in samples.items()}


def _inputs(measure: Stage, *, as_made: bool) -> dict[str, Artifact]:
    if as_made:
        return {name: artifact.read(stage.folder) for name, stage in measure.inputs.items()}
    return measure.finished_inputs()


def start(
    rows: list[Row], export: Artifact, interactions: Interactions, arguments: argparse.Namespace, deadline: float
) -> tuple[list[Loaded], list[Json]]:
    """The rows that run here, started one after the other, and why the others do not."""
    here: list[Loaded] = []
    left_out: list[Json] = []
    asked = requests(interactions, 1)[0]
    skipped = [word for word in arguments.skip.split(",") if word]
    slowest_last = sorted(rows, key=lambda row: "compiled" in row.how)
    with tqdm(slowest_last, desc="starting", disable=None) as progress:
        for row in progress:
            progress.set_postfix_str(row.name)
            if any(word in row.name for word in skipped):
                left_out.append({"row": row.name, "why": f"--skip {arguments.skip}"})
            elif here and time.monotonic() > deadline:
                why = f"no time left: run it again, the stages are made now, or raise --minutes {arguments.minutes:g}"
                left_out.append({"row": row.name, "why": why})
            else:
                try:
                    here.append(Loaded(row, export.path(row.bundle), arguments.device, asked))
                except Exception as error:  # kernels, compilers, libraries, memory: whatever a machine may lack
                    left_out.append({"row": row.name, "why": reason(error)})
    return sorted(here, key=lambda loaded: rows.index(loaded.row)), left_out


def _shapes(arguments: argparse.Namespace, interactions: Interactions) -> list[Shape]:
    """Batches of histories as they are, which the verdict is about, its two ends first; then the sweep over lengths."""
    lengths = arguments.lengths
    if lengths is None:
        known = interactions.history_lengths("test", interactions.users("test"))
        lengths = sorted({max(1, int(length)) for length in np.quantile(known, (0.1, 0.5, 0.9))})
    sizes = arguments.batch_sizes
    first = dict.fromkeys((sizes[0], sizes[-1], *sizes))
    return [Shape(batch, None) for batch in first] + [Shape(batch, length) for length in lengths for batch in sizes]


def _numbers(option: str, text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.isdecimal()]
    if not text or len(numbers) != len(text.split(",")) or min(numbers) < 1:
        raise RecipeError(f"{option} {text}: write whole numbers from 1 with commas between, like 1,32,512")
    return sorted(set(numbers))
