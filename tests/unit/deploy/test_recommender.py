from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data.histories import left_padded
from compress.data.interactions import Interactions
from compress.errors import ArtifactError, RecPressError
from deploy import bundle
from deploy import recommender as recommender_module
from deploy.recommender import Recommendation, Recommender, Request


@pytest.fixture(scope="module")
def folder(tiny_run: Path) -> Path:
    return tiny_run / "tiny" / "seed-0" / "served" / "control"


@pytest.fixture(scope="module")
def recommender(folder: Path) -> Recommender:
    return Recommender.load(folder)


@pytest.fixture(scope="module")
def interactions(tiny_run: Path) -> Interactions:
    return Interactions.load(tiny_run / "tiny" / "data")


def raw(recommender: Recommender, interactions: Interactions, user: int) -> list[str]:
    return [recommender.item_ids[item] for item in interactions.history("test", user)]


def test_answers_are_ranked_unseen_and_as_many_as_asked(recommender: Recommender, interactions: Interactions) -> None:
    history = raw(recommender, interactions, 0)
    answer = recommender.top_k(history, k=7)
    scores = [score for _, score in answer]
    assert len(answer) == 7
    assert scores == sorted(scores, reverse=True)
    assert not {item for item, _ in answer} & set(history)


def test_a_batch_answers_as_its_requests_one_by_one(recommender: Recommender, interactions: Interactions) -> None:
    histories = [raw(recommender, interactions, user)[: 3 + user] for user in range(9)]
    together = recommender.top_k_batch(histories)
    for history, answer in zip(histories, together, strict=True):
        alone = recommender.top_k(history)
        assert [item for item, _ in alone] == [item for item, _ in answer]
        assert [score for _, score in alone] == pytest.approx([score for _, score in answer], abs=1e-5)


def test_an_empty_history_gets_the_most_popular_items(recommender: Recommender, interactions: Interactions) -> None:
    counts = interactions.popularity()
    answer = recommender.top_k([], k=3)
    expected = [recommender.item_ids[item] for item in np.argsort(-counts, kind="stable")[:3]]
    assert [item for item, _ in answer] == expected
    assert answer[0].score == pytest.approx(counts.max() / counts.sum())


def test_unknown_items_are_skipped(recommender: Recommender, interactions: Interactions) -> None:
    history = raw(recommender, interactions, 3)
    assert recommender.top_k(["nowhere", *history, "never"]) == recommender.top_k(history)
    assert recommender.top_k(["nowhere"]) == recommender.top_k([])


def test_an_overlong_history_is_read_from_its_end_and_excluded_whole(
    recommender: Recommender, interactions: Interactions
) -> None:
    everything = recommender.item_ids[:60]
    latest = everything[-recommender.description.max_length :]
    long, short = (recommender.top_k(history) for history in (everything, latest))
    assert not {item for item, _ in long} & set(everything)
    kept = [item for item, _ in short if item not in everything]
    assert [item for item, _ in long][: len(kept)] == kept


def test_a_used_up_catalogue_gives_fewer_items(recommender: Recommender) -> None:
    assert [item for item, _ in recommender.top_k(recommender.item_ids[2:])] != []
    assert {item for item, _ in recommender.top_k(recommender.item_ids[2:])} == set(recommender.item_ids[:2])
    assert recommender.top_k(recommender.item_ids) == []


def ids(answer: list[Recommendation]) -> list[str]:
    return [item for item, _ in answer]


@pytest.mark.parametrize("known", [True, False], ids=["a history", "none"])
def test_only_what_is_allowed_and_not_denied_is_recommended(
    recommender: Recommender, interactions: Interactions, known: bool
) -> None:
    history = raw(recommender, interactions, 2) if known else []
    best = ids(recommender.top_k(history))
    assert ids(recommender.top_k(history, deny=best[:4]))[:6] == best[4:]
    assert ids(recommender.top_k(history, allow=[*best[::2], *history, "nowhere"])) == best[::2]
    assert ids(recommender.top_k(history, allow=best, deny=["nowhere", *best[1:]])) == best[:1]
    assert recommender.top_k(history, allow=[]) == recommender.top_k(history, deny=recommender.item_ids) == []


