"""Requests as calls of a graph over texts: in parts or at once, from pieces or from the whole text, one answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

import fakes
import text_fakes
from compress import models, quantize
from compress.artifact import Artifact
from compress.data.histories import MASKED, Asked
from compress.data.interactions import Interactions
from compress.data.texts import FILES, Texts
from compress.methods.rounding import Rounding
from compress.recipe.serving import ExportSection, QuantizeSection
from compress.stage import Workspace
from deploy import export
from deploy.bundle import Bundle
from deploy.rankers import PLAIN, RANKERS, Ranker, pairs
from deploy.rankers.buckets import Buckets
from deploy.rankers.pairs import Pairs, PlainPairs
from deploy.rankers.towers import PlainTowers, Towers, of_like_length
from deploy.recommender import Recommender, Request
from deploy.runtimes import Arrays, Ids, Outputs, Runtime, Scores
from deploy.runtimes.torch import TorchEager, TorchServed

ITEMS, TOP = 60, 10
SHORT = 26
"""Tokens of a pair: too few for long histories."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """The last ten items have the texts of the first."""
    table = text_fakes.table(ITEMS)
    twins = table.with_columns(text=pl.concat([table["text"][:-10], table["text"][:10]]))
    return text_fakes.tokenized(tmp_path_factory.mktemp("texts"), twins)[0]


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """Nearly all texts are longer than three tokens."""
    return text_fakes.texts(tmp_path_factory.mktemp("cut"), ITEMS, max_item_tokens=3)


def description(family: str, max_length: int, pad_id: int = ITEMS) -> Bundle:
    """Of a bundle without files."""
    fields: dict[str, Any] = {"precision": "fp32", "needs_vnni": False, "targets": {}, "sha256": {}}
    sizes = {"catalogue_size": ITEMS, "pad_id": pad_id, "max_length": max_length, "top_k": TOP}
    return Bundle(family=family, **sizes, **fields)


def ranker(kind: type[Ranker], model: PreTrainedModel) -> Ranker:
    config = model.config
    return kind(model.texts.folder, description(config.recommender["family"], config.max_position_embeddings))


def served(model: PreTrainedModel) -> Runtime:
    return TorchServed(models.FAMILIES[model.config.recommender["family"]].serve(model, TOP, Rounding()))


def eager(model: PreTrainedModel) -> Runtime:
    return TorchEager(models.FAMILIES[model.config.recommender["family"]], model, TOP, threads=1)


class Recorded:
    """A runtime that remembers what it was asked."""

    name, threads, step = "recorded", 1, 1

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.calls: list[Arrays] = []

    def __call__(self, inputs: Arrays) -> Outputs:
        self.calls.append(inputs)
        return self.runtime(inputs)


def asked() -> Asked:
    """Histories, and what is excluded of each: themselves, nothing, and all but some."""
    histories = fakes.histories(1, 8, 0, 3, 5, items=ITEMS)
    few = [np.setdiff1d(np.arange(ITEMS), kept) for kept in ([4], range(13))]
    return Asked(histories, [histories[0], histories[1], np.array([], dtype=np.int64), *few])


def scored(model: PreTrainedModel, asked: Asked) -> NDArray[np.float32]:
    """The family's own scores of the catalogue; MASKED for what is excluded."""
    with torch.no_grad():
        scorer = models.FAMILIES[model.config.recommender["family"]].scorer(model)
        return np.maximum(scorer(asked).cpu().numpy(), np.float32(MASKED))


def assert_best(found: tuple[Ids, Scores], expected: NDArray[np.float32], tolerance: float = 1e-4) -> None:
    """The best items of each row, best first, each once, with their scores; near-ties in any order."""
    items, scores = found
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :TOP], atol=tolerance, rtol=tolerance)
    for row, answered in enumerate(scores > MASKED / 2):
        own = items[row, answered]
        assert len(set(own.tolist())) == len(own)
        np.testing.assert_allclose(expected[row, own], scores[row, answered], atol=tolerance, rtol=tolerance)


# --- pairs ---


