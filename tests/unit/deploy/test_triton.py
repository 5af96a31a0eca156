"""A model repository is what Triton's own schema says, and a server that runs it answers as the bundle does."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.artifact import Artifact, digest
from compress.errors import ArtifactError, RecipeError, RecPressError
from compress.recipe.serving import BuildSection
from deploy import build, triton
from deploy.engine import Engine, Engines
from deploy.recommender import Recommender
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu
from deploy.runtimes.triton import Triton

FAMILIES = ("bert4rec", "cross_encoder", "two_tower")


def section(**fields: Any) -> BuildSection:
    said = {"kind": "build", "input": "served", "models": FAMILIES, **fields}
    return BuildSection.model_validate(said)


def written(inputs: dict[str, Artifact], folder: Path, *, built: Path | None = None, **fields: Any) -> Path:
    """The repository, as the command writes it."""
    stage = SimpleNamespace(
        section=section(**fields),
        finished_inputs=lambda: inputs,
        why_not_done=lambda: None if built else "not there yet",
        folder=built,
    )
    build.write_triton(stage, str(folder))  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def repository(built_from: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(built_from, tmp_path_factory.mktemp("triton") / "models")


def parsed(folder: Path) -> Any:
    """A model's configuration, by the schema of Triton's client."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install --no-deps tritonclient: its schema is what configurations are held to")
    # The file alone: its package loads gRPC.
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    found = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert found is not None
    assert found.loader is not None
    schema = importlib.util.module_from_spec(found)
    found.loader.exec_module(schema)
    from google.protobuf import text_format

    return text_format.Parse((folder / triton.CONFIG).read_text(), schema.ModelConfig())


@pytest.mark.parametrize("name", FAMILIES)
def test_tritons_schema_knows_every_word_of_a_configuration(repository: Path, name: str) -> None:
    config = parsed(repository / name)
    assert (config.name, config.backend) == (name, "onnxruntime")
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
    assert {path.name for path in (repository / name / "1").iterdir()} == {"model.onnx"}
    assert config.parameters["sha256:model.onnx"].string_value == digest(repository / name / "1" / "model.onnx")


@pytest.mark.parametrize(("name", "first"), [("bert4rec", "history"), ("two_tower", "user")])
def test_histories_are_put_together_with_other_requests(repository: Path, name: str, first: str) -> None:
    config = parsed(repository / name)
    assert config.max_batch_size == 32
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert [(each.name, list(each.dims)) for each in config.input] == [(first, [-1]), ("exclude", [-1])]
    assert [(each.name, list(each.dims)) for each in config.output] == [("items", [10]), ("scores", [10])]


def test_candidates_of_one_user_are_not(repository: Path) -> None:
    config = parsed(repository / "cross_encoder")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [(each.name, list(each.dims)) for each in config.input] == [("user", [-1]), ("items", [-1, -1])]
    assert [list(each.dims) for each in config.output] == [[-1]]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_server_warms_up_with_real_requests(repository: Path, name: str) -> None:
    config, runtime = parsed(repository / name), OnnxRuntimeCpu(repository / name / "1" / "model.onnx", 1)
    assert len(config.model_warmup) == build.WARM_UPS
    for request in config.model_warmup:
        call = {}
        for key, value in request.inputs.items():
            content = (repository / name / triton.WARM_UP / value.input_data_file).read_bytes()
            array = np.frombuffer(content, DTYPES[value.data_type])
            call[key] = array.reshape([1] * (config.max_batch_size > 0) + list(value.dims))
        assert max(array.max(initial=0) for array in call.values()) > 0
        assert np.isfinite(runtime(call)[-1]).all()


DTYPES = {9: np.int64, 11: np.float32}
"""As the schema numbers TYPE_INT64 and TYPE_FP32."""


