"""recipes/tiny_static.yaml as a user runs it, up to its bundles, and a refresh of what it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from benchmarks.invariance import invariance
from compress import artifact, models, refresh
from compress.artifact import Artifact, digest
from compress.data.histories import Asked
from compress.data.interactions import Interactions
from compress.errors import ParityError
from compress.methods.linear_rounding import QUANTIZATION
from compress.methods.rounding import Rounding
from compress.recipe.serving import ExportSection, RefreshSection
from compress.stage import Workspace
from conftest import ROOT, recpress
from deploy import bundle, export, parity
from deploy.lowering import onnxruntime_cpu
from deploy.recommender import Recommender

SEED_0 = Path("tiny-static") / "seed-0"


@pytest.fixture(scope="module")
def static_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's exported models; `runs` folder."""
    runs = tmp_path_factory.mktemp("static") / "runs"
    upto = "data,teacher,static,smoothed,hard,aware,served"
    ended = recpress(ROOT / "recipes" / "tiny_static.yaml", "--runs", runs, "--one-process", "--only", upto)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return runs


@pytest.fixture(scope="module")
def inputs(static_run: Path) -> dict[str, Artifact]:
    home = static_run / "tiny-static"
    return {"data": artifact.read(home / "data"), "static": artifact.read(home / "seed-0" / "static")}


def test_each_graph_is_held_to_the_one_that_rounds_alike(static_run: Path) -> None:
    metrics = artifact.read(static_run / SEED_0 / "served").metrics
    for name in ("static", "smoothed", "aware"):
        agreement = metrics[name]["parity"]
        assert list(agreement) == ["rewrite", "model.onnx", "rounded", "onnxruntime-cpu.onnx"]
        assert agreement["rewrite"]["same_top_k"] == agreement["model.onnx"]["same_top_k"] == 1
        assert agreement["rounded"]["max_score_error"] > 1e-4, "what rounding does to scores is said"
        assert agreement["onnxruntime-cpu.onnx"]["overlap"] >= 0.99
        assert metrics[name]["method"] == "served graph, static products and item table int8"


def test_the_standard_graph_is_in_floating_point_and_the_lowered_one_in_integers(static_run: Path) -> None:
    for name, left in (("static", 0), ("smoothed", 1), ("aware", 0)):
        folder = static_run / SEED_0 / "served" / name
        standard, lowered = (onnx.load(folder / file).graph for file in ("model.onnx", "onnxruntime-cpu.onnx"))
        assert not any("Quantize" in node.op_type for node in standard.node)
        maps = Rounding.of(artifact.read(static_run / SEED_0 / name)).maps
        assert sum(how is None for how in maps.values()) == left
        integer = [node for node in lowered.node if node.op_type == "MatMulIntegerToFloat"]
        assert len(integer) == len(maps) - left


def test_a_bundle_says_how_its_products_are_rounded(static_run: Path) -> None:
    for name in ("static", "smoothed"):
        said, of_the_stage = (static_run / SEED_0 / folder / QUANTIZATION for folder in (f"served/{name}", name))
        assert said.read_bytes() == of_the_stage.read_bytes()
        assert bundle.read(said.parent).sha256[QUANTIZATION] == digest(said)
    assert not (static_run / SEED_0 / "served" / "teacher" / QUANTIZATION).exists()


def test_a_bundle_answers_one_user_as_many(static_run: Path, inputs: dict[str, Artifact]) -> None:
    interactions = Interactions.of(inputs)
    histories = [interactions.history("test", user).astype(np.int64) for user in range(40)]
    for name in ("static", "smoothed", "aware"):
        recommender = Recommender.load(static_run / SEED_0 / "served" / name)
        items, scores = recommender.rank(Asked(histories, histories))
        for row, history in enumerate(histories):
            own_items, own_scores = recommender.rank(Asked([history], [history]))
            assert own_items[0].tolist() == items[row].tolist()
            np.testing.assert_allclose(own_scores[0], scores[row], atol=1e-4)


