"""Other tools on the same model and requests, each in a process and an environment of its own: what we must beat.

`make peers` makes the environment. A peer is asked as its documentation says; what it does is its own affair.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cold_start import first_request, peak_memory_bytes
from benchmarks.peers.environment import PYTHON, check_environment
from compress.data.histories import Asked
from compress.data.interactions import IntArray
from compress.errors import RecipeError
from deploy.clock import once
from deploy.rankers.pairs import PlainPairs
from deploy.recommender import Recommender
from deploy.runtimes import Arrays, Outputs

PROGRAM = Path(__file__).with_name("serve_sentence_transformers.py")

BACKENDS = {
    "st-onnx": "onnx",
    "st-onnx-O3": "onnx-O3",
    "st-onnx-int8": "onnx-int8",
}
"""Peer: what the program calls it."""


class Pairs(PlainPairs):
    """Asks with texts; whoever answers tokenises them."""

    def parts(self, asked: Asked, row: int) -> list[tuple[IntArray, Arrays]]:
        items, pairs = self.told(asked, row)
        texts: Any = np.array(pairs)
        return [(items, {"pairs": texts})] if pairs else []


class Peer:
    """A runtime in another process: pairs of texts in, scores out, as lines of JSON."""

    def __init__(self, name: str, model: Path, threads: int, scratch: Path) -> None:
        """Args: scratch: where it keeps what it exports, for the next one."""
        check_environment()
        self.name = name
        self.threads = threads
        line = [str(PYTHON), str(PROGRAM), str(model.resolve()), BACKENDS[name], str(threads), str(scratch)]
        self._log = scratch / f"{name}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.facts: dict[str, Any] = self._answer()

    def __call__(self, inputs: Arrays) -> Outputs:
        pairs: Any = inputs["pairs"]
        assert self._process.stdin
        with suppress(BrokenPipeError):  # it has ended: what it said last is the answer
            self._process.stdin.write(json.dumps(pairs.tolist()) + "\n")
            self._process.stdin.flush()
        return (np.array(self._answer(), dtype=np.float32),)

    @property
    def peak_memory_bytes(self) -> int:
        return peak_memory_bytes(self._process.pid)

    def _answer(self) -> Any:
        assert self._process.stdout
        answer = self._process.stdout.readline()
        if not answer:
            said = (self._log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise RecipeError(f"measure.peers: {self.name} ended: {said[:200]}")
        return json.loads(answer)

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self._process.kill()
            self._process.wait()


def load(name: str, bundle: Path, model: Path, scratch: Path, threads: int) -> Recommender:
    """The peer as a recommender: the bundle says what is asked, the model folder answers."""
    return Recommender.load(bundle, runtime=Peer(name, model, threads, scratch), rankers={"cross_encoder": Pairs})


def cold_start(name: str, bundle: Path, model: Path, scratch: Path, threads: int) -> dict[str, float]:
    """As `variants.cold_start`, of a peer that has exported its graph before; its process has begun as well."""
    load_ms, recommender = once(lambda: load(name, bundle, model, scratch, threads))
    peer = recommender.runtime
    assert isinstance(peer, Peer)
    first_request_ms, _ = once(lambda: first_request(recommender))
    return {"load_ms": load_ms, "first_request_ms": first_request_ms, "peak_memory_bytes": peer.peak_memory_bytes}