class Server(BaseHTTPRequestHandler):
    """Triton's v2 protocol for the graphs of a repository."""

    repository: Path

    def do_GET(self) -> None:
        name = self.path.split("/")[3]
        if not (self.repository / name).exists():
            return self._answer(400, {"error": f"Request for unknown model: '{name}' is not found"})
        if self.path.endswith("/config"):
            said = re.findall(
                r'key: "(.*)"\n.*\n *string_value: "(.*)"', (self.repository / name / triton.CONFIG).read_text()
            )
            return self._answer(200, {"parameters": {key: {"string_value": value} for key, value in said}})
        inputs, outputs = triton._signature(self.repository / name / "1" / "model.onnx")
        types = {"int64": "INT64", "float32": "FP32"}
        told = [
            [{"name": each, "datatype": types[dtype]} for each, (dtype, _) in values.items()]
            for values in (inputs, outputs)
        ]
        return self._answer(200, {"name": name, "inputs": told[0], "outputs": told[1]})

    def do_POST(self) -> None:
        name = self.path.split("/")[3]
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        inputs = {each["name"]: np.array(each["data"], np.int64).reshape(each["shape"]) for each in asked["inputs"]}
        path = self.repository / name / "1" / "model.onnx"
        _, outputs = triton._signature(path)
        found = [
            {
                "name": each,
                "datatype": {"int64": "INT64", "float32": "FP32"}[array.dtype.name],
                "shape": array.shape,
                "data": array.ravel().tolist(),
            }
            for each, array in zip(outputs, OnnxRuntimeCpu(path, 1)(inputs), strict=True)
        ]
        self._answer(200, {"model_name": name, "outputs": found[::-1]})  # in no order that a client may count on

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing is said."""


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    handler = type("Handler", (Server,), {"repository": repository})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recommender_asks_a_server_and_answers_as_the_bundle(
    built_from: dict[str, Artifact], url: str, name: str
) -> None:
    folder = built_from["served"].path(name)
    here, there = Recommender.load(folder), Recommender.load(folder, runtime=Triton(url, name))
    history = here.item_ids[3:7]
    for asked in ({}, {"deny": here.item_ids[20:30]}, {"allow": here.item_ids[5:25]}):
        ours, theirs = there.top_k(history, 5, **asked), here.top_k(history, 5, **asked)
        assert [each.item_id for each in ours] == [each.item_id for each in theirs]
        np.testing.assert_allclose([each.score for each in ours], [each.score for each in theirs], rtol=1e-6)


def test_a_bundle_asks_no_server_about_another(built_from: dict[str, Artifact], url: str) -> None:
    with pytest.raises(ArtifactError, match=r"two_tower: the triton runtime was made of another model.onnx"):
        Recommender.load(built_from["served"].path("two_tower"), runtime=Triton(url, "bert4rec"))


def test_a_model_or_a_server_that_is_not_there_is_one_line(url: str) -> None:
    with pytest.raises(RecPressError, match=r"v2/models/other: 400: .*unknown model"):
        Triton(url, "other")
    with pytest.raises(RecPressError, match=r"^http://127.0.0.1:9/v2/models/x: .*refused"):
        Triton("http://127.0.0.1:9", "x")


def test_a_repository_is_not_written_over(built_from: dict[str, Artifact], repository: Path) -> None:
    with pytest.raises(RecipeError, match="bert4rec is there already: remove it, or give --triton another folder"):
        written(built_from, repository)


def test_on_a_gpu_onnx_runtime_has_the_standard_graph(built_from: dict[str, Artifact], tmp_path: Path) -> None:
    triton_said = {"device": "gpu", "instances": 2, "max_queue_delay_us": 100}
    folder = written(built_from, tmp_path, models=["bert4rec"], triton=triton_said) / "bert4rec"
    config = parsed(folder)
    assert config.backend == "onnxruntime"
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    assert config.instance_group[0].count == 2
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    standard = built_from["served"].path("bert4rec") / "model.onnx"
    assert config.parameters["sha256:standard"].string_value == digest(folder / "1" / "model.onnx") == digest(standard)


@pytest.mark.parametrize(("builder", "backend"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "onnxruntime")])
def test_engines_are_served_by_the_backend_that_runs_them(
    built_from: dict[str, Artifact], tmp_path: Path, builder: str, backend: str
) -> None:
    made = tmp_path / "engines" / "bert4rec"
    made.mkdir(parents=True)
    standard = built_from["served"].path("bert4rec") / "model.onnx"
    (made / "fp16.onnx").write_bytes(standard.read_bytes())
    engines = []
    for capability in ("8.6", "9.0"):
        path = made / f"fp16-{capability}.engine"
        path.write_bytes(capability.encode())
        engines.append(
            Engine(
                file=path.name,
                sha256=digest(path),
                size_bytes=3,
                precision="fp16",
                compute_capability=capability,
                builder=builder,
                version="11.4",
                graph="fp16.onnx",
                graph_sha256=digest(standard),
                driver=None,
                version_compatible=False,
                hardware_compatibility="none",
                profiles=[{}, {}],
                build_seconds=1.0,
                layers=3,
                kernels=None,
            )
        )
    Engines(model="bert4rec", standard_sha256=digest(standard), engines=engines).write(made)
    said = {"models": ["bert4rec"], "triton": {"device": "gpu"}}
    folder = written(built_from, tmp_path / "models", built=made.parent, **said) / "bert4rec"
    config = parsed(folder)
    assert config.backend == backend
    if backend == "tensorrt":
        assert dict(config.cc_model_filenames) == {"8.6": "fp16-8.6.engine", "9.0": "fp16-9.0.engine"}
        assert config.default_model_filename == "fp16-8.6.engine"
        assert list(config.instance_group[0].profile) == ["0", "1"]
        assert (folder / "1" / "fp16-9.0.engine").read_bytes() == b"9.0"
        assert list(config.input[0].dims) == [-1]
    Engines(model="bert4rec", standard_sha256="another", engines=engines).write(made)
    with pytest.raises(ArtifactError, match=r"engines of another model.onnx than .*bert4rec has; run the build stage"):
        written(built_from, tmp_path / "others", built=made.parent, **said)
