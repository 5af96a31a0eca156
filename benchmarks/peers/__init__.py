"""Other tools on the same model and requests, each in a process and an environment of its own: what we must beat.

`make peers` makes the environment. A peer is asked as its documentation says; what it does is its own affair.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cold_start import peak_memory_bytes
from compress.data.interactions import IntArray
from compress.errors import RecipeError
from compress.provenance import ROOT
from deploy.rankers.pairs import PlainPairs
from deploy.recommender import Recommender
from deploy.runtimes import Arrays, Outputs

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
PROGRAM = Path(__file__).with_name("serve_sentence_transformers.py")

BACKENDS = {
    "st-onnx": "onnx",
    "st-onnx-O3": "onnx-O3",
    "st-onnx-int8": "onnx-int8",
}
"""Peer: what the program calls it."""


class Pairs(PlainPairs):
    """Asks with texts; whoever answers tokenises them."""

    def _asked(self, history: IntArray, barred: IntArray) -> list[tuple[IntArray, Arrays]]:
        parts = self._parts(barred)
        if not parts:
            return []
        items = np.concatenate(parts)
        user_text = self.texts.user_text(history, self.history_texts)
        pairs: Any = np.array([(user_text, self.item_texts[item]) for item in items])
        return [(items, {"pairs": pairs})]


class Peer:
    """A runtime in another process: pairs of texts in, scores out, as lines of JSON."""

    def __init__(self, name: str, model: Path, threads: int) -> None:
        if not PYTHON.exists():
            raise RecipeError(f"measure.peers: {name}: there is no {PYTHON}; make it with `make peers`")
        self.name = name
        self.threads = threads
        self._scratch = tempfile.TemporaryDirectory()
        line = [str(PYTHON), str(PROGRAM), str(model.resolve()), BACKENDS[name], str(threads), self._scratch.name]
        started = time.monotonic()
        self._log = Path(self._scratch.name) / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self._ask([["a", "b"]])
        self.load_ms = 1e3 * (time.monotonic() - started)

    def __call__(self, inputs: Arrays) -> Outputs:
        pairs: Any = inputs["pairs"]
        return (np.array(self._ask(pairs.tolist()), dtype=np.float32),)

    def cold_start(self) -> dict[str, float]:
        """Export included: a restart pays for it unless the file is kept."""
        started = time.monotonic()
        self._ask([["a b", "c d"]] * 100)
        first_ms = 1e3 * (time.monotonic() - started)
        peak = peak_memory_bytes(self._process.pid)
        return {"load_ms": self.load_ms, "first_request_ms": first_ms, "peak_memory_bytes": peak}

    def _ask(self, pairs: list[list[str]]) -> list[float]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(pairs) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            said = (self._log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise RecipeError(f"measure.peers: {self.name} ended: {said[:200]}")
        scores: list[float] = json.loads(answer)
        return scores

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._process.kill()
            self._process.wait()


def load(name: str, bundle: str, model: Path, threads: int) -> Recommender:
    """The peer as a recommender: the bundle says what is asked, the model folder answers."""
    runtime = Peer(name, model, threads)
    return Recommender.load(bundle, runtime=runtime, rankers={"cross_encoder": Pairs})