def test_each_request_of_a_batch_has_its_own_k_and_lists(recommender: Recommender, interactions: Interactions) -> None:
    histories = [raw(recommender, interactions, user) for user in range(3)]
    best = [ids(recommender.top_k(history)) for history in [*histories, []]]
    answers = recommender.answer(
        [
            Request(histories[0], k=3),
            Request(histories[1], allow=best[1][5:]),
            Request(histories[2], k=2, deny=best[2][:1]),
            Request([], k=4, deny=best[3][:1]),
        ]
    )
    assert [ids(answer) for answer in answers] == [best[0][:3], best[1][5:], best[2][1:3], best[3][1:5]]


@pytest.mark.parametrize("k", [0, -1, 11])
def test_a_k_that_the_graph_does_not_answer_is_refused(recommender: Recommender, k: int) -> None:
    with pytest.raises(RecPressError, match=rf"k = {k}: this bundle answers 1 to 10"):
        recommender.top_k([], k=k)


def test_padding_does_not_change_an_answer(recommender: Recommender, interactions: Interactions) -> None:
    history = interactions.history("test", 5)[-8:]
    pad_id = recommender.description.pad_id
    plain = left_padded([history], 20, pad_id)
    padded = np.pad(plain, ((0, 0), (12, 0)), constant_values=pad_id)
    items, scores = recommender.runtime({"history": plain, "exclude": plain})
    padded_items, padded_scores = recommender.runtime({"history": padded, "exclude": padded})
    np.testing.assert_array_equal(items, padded_items)
    np.testing.assert_allclose(scores, padded_scores, atol=1e-5)


def test_a_bundle_is_served_without_torch(folder: Path) -> None:
    code = (
        "import sys; from deploy.recommender import Recommender; "
        f"Recommender.load({str(folder)!r}).top_k([]); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("file", ["onnxruntime-cpu.onnx", "model.onnx", "items.parquet"])
def test_a_damaged_file_of_a_bundle_is_named(folder: Path, tmp_path: Path, file: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{file} is damaged"):
        Recommender.load(copy)


def test_brackets_in_a_path_are_brackets(folder: Path, tmp_path: Path) -> None:
    assert Recommender.load(shutil.copytree(folder, tmp_path / "runs[1]*")).top_k([])


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no bundle"):
        Recommender.load(tmp_path)
    (tmp_path / "bundle.json").write_text('{"sha256": {"../../etc/passwd": "0"}}')
    with pytest.raises(ArtifactError, match="damaged"):
        Recommender.load(tmp_path)


def test_a_bundle_that_names_a_file_outside_itself_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    shutil.copy(folder / "model.onnx", tmp_path / "model.onnx")
    sha256 = bundle.read(folder).sha256
    rewrite(copy, targets={"onnxruntime-cpu": "../model.onnx"}, sha256=sha256 | {"../model.onnx": sha256["model.onnx"]})
    with pytest.raises(ArtifactError, match="missing"):
        Recommender.load(copy)


def test_a_graph_without_a_hash_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    rewrite(copy, targets={"onnxruntime-cpu": "../other.onnx"})
    with pytest.raises(ArtifactError, match=r"no sha256 of \.\./other\.onnx"):
        Recommender.load(copy)


def rewrite(folder: Path, **fields: Any) -> None:
    """Changes a bundle's description as someone who knows its checksum would."""
    bundle.read(folder).model_copy(update=fields).write(folder)


def test_a_flipped_digit_in_the_description_is_noticed(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    text = (copy / "bundle.json").read_text()
    (copy / "bundle.json").write_text(text.replace('"pad_id": 120', '"pad_id": 121'))
    with pytest.raises(ArtifactError, match="damaged"):
        Recommender.load(copy)


def test_integer_products_made_for_vnni_are_refused_without_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    rewrite(copy, needs_vnni=True)
    monkeypatch.setattr(recommender_module, "hardware", lambda: {"vnni": "false"})
    with pytest.raises(RecPressError, match="VNNI; int8 products overflow on this one"):
        Recommender.load(copy)
    monkeypatch.setattr(recommender_module, "hardware", lambda: {"vnni": "true"})
    Recommender.load(copy)


def test_a_target_that_was_not_exported_is_refused(folder: Path) -> None:
    with pytest.raises(RecPressError, match="no graph for tensorrt; it has onnxruntime-cpu"):
        Recommender.load(folder, target="tensorrt")
