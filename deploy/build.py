"""Builds TensorRT engines of exported bundles: strongly typed networks, a profile over every dynamic axis.

`python -m deploy.build recipe.yaml`; with `--triton DIR` a model repository is written instead, of the engines that are
there already and of graphs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.artifact import Artifact, digest
from compress.command import Option, main
from compress.errors import ParityError, RecipeError
from compress.recipe.serving import BuildSection
from compress.stage import Stage, Workspace
from deploy import parity
from deploy.bundle import ROWS, STANDARD
from deploy.engine import Engine, Engines, Sizes

if TYPE_CHECKING:  # loaded when there is work
    from compress.data.interactions import Interactions
    from compress.methods.linear_rounding import Maps
    from deploy.recommender import Recommender
    from deploy.runtimes.tensorrt_api import TensorRt

TABLE = "engines.md"

WARM_UPS = 3
"""Requests that a server answers before the first that waits."""

SHARED = 0.9
"""Of its top k, that a model in fewer bits must at least share with itself: bf16 shares .98 and more."""

SAME = 0.99
"""Of users, that get the very top k of fake quantization from integers with float32 around them."""


def run(section: BuildSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes a folder per model (lowered graphs, engines, `engine.json`) and a table of all, which it prints.

    Returns: how many, their bytes, parity.

    Raises: RecipeError if no installed package builds what is asked; BuildError if TensorRT takes a graph for none of
    its own; ParityError if one answers otherwise.
    """
    from tqdm import tqdm

    from compress.data.interactions import Interactions
    from deploy.runtimes.tensorrt_api import choose

    where = f"stages.{workspace.folder.name}"
    here = device_capability()
    targets = section.compute_capabilities or ((here,) if here else ())
    if not targets:
        raise RecipeError(f'{where}: no GPU here: say which it is for, compute_capabilities: ["8.0", "8.6"]')
    builder = choose(section.builder, targets, here, where)
    exported, interactions = inputs[section.input], Interactions.of(inputs)
    models = section.models or tuple(exported.metrics)
    metrics: dict[str, Any] = {"engines": 0, "size_bytes": 0}
    found = []
    with tqdm(total=len(models) * len(section.precisions) * len(targets), desc="build", disable=None) as progress:
        for name in models:
            made = _Model(exported.path(name), workspace.folder / name, section, interactions)
            engines = []
            for precision in section.precisions:
                metrics.setdefault(name, {})[precision] = made.lower(precision)
                for target in targets:
                    engines.append(made.build(builder, precision, target, here))
                    progress.update()
            found.append(Engines(model=name, standard_sha256=digest(made.source / STANDARD), engines=engines))
            found[-1].write(made.folder)
            metrics["engines"] += len(engines)
            metrics["size_bytes"] += sum(engine.size_bytes for engine in engines)
    page = table(found, metrics)
    (workspace.folder / TABLE).write_text(page, encoding="utf-8")
    print(page)
    return metrics


