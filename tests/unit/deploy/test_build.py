"""Engines are built for what is asked, described, and run only if they are what was built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bundle_fakes
from compress.artifact import Artifact, digest
from compress.errors import ArtifactError, ParityError, RecipeError, RecPressError
from compress.recipe.serving import BuildSection
from compress.stage import Workspace
from deploy import build, engine
from deploy.bundle import STANDARD
from deploy.engine import Engine, Engines
from deploy.lowering import quantize_dequantize
from deploy.recommender import Recommender
from deploy.runtimes import tensorrt_api
from deploy.runtimes.tensorrt import TensorRtEngine
from deploy.runtimes.tensorrt_api import Built

Run = Callable[..., dict[str, Any]]


def section(**fields: Any) -> BuildSection:
    said = {"kind": "build", "input": "served", "compute_capabilities": ["8.6"], **fields}
    return BuildSection.model_validate(said)


class FakeBuilder:
    """Builds what says which graph and GPU it is of."""

    package, version = "tensorrt-rtx", "1.7"

    def build(self, graph: Path, profiles: Any, target: str, *, exact: bool, **_: Any) -> Built:
        return Built(f"{graph.name} {target} {exact}".encode(), 0.5, 7)


@pytest.fixture
def run(built_from: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The stage, with a builder that needs no package."""
    monkeypatch.setattr(tensorrt_api, "choose", lambda *_: FakeBuilder())
    monkeypatch.setattr(build, "device_capability", lambda: None)
    (tmp_path / "engines").mkdir()
    return lambda **fields: build.run(section(**fields), built_from, Workspace(tmp_path / "engines", seed=0))


def test_a_folder_per_model_says_what_its_engines_are(
    run: Run, built_from: dict[str, Artifact], tmp_path: Path
) -> None:
    metrics = run(precisions=["fp16", "fp32"], compute_capabilities=["8.0", "8.6"])
    assert metrics["engines"] == 4 * len(bundle_fakes.MODELS)
    assert metrics["bert4rec"]["fp32"]["same_top_k"] == 1
    folder = tmp_path / "engines" / "two_tower"
    described = engine.read(folder)
    assert described.standard_sha256 == digest(built_from["served"].path("two_tower") / STANDARD)
    assert [each.file for each in described.engines] == [
        "fp16-sm80.engine",
        "fp16-sm86.engine",
        "fp32-sm80.engine",
        "fp32-sm86.engine",
    ]
    last = described.engines[-1]
    assert (folder / last.file).read_bytes() == b"fp32.onnx 8.6 True"
    assert (last.graph_sha256, last.layers, last.kernels) == (digest(folder / "fp32.onnx"), 7, None)
    assert last.size_bytes == 18
    assert {path.name for path in folder.iterdir()} == {
        "engine.json",
        "fp16.onnx",
        "fp32.onnx",
        *(each.file for each in described.engines),
    }


