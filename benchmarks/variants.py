"""What is measured: the teacher as people run it, every exported bundle, other tools on the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from compress.artifact import Artifact
from compress.data.interactions import JUDGED
from compress.errors import ArtifactError
from compress.provenance import ROOT
from compress.recipe.judging import MeasureSection

if TYPE_CHECKING:  # torch is loaded when there is work, not to find out that there is none
    import numpy as np

    from compress.data.histories import Asked
    from deploy.recommender import Recommender


EXPORTED = ("kind", "method", "parameters", "flops", "layers", "training", "linear", "rounded_from")
"""What `export` says of a bundle."""


@dataclass(frozen=True)
class Variant:
    """A model in the runtime that is measured, and what is known of it."""

    facts: dict[str, Any]
    load: Callable[[int], Recommender]
    """On a number of threads."""
    recommender: Recommender
    start: Callable[[int], dict[str, float]]
    """What a restart costs, on a number of threads."""
    scopes: tuple[str, ...] = ("model", "request")
    """What is timed; of another tool only the whole, which tokenises inside."""

    def recommend(self, asked: Asked) -> NDArray[np.int64]:
        """As `evaluation` calls it."""
        return self.recommender.rank(asked)[0][:, :JUDGED]


def variants_of(section: MeasureSection, inputs: Mapping[str, Artifact], scratch: Path) -> dict[str, Variant]:
    """The teacher as people run it, then every exported bundle."""
    from compress import models
    from deploy import bundle
    from deploy.rankers import PLAIN
    from deploy.recommender import Recommender
    from deploy.runtimes.torch import TorchEager

    export = inputs[section.export]
    checkpoint = inputs[section.teacher].path("model")
    family, model = models.load(checkpoint)
    served: dict[str, Variant] = {}
    for name, exported in export.metrics.items():
        folder = export.path(name)
        description = bundle.read(folder)
        facts = {
            "name": name,
            "stage": name,
            "runtime": "onnxruntime-cpu",
            "precision": description.precision,
            "size_bytes": (folder / description.targets["onnxruntime-cpu"]).stat().st_size,
            "bundle": str(folder),
            **{key: exported[key] for key in EXPORTED},
        }
        load = partial(_load_bundle, folder)
        served[name] = Variant(facts, load, load(section.threads), partial(cold_start, folder))
    teacher = served[section.teacher]
    description = teacher.recommender.description

    def load_eager(threads: int) -> Recommender:
        runtime = TorchEager(family, model, description.top_k, threads)
        return Recommender.load(teacher.facts["bundle"], runtime=runtime, rankers=PLAIN)

    facts = teacher.facts | {
        "name": eager_name(section.teacher),
        "runtime": "torch-eager",
        "method": "plain",
        "size_bytes": (checkpoint / "model.safetensors").stat().st_size,
        "bundle": None,
        "flops": None,
    }
    start = partial(cold_start, Path(teacher.facts["bundle"]), model=checkpoint)
    eager = Variant(facts, load_eager, load_eager(section.threads), start)
    return {facts["name"]: eager, **served, **_peers(section, teacher, checkpoint, scratch)}


def _peers(section: MeasureSection, teacher: Variant, checkpoint: Path, scratch: Path) -> dict[str, Variant]:
    """Other tools on the teacher's weights."""
    from benchmarks import peers

    found: dict[str, Variant] = {}
    for name in section.peers:
        there = (name, Path(teacher.facts["bundle"]), checkpoint, scratch)
        load = cache(partial(peers.load, *there))
        runtime = load(section.threads).runtime
        assert isinstance(runtime, peers.Peer)
        facts = teacher.facts | {
            "name": name,
            "runtime": "sentence-transformers",
            "method": f"{peers.BACKENDS[name]}, {runtime.facts['versions']['sentence-transformers']}",
            "precision": "int8" if "int8" in name else "fp32",
            "size_bytes": runtime.facts["size_bytes"],
            "versions": runtime.facts["versions"],
            "bundle": None,
            "flops": None,
        }
        start = partial(peers.cold_start, *there)
        found[name] = Variant(facts, load, load(section.threads), start, scopes=("request",))
    return found


def _load_bundle(folder: Path, threads: int) -> Recommender:
    from deploy.recommender import Recommender

    return Recommender.load(folder, threads=threads)


def eager_name(stage: str) -> str:
    """The variant that runs a stage's model in eager PyTorch."""
    return f"{stage}-eager"


def cold_start(folder: Path, threads: int, model: Path | None = None) -> dict[str, float]:
    """Of a bundle in a process of its own: milliseconds until it is loaded, and of the first request, and peak memory.

    Args:
        model: a Hugging Face folder that eager PyTorch runs instead of the bundle's graph.

    """
    from benchmarks import cold_start as program

    paths = [str(path.resolve()) for path in (folder, model) if path]
    line = [sys.executable, "-m", program.__name__, str(time.monotonic_ns()), str(threads), *paths]
    ended = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ArtifactError(f"{folder}: cannot be loaded in a process of its own: {said}")
    facts: dict[str, float] = json.loads(ended.stdout)
    return facts