@pytest.mark.parametrize("max_length", [SHORT, 64])
def test_pairs_are_ranked_as_the_model_scores_them_however_they_are_asked(texts: Texts, max_length: int) -> None:
    model = text_fakes.cross_encoder(texts, max_length=max_length)
    longest = max(len(texts.user(history, 1_000)) for history in asked().histories)
    assert (longest > texts.room(model.config.max_position_embeddings)) is (max_length == SHORT), (
        "some are cut, or none"
    )
    expected = scored(model, asked())
    for kind, runtime in ((Pairs, served(model)), (PlainPairs, eager(model)), (PlainPairs, served(model))):
        assert_best(ranker(kind, model).rank(runtime, asked()), expected)


def test_texts_that_were_cut_are_cut_however_they_are_asked(cut: Texts) -> None:
    model = text_fakes.cross_encoder(cut)
    expected = scored(model, asked())
    assert_best(ranker(Pairs, model).rank(served(model), asked()), expected)
    assert_best(ranker(PlainPairs, model).rank(eager(model), asked()), expected)


@pytest.mark.parametrize("part", [1, 7, 25, 60, 1_000])
def test_the_size_of_a_part_changes_no_answer(texts: Texts, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_fakes.cross_encoder(texts)
    expected = scored(model, asked())
    monkeypatch.setattr(pairs, "PART", part)
    runtime = Recorded(served(model))
    assert_best(ranker(Pairs, model).rank(runtime, asked()), expected)
    counts = [ITEMS - len(np.unique(excluded)) for excluded in asked().excluded]
    assert len(runtime.calls) == sum(-(-count // part) for count in counts)
    assert max(len(call["items"]) for call in runtime.calls) <= part


def test_a_part_holds_texts_of_like_length(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "PART", 7)
    calls = ranker(Pairs, text_fakes.cross_encoder(texts)).calls(Asked([np.array([3])], [np.array([3])]))
    sizes = [len(call["items"]) for call in calls]
    assert sum(sizes) == ITEMS - 1
    assert max(sizes) - min(sizes) <= 1
    lengths = [(call["items"] != texts.layout.pad).sum(axis=1) for call in calls]
    together = np.concatenate(lengths).tolist()
    assert together == sorted(together)
    assert [call["items"].shape[1] for call in calls] == [part.max() for part in lengths]


@pytest.mark.parametrize("kind", [Pairs, PlainPairs])
def test_calls_are_what_ranking_asks(texts: Texts, kind: type[Pairs]) -> None:
    model = text_fakes.cross_encoder(texts)
    runtime = Recorded(served(model))
    made = ranker(kind, model)
    made.rank(runtime, asked())
    expected = made.calls(asked())
    assert len(runtime.calls) == len(expected)
    for ours, theirs in zip(runtime.calls, expected, strict=True):
        assert list(ours) == list(theirs) == ["user", "items"]
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
            assert ours[name].dtype == np.int64


@pytest.mark.parametrize("kind", [Pairs, PlainPairs])
def test_items_of_one_text_stand_in_the_order_of_their_ids(texts: Texts, kind: type[Pairs]) -> None:
    twins = [4, 54, 7, 57]
    excluded = [np.setdiff1d(np.arange(ITEMS), twins)]
    model = text_fakes.cross_encoder(texts)
    items, scores = ranker(kind, model).rank(served(model), Asked([np.array([20, 21])], excluded))
    first = items[0, :4].tolist()
    assert first in ([4, 54, 7, 57], [7, 57, 4, 54])
    assert scores[0, 0] == pytest.approx(scores[0, 1], abs=1e-6)


@pytest.mark.parametrize("kind", [Pairs, PlainPairs])
def test_fewer_candidates_than_answers_leave_no_answer_behind_them(texts: Texts, kind: type[Pairs]) -> None:
    model = text_fakes.cross_encoder(texts)
    kept: Sequence[Sequence[int]] = [[], [5, 9, 30]]
    _, scores = ranker(kind, model).rank(served(model), Asked([np.array([1])] * 2, text_fakes.without(texts, *kept)))
    assert (scores > MASKED / 2).sum(axis=1).tolist() == [0, 3]
    assert (scores[scores <= MASKED / 2] == np.float32(MASKED)).all()
    assert ranker(kind, model).calls(Asked([np.array([1])], text_fakes.without(texts, []))) == []


# --- towers ---


@pytest.mark.parametrize("max_length", [SHORT, 64])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_towers_rank_as_the_model_scores_however_they_are_asked(texts: Texts, max_length: int, pooling: str) -> None:
    model = text_fakes.two_tower(texts, max_length=max_length, pooling=pooling)
    expected = scored(model, asked())
    for kind, runtime in ((Towers, served(model)), (PlainTowers, eager(model)), (PlainTowers, served(model))):
        assert_best(ranker(kind, model).rank(runtime, asked()), expected, 1e-3)


def test_towers_read_what_plain_towers_tokenise(texts: Texts, cut: Texts) -> None:
    for made in (texts, cut):
        for max_length in (SHORT, 64):
            model = text_fakes.two_tower(made, max_length=max_length)
            ours, (theirs,) = (ranker(kind, model).calls(asked()) for kind in (Towers, PlainTowers))
            pad = made.layout.pad
            read = sorted(row[row != pad].tolist() for call in ours for row in call["user"])
            assert read == sorted(row[row != pad].tolist() for row in theirs["user"])
            shut = sorted(sorted(set(row.tolist())) for call in ours for row in call["exclude"])
            assert [set(row) - {len(made.items)} for row in shut] == [
                set(row) - {len(made.items)} for row in sorted(sorted(set(row.tolist())) for row in theirs["exclude"])
            ]


@pytest.mark.parametrize("seed", range(5))
def test_texts_of_like_length_are_asked_together(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(2, 60, 64)
    groups = of_like_length(lengths)
    assert sorted(np.concatenate(groups).tolist()) == list(range(64))
    for group in groups:
        assert lengths[group].sum() >= 0.95 * len(group) * lengths[group].max()
    assert len(of_like_length(np.full(9, 7))) == 1


# --- buckets ---


@pytest.mark.parametrize("step", [1, 8, 1_000])
@pytest.mark.parametrize("family", ["bert4rec", "two_tower", "cross_encoder"])
def test_few_lengths_change_no_answer(texts: Texts, family: str, step: int) -> None:
    model = fakes.tiny_model(ITEMS) if family == "bert4rec" else getattr(text_fakes, family)(texts)
    if family == "bert4rec":
        made: Ranker = RANKERS[family](Path(), description(family, model.config.max_position_embeddings))
    else:
        made = ranker(RANKERS[family], model)
    exactly, filled = Recorded(served(model)), Recorded(served(model))
    filled.step = step
    told = asked().of([0, 1, 3, 4])
    expected = made.rank(exactly, told)
    items, scores = made.rank(Buckets(filled, made.fills), told)
    np.testing.assert_allclose(scores, expected[1], atol=1e-4)
    np.testing.assert_array_equal(items[scores > MASKED / 2], expected[0][scores > MASKED / 2])
    for ours, theirs in zip(filled.calls, exactly.calls, strict=True):
        for name, array in ours.items():
            longest = made.fills[name].longest if name in made.fills else None
            length = theirs[name].shape[-1]
            wanted = length if longest is None else max(length, min(longest, -(-length // step) * step))
            assert array.shape == (*theirs[name].shape[:-1], wanted)


def test_every_family_has_a_ranker_and_a_plain_way() -> None:
    assert set(RANKERS) == set(PLAIN) == set(models.FAMILIES)


# --- bundles ---


@pytest.fixture(scope="module")
def people() -> Interactions:
    return fakes.interactions(users=14, items=ITEMS)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, texts: Texts, people: Interactions) -> dict[str, Artifact]:
    """The data, trained models, and towers whose tables are int8 and whose products are floating point."""
    folder = tmp_path_factory.mktemp("inputs")
    found = {"data": text_fakes.data(folder / "data", text_fakes.table(ITEMS), people)}
    for name, model in {"pairs": text_fakes.cross_encoder(texts), "towers": text_fakes.two_tower(texts)}.items():
        (folder / name).mkdir()
        models.FAMILIES[model.config.recommender["family"]].save(model, folder / name / "model")
        found[name] = text_fakes.stored(folder / name, "finetune", name)
    (folder / "rounded").mkdir()
    section = QuantizeSection(kind="quantize", input="towers", linear="none")
    metrics = quantize.run(section, found, Workspace(folder / "rounded", seed=0))
    return found | {"rounded": text_fakes.stored(folder / "rounded", "quantize", "rounded", metrics)}


def exported(folder: Path, inputs: dict[str, Artifact], name: str) -> Path:
    folder.mkdir(exist_ok=True)
    section = ExportSection(kind="export", inputs=(name,), top_k=TOP)
    export.run(section, {"data": inputs["data"], name: inputs[name]}, Workspace(folder, seed=0))
    return folder / name


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Artifact]) -> Path:
    return exported(tmp_path_factory.mktemp("served"), inputs, "pairs")


@pytest.fixture(scope="module")
def recommender(bundle: Path) -> Recommender:
    return Recommender.load(bundle)


def raw(items: Sequence[int]) -> list[str]:
    return [f"id-{item}" for item in items]


def test_a_request_is_answered_with_the_allowed_items_as_the_model_ranks_them(
    recommender: Recommender, texts: Texts
) -> None:
    history, candidates = [3, 17, 8], [*range(20, 55), 8]
    excluded = np.append(np.setdiff1d(np.arange(ITEMS), candidates), 8)
    expected = scored(text_fakes.cross_encoder(texts), Asked([np.array(history)], [excluded]))
    answer = recommender.top_k(raw(history), allow=raw(candidates))
    items = np.array([[int(item.removeprefix("id-")) for item, _ in answer]])
    assert_best((items, np.array([[score for _, score in answer]], dtype=np.float32)), expected)


def test_unknown_items_are_skipped(recommender: Recommender) -> None:
    history, candidates = raw([3, 17]), raw(range(20, 30))
    known = recommender.top_k(history, k=5, allow=candidates)
    assert len(known) == 5
    assert recommender.top_k(["nowhere", *history, "never"], k=5, allow=["else", *candidates]) == known
    assert recommender.top_k(["nowhere"], allow=candidates) == recommender.top_k([], allow=candidates)


def test_an_empty_history_is_answered_by_popularity(recommender: Recommender, people: Interactions) -> None:
    candidates = np.arange(5, 40)
    popularity = people.popularity()
    expected = candidates[np.argsort(-popularity[candidates], kind="stable")][:6]
    answer = recommender.top_k([], k=6, allow=raw(candidates.tolist()))
    assert [item for item, _ in answer] == raw(expected.tolist())
    assert [score for _, score in answer] == pytest.approx((popularity[expected] / popularity.sum()).tolist())


def test_fewer_candidates_than_asked_for_give_fewer_answers(recommender: Recommender) -> None:
    history = raw([3, 17])
    for candidates in ([], [3], [40], [40, 41, 17, 42]):
        left = raw(sorted(set(candidates) - {3, 17}))
        answer = recommender.top_k(history, allow=raw(candidates))
        assert sorted(item for item, _ in answer) == left
        assert recommender.top_k(history, allow=raw(candidates), deny=left) == []


def test_each_request_of_a_batch_has_its_own_candidates(recommender: Recommender) -> None:
    requests = [
        Request(raw([1, 2]), 3, raw(range(10, 40))),
        Request([], 4, raw(range(5, 9))),
        Request(raw([50]), 10, raw([2, 4])),
        Request(raw([5, 6, 7, 8, 9]), 2, None, raw([0, 1])),
    ]
    together = recommender.answer(requests)
    for request, answer in zip(requests, together, strict=True):
        alone = recommender.top_k(request.history, request.k, allow=request.allow, deny=request.deny)
        assert [item for item, _ in alone] == [item for item, _ in answer]
        assert [score for _, score in alone] == pytest.approx([score for _, score in answer], abs=1e-5)


def test_a_bundle_over_texts_is_served_from_its_own_files_without_torch(bundle: Path) -> None:
    names = {path.name for path in bundle.iterdir()}
    assert names == {"bundle.json", "items.parquet", "model.onnx", "onnxruntime-cpu.onnx", *FILES}
    code = (
        "import sys; from deploy.recommender import Recommender; "
        f"print(len(Recommender.load({str(bundle)!r}).top_k(['id-3'], allow=['id-1', 'id-2']))); "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["2", "False", "False"]


@pytest.mark.parametrize("name", ["towers", "rounded"])
def test_towers_are_exported_and_answer_as_their_model(
    tmp_path: Path, inputs: dict[str, Artifact], texts: Texts, name: str
) -> None:
    answering = Recommender.load(exported(tmp_path / "served", inputs, name))
    _, model = models.load(inputs[name].path("model"))
    some = asked().of([0, 1, 4])
    assert_best(answering.rank(some), scored(model, some), 1e-3)
