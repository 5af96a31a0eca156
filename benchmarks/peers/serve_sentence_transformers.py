"""Scores pairs as sentence-transformers' CrossEncoder.predict does, in an environment of its own.

`PYTHON serve_sentence_transformers.py MODEL BACKEND THREADS SCRATCH` prints a line about itself and then answers lines
of JSON, `[[user, item], ...]`, with lines of scores. MODEL is a Hugging Face folder; BACKEND is torch, onnx, onnx-O3 or
onnx-int8. It imports nothing of this project: the packages it needs do not live with this project's.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILES = {"onnx": "onnx/model.onnx", "onnx-O3": "onnx/model_O3.onnx", "onnx-int8": "onnx/*int8*.onnx"}


def main() -> None:
    model, backend, threads, scratch = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(threads)
    encoder, file = _load(model, backend, threads, scratch)
    names = ("sentence-transformers", "transformers", "optimum-onnx", "onnxruntime", "torch")
    facts = {"size_bytes": file.stat().st_size, "versions": {name: version(name) for name in names}}
    answers.write(json.dumps(facts) + "\n")
    answers.flush()
    for line in sys.stdin:
        scores = encoder.predict([tuple(pair) for pair in json.loads(line)], show_progress_bar=False)
        answers.write(json.dumps([float(score) for score in scores]) + "\n")
        answers.flush()


def _load(model: str, backend: str, threads: int, scratch: Path) -> tuple[Any, Path]:
    """The encoder, and the file that its weights are in."""
    from sentence_transformers import CrossEncoder

    if backend == "torch":
        return CrossEncoder(model, device="cpu"), Path(model) / "model.safetensors"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    exported = scratch / backend
    if not exported.exists():
        unfinished = scratch / f"{backend}.partial"  # what a killed export leaves is no model
        shutil.rmtree(unfinished, ignore_errors=True)
        _export(model, backend, unfinished)
        unfinished.rename(exported)
    file = next(path.relative_to(exported) for path in exported.glob(FILES[backend]))
    arguments = {"file_name": file.as_posix(), "provider": "CPUExecutionProvider", "session_options": options}
    encoder = CrossEncoder(str(exported), backend="onnx", device="cpu", model_kwargs=arguments)
    return encoder, exported / file


def _export(model: str, backend: str, folder: Path) -> None:
    """Writes the graph that a backend runs, beside the plain one that it is made of."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model, export_optimized_onnx_model

    CrossEncoder(model, backend="onnx", device="cpu", model_kwargs={"export": True}).save_pretrained(str(folder))
    if backend == "onnx":
        return
    plain = CrossEncoder(str(folder), backend="onnx", device="cpu", model_kwargs={"file_name": FILES["onnx"]})
    if backend == "onnx-O3":
        export_optimized_onnx_model(plain, "O3", str(folder))
    else:
        kind = "avx512_vnni" if "avx512_vnni" in Path("/proc/cpuinfo").read_text() else "avx2"
        export_dynamic_quantized_onnx_model(plain, kind, str(folder))


if __name__ == "__main__":
    main()