def test_training_keeps_the_scales_it_was_calibrated_with(static_run: Path) -> None:
    hard, aware = (artifact.read(static_run / SEED_0 / name) for name in ("hard", "aware"))
    assert (aware.manifest.kind, aware.metrics["rounding"]) == ("distill", hard.metrics["rounding"])
    before, after = Rounding.of(hard).maps, Rounding.of(aware).maps
    assert list(before) == list(after)
    for name, how in after.items():
        was = before[name]
        assert how is not None
        assert was is not None
        assert (how.input_scale, how.input_zero_point) == (was.input_scale, was.input_zero_point)
        assert (how.weight_bits, how.per_channel, len(set(how.weight_scales.tolist()))) == (4, False, 1)
    metrics = artifact.read(static_run / SEED_0 / "served").metrics
    assert (metrics["aware"]["kind"], metrics["aware"]["training"]["steps"]) == ("distill", aware.metrics["steps"])
    assert {metrics[name]["rounded_from"] for name in ("static", "smoothed", "aware")} == {"teacher"}


def test_static_answers_are_the_same_in_any_company(static_run: Path, inputs: dict[str, Artifact]) -> None:
    interactions = Interactions.of(inputs)
    for name in ("static", "aware"):
        found = invariance(Recommender.load(static_run / SEED_0 / "served" / name), interactions)
        assert found["users"] == 150
        assert found["padded"] == found["batch"] == {"same": 1.0, "overlap": 1.0}


def test_a_graph_with_other_scales_fails(
    static_run: Path, inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lowered from inputs' ranges a thousand times too narrow: everything is clipped."""
    right = onnxruntime_cpu.quantize_dequantize.insert

    def wrong(model: onnx.ModelProto, maps: object) -> None:
        right(model, maps)  # type: ignore[arg-type]
        for tensor in model.graph.initializer:
            if tensor.name.endswith(".input_scale"):
                tensor.CopyFrom(
                    onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) / np.float32(1000), tensor.name)
                )

    monkeypatch.setattr(onnxruntime_cpu.quantize_dequantize, "insert", wrong)
    section = ExportSection(kind="export", inputs=("static",))
    with pytest.raises(ParityError, match=r"static: onnxruntime-cpu.onnx: int8 shares only .* \(at least 90%\)"):
        export.run(section, inputs, Workspace(tmp_path, seed=0))


def test_parity_asks_more_of_the_same_integers() -> None:
    alike = parity.Parity(10, 0.2, 0.8, 0.1)
    parity.check(alike, "int8", exact=False)
    with pytest.raises(ParityError):
        parity.check(alike, "int8", exact=False, least_overlap=parity.SAME_INTEGERS)


def test_a_refreshed_catalogue_is_multiplied_as_before(
    static_run: Path, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    made = tmp_path / "tonight"
    made.mkdir()
    pl.DataFrame({"item_id": ["new"], "text": ["cluster 3 item x"]}).write_csv(tmp_path / "new.csv")
    section = RefreshSection(kind="refresh", input="static", add=tmp_path / "new.csv")
    metrics = refresh.run(section, inputs, Workspace(made, seed=0))
    described = {"name": "tonight", "kind": "refresh", "fingerprint": "", "ingredients": {}, "environment": {}}
    tonight = artifact.write(made, seed=0, seconds=0.0, metrics=metrics, **described)
    assert (made / QUANTIZATION).read_bytes() == inputs["static"].path(QUANTIZATION).read_bytes()
    assert metrics["ndcg@10_before"] == pytest.approx(inputs["static"].metrics["ndcg@10"], abs=1e-5)
    _, model = models.load(tonight.path("model"))
    assert model.config.pad_token_id == 121
    folder = tmp_path / "served"
    folder.mkdir()
    exported = export.run(
        ExportSection(kind="export", inputs=("tonight",)), {**inputs, "tonight": tonight}, Workspace(folder, 0)
    )
    assert exported["tonight"]["parity"]["onnxruntime-cpu.onnx"]["overlap"] >= 0.99
