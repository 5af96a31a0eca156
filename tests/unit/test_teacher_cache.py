"""Teachers are asked once, and what they said is what they would say."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fakes
import text_fakes
from compress import teacher_cache
from compress.data.interactions import Interactions
from compress.errors import RecipeError
from compress.learner import Learner, Taught
from compress.methods import losses
from compress.models.bert4rec import Bert4Rec
from compress.models.cross_encoder import CrossEncoder
from compress.models.family import Batch, Drawn, Supervision
from compress.recipe.losses import KL, MSE, Hidden, Loss, MarginMSE, RankNet
from compress.teacher_cache import TeacherCache, forget_earlier, key

ITEMS = 22


def people() -> Interactions:
    return fakes.interactions_of([[(user + step) % ITEMS for step in range(4 + user % 5)] for user in range(10)], ITEMS)


def of_items(attention: str, loss: Loss) -> tuple[Learner, Any]:
    family = Bert4Rec()
    student, teacher = (fakes.tiny_model(items=ITEMS, seed=seed, attention=attention) for seed in (0, 1))
    learner = Learner(family, student, [loss], ITEMS, Taught([(family, teacher)])).eval()
    return learner, family.examples(student, people(), 0)


def of_texts(folder: Path, loss: Loss) -> tuple[Learner, Any]:
    family, texts = CrossEncoder(), text_fakes.texts(folder, ITEMS)
    student, teacher = (text_fakes.cross_encoder(texts, seed=seed) for seed in (0, 1))
    learner = Learner(family, student, [loss], ITEMS, Taught([(family, teacher)])).eval()
    return learner, family.examples(student, people(), 0)


def filled(
    folder: Path, learner: Learner, examples: Any, variants: int = 1, top: int = ITEMS, layers: Sequence[int] = ()
) -> TeacherCache:
    cache = TeacherCache(examples, folder, variants, layers)
    cache.fill(learner.ask, top, batch_size=3)  # type: ignore[arg-type]
    return cache


def value(learner: Learner, examples: Any, rows: range = range(7)) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        found: Tensor = learner(**examples.collate([examples[row] for row in rows]))["loss"]
    return found


def scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("top", [3, 7])
def test_kl_to_the_best_is_kl_to_all(temperature: float, top: int) -> None:
    student, items, best, rest = (
        scores(5, 7),
        scores(5, 7, seed=1).topk(top).indices,
        scores(5, top, seed=2),
        scores(5, seed=3),
    )
    dense = rest[:, None].repeat(1, 7).scatter(1, items, best)
    found = losses.kl_to_best(student, items, best, rest, temperature)
    torch.testing.assert_close(found, losses.kl(student, dense, temperature))
    assert torch.autograd.gradcheck(
        lambda table: losses.kl_to_best(table, items, best, rest, temperature), student.requires_grad_()
    )


LOSSES = [
    KL(kind="kl"),
    KL(kind="kl", temperature=2),
    MSE(kind="mse"),
    MarginMSE(kind="margin_mse"),
    RankNet(kind="ranknet", top=4, others=0),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.kind}-{getattr(loss, 'temperature', '')}")
@pytest.mark.parametrize("made", ["causal", "masked", "texts"])
def test_what_is_remembered_is_what_would_be_said(tmp_path: Path, made: str, loss: Loss) -> None:
    learner, examples = of_texts(tmp_path / "texts", loss) if made == "texts" else of_items(made, loss)
    expected = value(learner, examples)
    cache = filled(tmp_path / "cache", learner, examples)
    asked = learner.ask
    learner.ask = None  # type: ignore[method-assign, assignment]
    assert value(learner, cache).item() == pytest.approx(expected.item(), rel=5e-3, abs=1e-4), "halves have 11 bits"
    assert asked


HIDDEN = Hidden(kind="hidden", layers={0: 0, 1: 1})


@pytest.mark.parametrize("attention", ["causal", "masked"])
def test_hidden_states_are_remembered_where_no_padding_is(tmp_path: Path, attention: str) -> None:
    learner, examples = of_items(attention, HIDDEN)
    expected = value(learner, examples)
    cache = filled(tmp_path, learner, examples, layers=(0, 1))
    learner.ask = None  # type: ignore[method-assign, assignment]
    assert value(learner, cache).item() == pytest.approx(expected.item(), rel=2e-3)
    states = next(tmp_path.glob("*/states.npy"))
    np.save(states, np.load(states) + 1)
    assert not teacher_cache.whole(states.parent)


def test_hidden_states_of_rows_that_are_no_example_s_own_are_refused(tmp_path: Path) -> None:
    learner, examples = of_texts(tmp_path / "texts", HIDDEN)
    with pytest.raises(RecipeError, match="cache: texts of an example share no row"):
        filled(tmp_path / "cache", learner, examples, layers=(0, 1))


def test_beyond_the_best_all_share_what_is_left(tmp_path: Path) -> None:
    learner, examples = of_items("causal", KL(kind="kl"))
    batch = examples.collate([examples[row] for row in range(4)])
    theirs = learner.ask(batch)
    assert theirs is not None
    cache = filled(tmp_path, learner, examples, top=5)
    with_records = cache.collate([cache[row] for row in range(4)])
    student = learner.family.supervise(learner.model, with_records)
    found = teacher_cache.remembered(with_records, student).scores()
    best = theirs.scores().topk(5)
    assert found.gather(1, best.indices) == pytest.approx(best.values, abs=0.01)
    torch.testing.assert_close(found.logsumexp(1), theirs.scores().logsumexp(1), atol=0.01, rtol=0)
    rest = found.scatter(1, best.indices, torch.nan)
    assert np.nanstd(rest.numpy(), axis=1) == pytest.approx(0, abs=1e-6)


class Counting:
    """Answers as a learner's teachers, until it has been asked too often."""

    def __init__(self, ask: Callable[[Batch], Supervision | None], limit: int = 10**9) -> None:
        self.inner, self.limit, self.asked = ask, limit, 0

    def __call__(self, batch: Batch) -> Supervision:
        if self.asked >= self.limit:
            raise KeyboardInterrupt
        self.asked += 1
        found = self.inner(batch)
        assert found is not None
        return found


