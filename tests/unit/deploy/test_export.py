from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress import artifact, models
from compress.data.histories import Asked
from compress.data.interactions import Interactions
from compress.errors import ArtifactError, ParityError
from compress.methods.rounding import Rounding
from deploy import parity
from deploy.bundle import Bundle
from deploy.export import write_graph
from deploy.lowering import onnxruntime_cpu
from deploy.rankers.catalogue import Catalogue
from deploy.recommender import Recommender
from deploy.runtimes import Arrays, Ids, Outputs
from deploy.runtimes.onnxruntime import OnnxRuntimeCpu
from deploy.runtimes.torch import TorchEager

SEED_0 = Path("tiny") / "seed-0"


@pytest.fixture(scope="module")
def histories(tiny_run: Path) -> list[Ids]:
    interactions = Interactions.load(tiny_run / "tiny" / "data")
    return [interactions.history("test", user).astype(np.int64) for user in range(64)]


@pytest.mark.parametrize("name", ["teacher", "control", "weights8", "int8"])
def test_the_standard_graph_has_standard_operators_and_dynamic_shapes(tiny_run: Path, name: str) -> None:
    graph = onnx.load(tiny_run / SEED_0 / "served" / name / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    axes = {value.name: [axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in graph.graph.input}
    assert axes == {"history": ["batch", "length"], "exclude": ["batch", "excluded"]}


def description(catalogue_size: int, max_length: int) -> Bundle:
    """Of a bundle without files."""
    return Bundle(
        family="bert4rec",
        precision="fp32",
        catalogue_size=catalogue_size,
        pad_id=catalogue_size,
        max_length=max_length,
        top_k=10,
        needs_vnni=False,
        targets={},
        sha256={},
    )


@pytest.mark.parametrize("attention", ["causal", "masked"])
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_a_graph_answers_as_its_model_at_several_shapes(attention: str, heads: int, tmp_path: Path) -> None:
    from compress.recipe.model import Bert4RecModel

    torch.manual_seed(0)
    family = models.FAMILIES["bert4rec"]
    section = Bert4RecModel.model_validate(
        {
            "family": "bert4rec",
            "hidden_size": 16,
            "num_attention_heads": heads,
            "max_length": 12,
            "attention": attention,
        }
    )
    model = family.build(section, catalogue_size=40).eval()
    for parameter in model.parameters():  # fresh biases are zero, which would hide a lost one
        torch.nn.init.normal_(parameter, std=0.3)
    served = family.serve(model, 10, Rounding()).eval()
    write_graph(served, tmp_path / "model.onnx")
    onnxruntime_cpu.lower(tmp_path / "model.onnx", tmp_path / "cpu.onnx", Rounding(), served.linear_weights, vnni=False)
    random = np.random.default_rng(0)
    some = [random.permutation(40)[: random.integers(1, 25)] for _ in range(64)]
    ranker = Catalogue(tmp_path, description(catalogue_size=40, max_length=12))
    eager = partial(ranker.rank, TorchEager(family, model, 10, threads=1))
    for file in ("model.onnx", "cpu.onnx"):
        ours = partial(ranker.rank, OnnxRuntimeCpu(tmp_path / file, 1))
        agreement = parity.compare(ours, eager, Asked(some, some))
        assert agreement.same_top_k == 1
        assert agreement.max_score_error < 1e-4


def test_the_int8_graph_multiplies_integers_and_stores_its_table_as_bytes(tiny_run: Path) -> None:
    folder = tiny_run / SEED_0 / "served"
    fp32, int8 = (onnx.load(folder / name / "onnxruntime-cpu.onnx") for name in ("control", "int8"))
    kinds = {node.op_type for node in int8.graph.node}
    assert kinds & {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger"}
    tables = [tensor for tensor in int8.graph.initializer if tensor.dims == [122, 16]]
    assert [tensor.data_type for tensor in tables] == [onnx.TensorProto.INT8]
    assert not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in fp32.graph.initializer)


def test_weights_get_seven_bits_where_the_processor_saturates(tiny_run: Path, tmp_path: Path) -> None:
    folder = tiny_run / SEED_0 / "served" / "control"
    family, model = models.load(tiny_run / SEED_0 / "control" / "model")
    rounding = Rounding(linear="dynamic")
    names = family.serve(model, 10, rounding).linear_weights
    for vnni, limit in ((True, 127), (False, 64)):
        onnxruntime_cpu.lower(folder / "model.onnx", tmp_path / "int8.onnx", rounding, names, vnni=vnni)
        graph = onnx.load(tmp_path / "int8.onnx").graph
        weights = [
            onnx.numpy_helper.to_array(tensor).astype(int)
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
        ]
        assert weights
        largest = max(np.abs(weight).max() for weight in weights)
        assert limit // 2 < largest <= limit


def test_the_manifest_states_parity_of_every_graph(tiny_run: Path) -> None:
    metrics = artifact.read(tiny_run / SEED_0 / "served").metrics
    agreement = {
        (name, what): facts["same_top_k"] for name in metrics for what, facts in metrics[name]["parity"].items()
    }
    inexact = {("weights8", "rewrite"), ("int8", "onnxruntime-cpu.onnx")}
    assert {key for key, same in agreement.items() if same < 1} <= inexact
    assert len(agreement) == 3 * len(metrics)
    assert metrics["int8"]["parity"]["onnxruntime-cpu.onnx"]["overlap"] > 0.8


def test_the_manifest_says_how_and_of_what_each_is_the_rounding(tiny_run: Path) -> None:
    metrics = artifact.read(tiny_run / SEED_0 / "served").metrics
    assert {name: (facts["linear"], facts["rounded_from"]) for name, facts in metrics.items()} == {
        "teacher": ("none", None),
        "control": ("none", None),
        "weights8": ("weights", "student"),
        "int8": ("dynamic", "student"),
    }


class Wrong:
    """A runtime with one defect."""

    name, threads = "wrong", 1

    def __init__(self, right: OnnxRuntimeCpu, items: int = 0, scores: float = 0) -> None:
        self.right, self.items, self.scores = right, items, scores

    def __call__(self, inputs: Arrays) -> Outputs:
        items, scores = self.right(inputs)
        return items + self.items, scores + np.float32(self.scores)


@pytest.mark.parametrize("defect", [{"items": 1}, {"scores": 0.01}])
def test_a_graph_that_answers_otherwise_fails(tiny_run: Path, histories: list[Ids], defect: dict[str, int]) -> None:
    folder = tiny_run / SEED_0 / "served" / "control"
    right = OnnxRuntimeCpu(folder / "model.onnx", 1)
    wrong, reference = (Recommender.load(folder, runtime=each) for each in (Wrong(right, **defect), right))
    agreement = parity.compare(wrong.rank, reference.rank, Asked(histories, histories))
    with pytest.raises(ParityError, match="get other items than in PyTorch"):
        parity.check(agreement, "model.onnx", exact=True)


def test_near_ties_may_change_places_and_others_may_not() -> None:
    def fixed(items: list[int], scores: list[float]) -> parity.Rank:
        return lambda asked: (np.array([items]), np.array([scores], dtype=np.float32))

    def same(scores: list[float]) -> float:
        swapped, right = fixed([2, 1, 3], scores), fixed([1, 2, 3], scores)
        return parity.compare(swapped, right, Asked([np.array([0])], [np.array([0])])).same_top_k

    assert same([5.0, 5.0 - 5e-5, 1.0]) == 1
    assert same([5.0, 4.9, 1.0]) == 0


def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(ArtifactError) as caught:
        OnnxRuntimeCpu(tmp_path / "x.onnx", 1)
    assert "\n" not in str(caught.value)


def test_two_threads_answer_as_one(tiny_run: Path, histories: list[Ids]) -> None:
    one, two = (Recommender.load(tiny_run / SEED_0 / "served" / "teacher", threads=count) for count in (1, 2))
    np.testing.assert_array_equal(one.rank(Asked(histories, histories))[0], two.rank(Asked(histories, histories))[0])