def table(models: Sequence[Engines], agreements: Mapping[str, Any]) -> str:
    """All engines in Markdown, one a row.

    Args:
        agreements: the mean share of the top k, by model and precision, that a graph has in common with the one that it
            was lowered from.

    """
    rows = [
        [
            each.model,
            engine.precision,
            engine.compute_capability,
            f"{engine.size_bytes / 1e6:.1f}",
            f"{engine.build_seconds:.1f}",
            str(engine.layers),
            _inspected(engine),
            f"{agreements[each.model][engine.precision]['overlap']:.3f}",
        ]
        for each in models
        for engine in each.engines
    ]
    head = ["model", "precision", "GPU", "MB", "build s", "layers", "kernels", "same top k"]
    lines = [head, ["---"] * 3 + ["--:"] * 3 + ["---", "--:"], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _inspected(engine: Engine) -> str:
    if engine.kernels is None or engine.precisions is None:
        return "needs its GPU"
    fused = sum(kernel.is_fused for kernel in engine.kernels)
    types = ", ".join(f"{count} {precision}" for precision, count in engine.precisions.items())
    return f"{len(engine.kernels)}, {fused} fused: {types}"


def write_triton(stage: Stage, repository: str) -> None:
    """`--triton`: a model of each bundle, in a repository that Triton serves."""
    from compress.data.interactions import Interactions
    from deploy import triton
    from deploy.recommender import Recommender
    from deploy.runtimes.onnxruntime import OnnxRuntimeCpu

    section, inputs = stage.section, stage.finished_inputs()
    assert isinstance(section, BuildSection)
    exported, interactions = inputs[section.input], Interactions.of(inputs)
    is_built = stage.why_not_done() is None
    for name in section.models or tuple(exported.metrics):
        source, folder = exported.path(name), Path(repository) / name
        recommender = Recommender.load(source, runtime=OnnxRuntimeCpu(source / STANDARD, 1))
        requests = parity.requests(interactions, recommender)
        few = range(min(WARM_UPS, len(requests)))
        calls = [call for row in few for call in recommender.calls(requests.of([row]))[:1]]
        triton.write(folder, source, section, stage.folder / name if is_built else None, calls)
        print(folder)


def device_capability() -> str | None:
    """Of this machine's first GPU, as 8.6; None if there is none."""
    import torch

    return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else None


def driver() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    try:
        said = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return said and said[1]


class _Model:
    """A bundle on its way to engines."""

    def __init__(self, source: Path, folder: Path, section: BuildSection, interactions: Interactions) -> None:
        from deploy.recommender import Recommender

        self.source = source
        self.folder = folder
        self.load = partial(Recommender.load, source)
        self.standard = self._answering(source / STANDARD)
        self.requests = parity.requests(interactions, self.standard)
        axes = dict(_axes(source / STANDARD))
        self.section = section
        seen = self._sizes_seen(axes)
        typical = {axis: int(median(sizes)) for axis, sizes in seen.items()}
        sizes = axis_sizes(section, self.standard.ranker.limits, typical)
        self.profiles = [
            {name: _shapes(each, bucket) for name, each in axes.items()}
            for bucket in bucketed(sizes, seen, section.buckets)
        ]
        folder.mkdir()

    def lower(self, precision: Any) -> dict[str, Any]:
        """Writes the graph in this precision. Returns how it agrees with the standard one, every rounding made.

        One of integers is held to the standard graph with products rounded in floating point: in float32 it is that
        graph in other words, in fp16 it is near. `over_floats` says what the integers themselves do.
        """
        from deploy.lowering import fake_quantization, tensorrt

        lowered = self.folder / f"{precision}.onnx"
        if precision not in tensorrt.DIALECTS:
            tensorrt.lower(self.source / STANDARD, lowered, precision)
            found = self._agreement(lowered, self.standard)
            self._check(found.overlap, SHARED, precision)
            return found.as_metrics()
        maps = self._description(precision)
        scratch = self.folder / ".scratch.onnx"
        fake_quantization.write(self.source / STANDARD, scratch, maps, tensorrt.DIALECTS[precision])
        fake = self._answering(scratch, as_written=True)
        tensorrt.lower(self.source / STANDARD, scratch, precision, maps, around="fp32")
        same = self._agreement(scratch, fake)
        scratch.unlink()
        self._check(same.same_top_k, SAME, f"{precision} beside fp32")
        tensorrt.lower(self.source / STANDARD, lowered, precision, maps)
        found = self._agreement(lowered, fake)
        self._check(found.overlap, parity.OTHER_NUMBERS, precision)  # steps, on the other side of fp16's halves
        over_floats = parity.compare(fake.rank, self.standard.rank, self.requests)
        return {
            **found.as_metrics(),
            "same_top_k_in_fp32": round(same.same_top_k, 8),
            "over_floats": over_floats.as_metrics(),
        }

    def _description(self, precision: str) -> Maps:
        """How products are rounded. Raises: RecipeError if the bundle does not say."""
        from compress.methods import linear_rounding

        if linear_rounding.QUANTIZATION not in self.standard.description.sha256:
            raise RecipeError(
                f"{self.source}: no static scales, which {precision} needs; name models from a quantize stage with "
                "linear: static or trained from one, or export again"
            )
        return linear_rounding.read(self.source / linear_rounding.QUANTIZATION)

    def _agreement(self, lowered: Path, reference: Recommender) -> parity.Parity:
        """How a lowered graph answers, every rounding made."""
        from deploy.lowering import rounded

        twin = self.folder / ".twin.onnx"
        rounded.write(lowered, twin)
        found = parity.compare(self._answering(twin, as_written=True).rank, reference.rank, self.requests)
        twin.unlink()
        return found

    def _check(self, share: float, least: float, precision: str) -> None:
        """Raises: ParityError if too little of what is answered is the same."""
        if share < least:
            raise ParityError(
                f"{self.source.name}: in {precision} it shares {share:.0%} of its items with the graph that it was "
                f"lowered from (allowed {least:.0%}); take {precision.split()[0]} out of precisions"
            )

    def _answering(self, graph: Path, *, as_written: bool = False) -> Recommender:
        from deploy.runtimes.as_written import AsWritten
        from deploy.runtimes.onnxruntime import OnnxRuntimeCpu

        return self.load(runtime=AsWritten(graph) if as_written else OnnxRuntimeCpu(graph, 1))

    def build(self, builder: TensorRt, precision: str, target: str, here: str | None) -> Engine:
        """Writes one engine."""
        compatible = self.section.version_compatible
        graph = self.folder / f"{precision}.onnx"
        path = self.folder / f"{precision}-sm{target.replace('.', '')}.engine"
        built = builder.build(
            graph,
            self.profiles,
            target,
            exact=precision == "fp32",
            version_compatible=compatible,
            hardware=self.section.hardware_compatibility,
        )
        path.write_bytes(built.engine)
        kernels = builder.kernels(built.engine, path.name, version_compatible=compatible) if target == here else None
        return Engine(
            file=path.name,
            sha256=digest(path),
            size_bytes=len(built.engine),
            precision=precision,
            compute_capability=target,
            builder=builder.package,
            version=builder.version,
            graph=graph.name,
            graph_sha256=digest(graph),
            driver=driver(),
            version_compatible=compatible,
            hardware_compatibility=self.section.hardware_compatibility,
            profiles=self.profiles,
            build_seconds=round(built.seconds, 3),
            layers=built.layers,
            kernels=kernels,
        )

    def _sizes_seen(self, axes: Mapping[str, Sequence[str | int]]) -> dict[str, list[int]]:
        """Of every axis, in calls for one validation user each."""
        found: dict[str, list[int]] = {}
        for row in range(len(self.requests)):
            for call in self.standard.calls(self.requests.of([row])):
                for name, array in call.items():
                    for axis, size in zip(axes[name], array.shape, strict=True):
                        found.setdefault(str(axis), []).append(size)
        return found


def axis_sizes(
    section: BuildSection, limits: Mapping[str, tuple[int, int]], typical: Mapping[str, int]
) -> dict[str, tuple[int, int, int]]:
    """The fewest, the typical and the most along every axis.

    Args:
        limits: the fewest and the most that a call can have, of every axis but its rows. One that may be empty holds
            what is excluded: up to the catalogue, as a list of what is allowed excludes all the rest; `lengths` does
            not limit it.
        typical: what requests have, of every axis.

    """
    sizes = dict.fromkeys(ROWS, section.batch_sizes)
    for axis, (fewest, most) in limits.items():
        asked = section.lengths or (fewest, typical[axis], most)
        least, usual, longest = (min(max(size, fewest), most) for size in asked)
        sizes[axis] = (least, usual, longest) if fewest else (0, min(typical[axis], most), most)
    return sizes


AxisSizes = Mapping[str, tuple[int, int, int]]


def bucketed(sizes: AxisSizes, seen: Mapping[str, Sequence[int]], count: int) -> list[dict[str, tuple[int, int, int]]]:
    """Profiles that hold one another: all from the fewest on, each up to another share of the lengths seen.

    The last reaches as far as `sizes`. Each is tuned for the middle of the lengths that the one before does not hold.
    """
    found = [dict(sizes) for _ in range(count)]
    for axis, (fewest, _, most) in sizes.items():
        if count == 1 or axis in ROWS or not fewest:
            continue
        shares = np.linspace(0, 1, 2 * count + 1)[1:]
        marks = [int(mark) for mark in np.clip(np.quantile(seen[axis], shares), fewest, most)]
        ends = [*marks[1:-1:2], most]
        for bucket, usual, longest in zip(found, marks[::2], ends, strict=True):
            bucket[axis] = (fewest, usual, longest)
    return found


def _axes(graph: Path) -> Iterator[tuple[str, list[str | int]]]:
    """The inputs of a graph, and the names of their axes or, of those that are not dynamic, their sizes."""
    import onnx

    for value in onnx.load(graph).graph.input:
        yield value.name, [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def _shapes(axes: Sequence[str | int], sizes: Mapping[str, tuple[int, int, int]]) -> Sizes:
    smallest, typical, largest = (
        [axis if isinstance(axis, int) else sizes[axis][place] for axis in axes] for place in range(3)
    )
    return smallest, typical, largest


if __name__ == "__main__":
    raise SystemExit(
        main("build", Option("--triton", "DIR", "write a Triton model repository, build nothing", write_triton))
    )