def test_a_killed_filling_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "SHARD", 4)
    learner, examples = of_items("causal", KL(kind="kl"))
    cache = TeacherCache(examples, tmp_path, variants=2)
    shards = -(-len(examples) // 4)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(Counting(learner.ask, limit=3), 6, batch_size=2)  # two batches a shard: one is whole
    rest = Counting(learner.ask)
    assert cache.fill(rest, 6, batch_size=2) == 2 * len(examples) - 4
    again = Counting(learner.ask)
    assert cache.fill(again, 6, batch_size=2) == again.asked == 0
    whole = filled(tmp_path / "whole", learner, examples, variants=2, top=6)
    assert value(learner, cache).equal(value(learner, whole))
    assert len(list(tmp_path.glob("variant-*"))) == 2 * shards
    assert not list(tmp_path.glob(".variant-*"))


@pytest.mark.parametrize("how", ["changed", "cut", "lost", "described"])
def test_a_damaged_shard_is_asked_for_again(tmp_path: Path, how: str) -> None:
    learner, examples = of_items("causal", KL(kind="kl"))
    before = value(learner, filled(tmp_path, learner, examples))
    path = tmp_path / "variant-0-shard-0" / ("shard.json" if how == "described" else "scores.npy")
    content = path.read_bytes()
    if how == "lost":
        path.unlink()
    else:
        path.write_bytes(content[:-2] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    teacher_cache._open.cache_clear()
    cache = TeacherCache(examples, tmp_path, 1)
    assert cache.fill(Counting(learner.ask), ITEMS, 3) == len(examples)
    assert value(learner, cache).equal(before)


def test_epochs_take_turns_with_the_variants(tmp_path: Path) -> None:
    learner, examples = of_items("masked", KL(kind="kl"))
    cache = filled(tmp_path, learner, examples, variants=3)
    seen = []
    for epoch in range(7):
        cache.set_epoch(epoch)
        batch = cache.collate([cache[row] for row in range(5)])
        examples.set_epoch(epoch % 3)
        expected = examples.collate([examples[row] for row in range(5)])
        assert all(batch[name].equal(expected[name]) for name in expected)
        seen.append(value(learner, cache).item())
    assert seen[:3] == seen[3:6]
    assert len(set(seen)) == 3


def test_nothing_but_arrays_and_json_is_kept(tmp_path: Path) -> None:
    learner, examples = of_items("causal", KL(kind="kl"))
    filled(tmp_path, learner, examples)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".npy", ".json"}


def test_two_students_may_fill_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one has finished a shard while this one was asking."""
    learner, examples = of_items("causal", KL(kind="kl"))
    inner = Counting(learner.ask)

    def ask(batch: Batch) -> Supervision:
        if not inner.asked:
            inner.asked = 1
            with monkeypatch.context() as patched:
                patched.setattr(os, "getpid", lambda: -1)
                filled(tmp_path, learner, replace_examples(examples), top=6)
        return inner(batch)

    cache = TeacherCache(examples, tmp_path, 1)
    cache.fill(ask, 6, 3)
    assert teacher_cache.whole(tmp_path / "variant-0-shard-0")
    assert value(learner, cache).isfinite()


def replace_examples(examples: Any) -> Any:
    return Bert4Rec().examples(fakes.tiny_model(items=ITEMS), replace(examples.interactions), 0)


def test_what_shapes_no_example_asks_nobody_again(tmp_path: Path) -> None:
    texts = text_fakes.texts(tmp_path)
    people = fakes.interactions(items=text_fakes.COUNT)

    def shaped_by(**options: Any) -> Any:
        model = text_fakes.cross_encoder(texts, **options)
        return CrossEncoder().examples(model, people, seed=0).shaped_by

    alike = shaped_by()
    assert shaped_by(attention="one_way") == shaped_by(num_hidden_layers=1) == shaped_by(hidden_size=8) == alike
    for other in ({"negatives": 2}, {"drawn": "popularity"}, {"max_length": 40}):
        assert shaped_by(**other) != alike
    causal, masked = fakes.tiny_model(), fakes.tiny_model(attention="masked")
    windows = [Bert4Rec().examples(model, fakes.interactions(), seed=0) for model in (causal, masked)]
    assert windows[0].shaped_by != windows[1].shaped_by
    assert Drawn(windows[0], 5, seed=0).shaped_by != Drawn(windows[0], 6, seed=0).shaped_by


def test_what_earlier_teachers_said_is_deleted_and_what_others_read_stays(tmp_path: Path) -> None:
    def ingredients(top: int = 10, code: tuple[str, ...] = ("a",), **inputs: str) -> dict[str, Any]:
        return {"inputs": {"data": "0", "teacher": "1", **inputs}, "top": top, "code": code}

    kept = [ingredients(), ingredients(top=20), ingredients(start="another student's")]
    gone = [ingredients(teacher="0"), ingredients(code=("b",))]
    for each in (*gone, *kept):
        (tmp_path / key(each)).mkdir()
        forget_earlier(tmp_path, each)
    (tmp_path / "of-nobody").mkdir()
    forget_earlier(tmp_path, kept[0])
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {key(each) for each in kept}