def test_a_table_has_a_row_per_engine_and_is_printed(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(models=["static_bert4rec"], precisions=["fp16", "int8"], compute_capabilities=["8.0", "12.0"])
    page = (tmp_path / "engines" / build.TABLE).read_text()
    assert page in capsys.readouterr().out
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    said = [dict(zip(head, row, strict=True)) for row in rows]
    assert [(row["precision"], row["GPU"]) for row in said] == [
        ("fp16", "8.0"),
        ("fp16", "12.0"),
        ("int8", "8.0"),
        ("int8", "12.0"),
    ]
    assert {(row["model"], row["build s"], row["layers"], row["kernels"]) for row in said} == {
        ("static_bert4rec", "0.5", "7", "needs its GPU")
    }


def test_profiles_reach_all_that_a_model_reads(run: Run, tmp_path: Path) -> None:
    run(models=["bert4rec", "cross_encoder"])
    profiles = {
        name: engine.read(tmp_path / "engines" / name).engines[0].profiles[0] for name in ("bert4rec", "cross_encoder")
    }
    smallest, typical, largest = profiles["bert4rec"]["history"]
    assert (smallest, largest) == ([1, 1], [32, 12])
    assert typical[0] == 8
    assert 4 <= typical[1] <= 12  # as people's histories are
    smallest, _, largest = profiles["bert4rec"]["exclude"]
    assert (smallest, largest) == ([1, 0], [32, bundle_fakes.ITEMS])
    (user,), (_, longest) = profiles["cross_encoder"]["user"][2], profiles["cross_encoder"]["items"][2]
    assert user + longest == 64  # positions of both together


@pytest.mark.parametrize(
    ("lengths", "length"), [(None, (1, 10, 20)), ([2, 4, 8], (2, 4, 8)), ([5, 50, 90], (5, 20, 20))]
)
def test_lengths_lie_within_what_a_call_can_have(lengths: Any, length: Any) -> None:
    asked = section(lengths=lengths, batch_sizes=[1, 2, 3])
    sizes = build.axis_sizes(asked, {"length": (1, 20), "excluded": (0, 500)}, {"length": 10, "excluded": 40})
    assert sizes["length"] == length
    assert sizes["excluded"] == (0, 40, 500)
    assert sizes["batch"] == sizes["candidates"] == (1, 2, 3)


def test_profiles_hold_one_another_and_split_the_lengths_that_are_seen() -> None:
    sizes = {"batch": (1, 8, 32), "length": (1, 40, 100), "excluded": (0, 50, 500)}
    seen = {"length": [*range(1, 81)], "batch": [1], "excluded": [9]}
    found = build.bucketed(sizes, seen, 4)
    assert [each["length"] for each in found] == [(1, 10, 20), (1, 30, 40), (1, 50, 60), (1, 70, 100)]
    assert all(each["batch"] == sizes["batch"] and each["excluded"] == sizes["excluded"] for each in found)
    assert build.bucketed(sizes, seen, 1) == [sizes]


@pytest.mark.parametrize(("length", "place"), [(1, 0), (20, 0), (21, 1), (40, 1), (100, 2), (101, 0)])
def test_a_call_takes_the_first_profile_that_holds_it(length: int, place: int) -> None:
    profiles: list[Any] = [{"history": ([1, 1], [8, 9], [32, longest])} for longest in (20, 40, 100)]
    assert engine.profile_for(profiles, {"history": (4, length)}) == place


def test_engines_have_as_many_profiles_as_buckets_are_asked_for(run: Run, tmp_path: Path) -> None:
    run(models=["cross_encoder"], buckets=3)
    profiles = engine.read(tmp_path / "engines" / "cross_encoder").engines[0].profiles
    assert len(profiles) == 3
    longest = [each["user"][2][0] for each in profiles]
    assert longest == sorted(longest)
    (user,), (_, item) = profiles[-1]["user"][2], profiles[-1]["items"][2]
    assert user + item == 64, "the last reaches all that the model reads"


def test_what_answers_otherwise_is_not_built(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SHARED", 1.01)
    with pytest.raises(ParityError, match=r"bert4rec: in fp16 it shares .* take fp16 out of precisions"):
        run()


def test_int8_is_held_to_fake_quantization_and_says_what_it_does(run: Run, tmp_path: Path) -> None:
    metrics = run(models=list(bundle_fakes.STATIC), precisions=["fp16", "int8"])
    assert metrics["engines"] == 2 * len(bundle_fakes.STATIC)
    for name in bundle_fakes.STATIC:
        found = metrics[name]["int8"]
        assert found["same_top_k_in_fp32"] >= 0.99
        assert found["over_floats"]["max_score_error"] > metrics[name]["fp16"]["max_score_error"]
        folder = tmp_path / "engines" / name
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        assert [each.precision for each in engine.read(folder).engines] == ["fp16", "int8"]


def test_integers_other_than_those_described_are_not_built(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if lowering had lost the sign of every weight."""
    insert = quantize_dequantize.insert

    def wrong(model: Any, maps: Any, dialect: Any) -> None:
        insert(model, maps, lambda how, weight: dialect(how, abs(weight)))

    monkeypatch.setattr(quantize_dequantize, "insert", wrong)
    with pytest.raises(ParityError, match=r"static_bert4rec: in int8 beside fp32 it shares .* take int8 out"):
        run(models=["static_bert4rec"], precisions=["int8"])


def test_int8_of_a_bundle_without_scales_is_one_line(run: Run) -> None:
    with pytest.raises(RecipeError, match=r"bert4rec: no static scales, which int8 needs; name models from a quantize"):
        run(models=["bert4rec"], precisions=["int8"])


def test_without_a_gpu_the_recipe_says_which(run: Run) -> None:
    with pytest.raises(RecipeError, match=r'^stages.engines: no GPU here: .* compute_capabilities: \["8.0", "8.6"\]$'):
        run(compute_capabilities=None)


def one_engine(folder: Path, content: bytes = b"an engine") -> Engine:
    """A folder with an engine that nothing has built."""
    (folder / "fp16-sm86.engine").write_bytes(content)
    made = Engine(
        file="fp16-sm86.engine",
        sha256=digest(folder / "fp16-sm86.engine"),
        size_bytes=len(content),
        precision="fp16",
        compute_capability="8.6",
        builder="tensorrt-rtx",
        version="1.7",
        graph="fp16.onnx",
        graph_sha256="",
        driver=None,
        version_compatible=False,
        hardware_compatibility="none",
        profiles=[{}],
        build_seconds=1.0,
        layers=3,
        kernels=None,
    )
    Engines(model="m", standard_sha256="", engines=[made]).write(folder)
    return made


def test_an_engine_that_was_changed_is_not_loaded(tmp_path: Path) -> None:
    one_engine(tmp_path)
    (tmp_path / "fp16-sm86.engine").write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"fp16-sm86.engine is damaged: its sha256 is not the manifest's"):
        TensorRtEngine(tmp_path)


def test_an_engine_outside_its_folder_is_not_loaded(tmp_path: Path) -> None:
    made = one_engine(tmp_path).model_copy(update={"file": "../fp16-sm86.engine"})
    Engines(model="m", standard_sha256="", engines=[made]).write(tmp_path)
    with pytest.raises(ArtifactError, match="is missing; build it again"):
        TensorRtEngine(tmp_path)


@pytest.mark.parametrize("damage", ["no", "checksum", "json"])
def test_a_damaged_description_is_one_line(tmp_path: Path, damage: str) -> None:
    one_engine(tmp_path)
    path = tmp_path / engine.DESCRIPTION
    if damage == "no":
        path.unlink()
    elif damage == "checksum":
        path.write_text(path.read_text().replace('"m"', '"other"'))
    else:
        path.write_text("{")
    with pytest.raises(ArtifactError) as raised:
        engine.read(tmp_path)
    assert "\n" not in str(raised.value)
    assert "build" in str(raised.value)


def test_a_precision_that_was_not_built_is_one_line(tmp_path: Path) -> None:
    one_engine(tmp_path)
    with pytest.raises(ArtifactError, match="no engine in bf16; name it in the build stage's precisions"):
        TensorRtEngine(tmp_path, "bf16")


@pytest.mark.parametrize(
    ("capability", "chosen"), [((8, 6), "8.6"), ((9, 0), "9.0"), ((8, 9), "9.0"), ((12, 0), "9.0"), ((7, 5), None)]
)
def test_a_gpu_takes_its_own_engine_before_one_for_all(
    tmp_path: Path, capability: tuple[int, int], chosen: str | None
) -> None:
    own = one_engine(tmp_path)
    for_all = own.model_copy(update={"compute_capability": "9.0", "hardware_compatibility": "ampere_plus"})
    found = engine.for_gpu([own, for_all], capability)
    assert (found and found.compute_capability) == chosen
    assert engine.for_gpu([own], (8, 9)) is None


def test_a_bundle_takes_no_engine_of_another(built_from: dict[str, Artifact]) -> None:
    """Old weights would answer with the new ids, and nobody would know."""
    folder = built_from["served"].path("bert4rec")
    made: Any = SimpleNamespace(name="tensorrt", threads=1, standard_sha256=digest(folder / STANDARD))
    assert Recommender.load(folder, runtime=made).runtime is made
    with pytest.raises(
        ArtifactError, match=r"the tensorrt runtime was made of another model.onnx; run the build stage"
    ):
        Recommender.load(built_from["served"].path("two_tower"), runtime=made)


def test_a_whole_engine_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    one_engine(tmp_path)
    with pytest.raises(RecPressError, match="engines run on a GPU, and there is none here"):
        TensorRtEngine(tmp_path)


def test_the_command_builds_nothing_of_a_recipe_without_a_build_stage() -> None:
    root = Path(__file__).resolve().parents[3]
    line = [sys.executable, "-m", "deploy.build", "recipes/tiny.yaml"]
    ended = subprocess.run(line, cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert (ended.returncode, ended.stderr) == (
        2,
        "recipes/tiny.yaml: the recipe has no build stage; "
        "its stages: data, teacher, student, control, weights8, int8, served, measure, report\n",
    )


def test_the_description_is_json_that_people_read(tmp_path: Path) -> None:
    one_engine(tmp_path)
    assert json.loads((tmp_path / engine.DESCRIPTION).read_text())["engines"][0]["compute_capability"] == "8.6"
