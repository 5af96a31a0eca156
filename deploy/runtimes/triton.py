"""A graph that a Triton server runs: the v2 inference protocol in JSON, over HTTP."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np

from compress.errors import RecPressError
from deploy.runtimes import Arrays, Outputs

NAMES = {"INT64": np.int64, "FP32": np.float32}

STANDARD_SHA256 = "sha256:standard"
"""The parameter of a model's configuration that says which bundle it is of."""


class Triton:
    """A model of a server: `Recommender.load(bundle, runtime=Triton("http://localhost:8000", "student"))`."""

    name = "triton"
    threads = 1

    def __init__(self, url: str, model: str, timeout_s: float = 10.0) -> None:
        """Raises: RecPressError if no server is there, or it has no such model."""
        self._model = f"{url.rstrip('/')}/v2/models/{model}"
        self._timeout_s = timeout_s
        said = self._ask(self._model)
        self._types = {each["name"]: each["datatype"] for each in said["inputs"]}
        self._outputs = [each["name"] for each in said["outputs"]]
        self.standard_sha256: str | None = None
        with contextlib.suppress(RecPressError):  # Triton's own, which other servers of the protocol do not have
            parameters = self._ask(f"{self._model}/config").get("parameters", {})
            self.standard_sha256 = parameters.get(STANDARD_SHA256, {}).get("string_value")

    def __call__(self, inputs: Arrays) -> Outputs:
        told = [
            {"name": name, "shape": array.shape, "datatype": self._types[name], "data": array.ravel().tolist()}
            for name, array in inputs.items()
        ]
        answer = self._ask(f"{self._model}/infer", {"inputs": told})
        found = {each["name"]: each for each in answer["outputs"]}
        return tuple(
            np.array(each["data"], dtype=NAMES[each["datatype"]]).reshape(each["shape"])
            for each in map(found.__getitem__, self._outputs)
        )

    def _ask(self, url: str, content: dict[str, Any] | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=self._timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RecPressError(f"{url}: {error.code}: {error.read(200).decode(errors='replace')}") from None
        except (OSError, ValueError) as error:
            raise RecPressError(f"{url}: {error}") from None
