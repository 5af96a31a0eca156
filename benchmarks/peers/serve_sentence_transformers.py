"""Scores pairs as sentence-transformers' CrossEncoder.predict does, in an environment of its own.

`PYTHON serve_sentence_transformers.py MODEL BACKEND THREADS SCRATCH` prints a line about itself and then answers lines
of JSON, `[[user, item], ...]`, with lines of scores. MODEL is a Hugging Face folder; BACKEND is torch, onnx, onnx-O3 or
onnx-int8. It imports nothing of this project: the packages it needs do not live with this project's.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


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
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model, export_optimized_onnx_model

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    exported = scratch / "exported"
    if not exported.exists():
        CrossEncoder(model, backend="onnx", device="cpu", model_kwargs={"export": True}).save_pretrained(str(exported))
    if backend == "onnx":
        file = "onnx/model.onnx"
    else:
        plain = CrossEncoder(str(exported), backend="onnx", device="cpu", model_kwargs={"file_name": "onnx/model.onnx"})
        if backend == "onnx-O3":
            export_optimized_onnx_model(plain, "O3", str(exported))
            file = "onnx/model_O3.onnx"
        else:
            kind = "avx512_vnni" if "avx512_vnni" in Path("/proc/cpuinfo").read_text() else "avx2"
            export_dynamic_quantized_onnx_model(plain, kind, str(exported))
            file = next(path.relative_to(exported).as_posix() for path in exported.glob("onnx/*int8*.onnx"))
    arguments = {"file_name": file, "provider": "CPUExecutionProvider", "session_options": options}
    encoder = CrossEncoder(str(exported), backend="onnx", device="cpu", model_kwargs=arguments)
    return encoder, exported / file


if __name__ == "__main__":
    main()
