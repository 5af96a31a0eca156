"""BERT4Rec: the same scores however they are asked for, and examples that never show what is held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from transformers import BertForMaskedLM

import fakes
from compress.data.histories import MASKED, Asked, Histories, left_padded
from compress.data.interactions import Interactions
from compress.methods.cooccurrence import item_vectors
from compress.methods.new_rows import mean_rows
from compress.methods.rounding import Rounding, quantize_rows
from compress.models.bert4rec import UNLABELLED, Bert4Rec
from compress.models.family import Examples

ATTENTIONS = ("causal", "masked")
ITEMS = 20
PAD, MASK = ITEMS, ITEMS + 1
family = Bert4Rec()


def scores(model: BertForMaskedLM, histories: Histories) -> Tensor:
    with torch.no_grad():
        return family.score(model, Asked(histories, fakes.nothing(histories)))


def logits(model: BertForMaskedLM, ids_BL: Tensor) -> Tensor:
    """Hugging Face's own answer: positions count from the end, padding is masked out."""
    last = model.config.max_position_embeddings
    positions = torch.arange(last - ids_BL.shape[1], last)[None]
    with torch.no_grad():
        answer: Tensor = model(ids_BL, attention_mask=(ids_BL != PAD).long(), position_ids=positions).logits
    return answer


def batch_of(examples: Examples) -> dict[str, Tensor]:
    return examples.collate([examples[index] for index in range(len(examples))])


# --- scores ---


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_supervised_scores_are_the_models_logits_at_labelled_positions(attention: str) -> None:
    model = fakes.tiny_model(attention=attention)
    batch = batch_of(family.examples(model, fakes.interactions(), seed=0))
    supervision = family.supervise(model, batch)
    labelled = batch["labels"] != UNLABELLED
    expected = logits(model, batch["input_ids"])[labelled][:, :ITEMS]
    torch.testing.assert_close(supervision.scores(), expected, atol=1e-5, rtol=1e-5)
    assert supervision.labels_N.equal(batch["labels"][labelled])
    assert supervision.real_BL.equal(batch["input_ids"] != PAD)
    some = torch.tensor([7, 0, 7])
    torch.testing.assert_close(supervision.scores(some), expected[:, some], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_hidden_states_go_from_the_embeddings_to_the_last_layer(attention: str) -> None:
    model = fakes.tiny_model(attention=attention, num_hidden_layers=3)
    batch = batch_of(family.examples(model, fakes.interactions(), seed=0))
    states = family.supervise(model, batch, layers=True).hidden_states_BLH
    last, length = model.config.max_position_embeddings, batch["input_ids"].shape[1]
    embedded = model.bert.embeddings(batch["input_ids"], position_ids=torch.arange(last - length, last)[None])
    assert len(states) == 4
    torch.testing.assert_close(states[0], embedded)
    labelled = batch["labels"] != UNLABELLED
    transformed = model.cls.predictions.transform(states[3][labelled])
    torch.testing.assert_close(transformed, family.supervise(model, batch).states_NH)
    assert family.supervise(model, batch).hidden_states_BLH == ()


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_a_teacher_that_reads_longer_histories_sees_a_students_batch_in_its_own_places(attention: str) -> None:
    student = fakes.tiny_model(attention=attention, max_length=5)
    teacher = fakes.tiny_model(attention=attention, max_length=12, seed=1)
    batch = batch_of(family.examples(student, fakes.interactions(), seed=0))
    expected = logits(teacher, batch["input_ids"])[batch["labels"] != UNLABELLED][:, :ITEMS]
    torch.testing.assert_close(family.supervise(teacher, batch).scores(), expected, atol=1e-5, rtol=1e-5)


def test_a_score_is_the_logit_after_the_history() -> None:
    causal, masked = (fakes.tiny_model(attention=attention) for attention in ATTENTIONS)
    history = [3, 1, 4]
    expected = logits(causal, torch.tensor([history]))[:, -1, :ITEMS]
    torch.testing.assert_close(scores(causal, [np.array(history)]), expected)
    expected = logits(masked, torch.tensor([[*history, MASK]]))[:, -1, :ITEMS]
    torch.testing.assert_close(scores(masked, [np.array(history)]), expected)


def states_before(attention: str, ids: list[int]) -> Tensor:
    """The scores at the first three places of one history."""
    labels = torch.tensor([[0, 0, 0] + [UNLABELLED] * (len(ids) - 3)])
    with torch.no_grad():
        batch = {"input_ids": torch.tensor([ids]), "labels": labels}
        return family.supervise(fakes.tiny_model(attention=attention), batch).scores()


def test_what_comes_later_changes_nothing_before_it_if_causal() -> None:
    one, other = ([5, 6, 7, *later] for later in ([8, 9, 10], [11, 12, 13]))
    torch.testing.assert_close(states_before("causal", one), states_before("causal", other))


def test_what_comes_later_counts_if_masked() -> None:
    one, other = ([5, 6, 7, *later] for later in ([8, 9, 10], [11, 12, 13]))
    assert (states_before("masked", one) - states_before("masked", other)).abs().min(dim=1).values.max() > 1e-3


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_order_counts(attention: str) -> None:
    model = fakes.tiny_model(attention=attention)
    one, other = scores(model, [np.array([1, 2, 3])]), scores(model, [np.array([2, 1, 3])])
    assert (one - other).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_batch_is_scored_as_its_histories_one_by_one(attention: str) -> None:
    model = fakes.tiny_model(attention=attention)
    histories = fakes.histories(1, 8, 3, 5, 12)
    alone = torch.cat([scores(model, [history]) for history in histories])
    torch.testing.assert_close(scores(model, histories), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_padding_changes_no_score(attention: str) -> None:
    model, histories = fakes.tiny_model(attention=attention), fakes.histories(3)
    inputs = family.inputs(model, Asked(histories, fakes.nothing(histories)))
    padded = {**inputs, "history": torch.nn.functional.pad(inputs["history"], (5, 0), value=PAD)}
    items, found = family.plain(model, ITEMS, padded)
    assert sorted(items[0].tolist()) == list(range(ITEMS))
    torch.testing.assert_close(found, scores(model, histories).gather(1, items), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_only_the_latest_items_are_read(attention: str) -> None:
    model = fakes.tiny_model(attention=attention, max_length=8)
    history = fakes.histories(15)[0]
    assert scores(model, [history]).equal(scores(model, [history[-8:]]))
    assert not scores(model, [history]).equal(scores(model, [history[-7:]]))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_empty_history_has_finite_scores(attention: str) -> None:
    model = fakes.tiny_model(attention=attention)
    found = scores(model, fakes.histories(0, 4))
    assert found.shape == (2, ITEMS)
    assert found.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_what_is_excluded_scores_minus_infinity_and_nothing_else_changes(attention: str) -> None:
    model, histories = fakes.tiny_model(attention=attention), fakes.histories(0, 4, 8)
    excluded = [np.array([3, 19]), np.array([], dtype=np.int64), np.array([0])]
    expected = scores(model, histories)
    expected[0, [3, 19]] = expected[2, 0] = -torch.inf
    with torch.no_grad():
        assert family.score(model, Asked(histories, excluded)).equal(expected)


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_the_plain_way_answers_what_the_served_graph_does(attention: str) -> None:
    model, histories = fakes.tiny_model(attention=attention), fakes.histories(0, 3, 8, 12)
    found = family.plain(model, 5, family.inputs(model, Asked(histories, histories)))
    assert len(found) == len(family.serve(model, 5, Rounding()).outputs)
    assert_same_answer(found, expected_answer(model, histories, histories, 5))


# --- the served graph ---


def expected_answer(model: BertForMaskedLM, histories: Histories, exclude: Histories, k: int) -> tuple[Tensor, Tensor]:
    table = scores(model, histories)
    for row, seen in zip(table, exclude, strict=True):
        row[seen.tolist()] = MASKED
    best = table.topk(k)
    return best.indices, best.values


def served_answer(
    model: BertForMaskedLM, histories: Histories, exclude: Histories, k: int, rounding: Rounding | None = None
) -> tuple[Tensor, Tensor]:
    graph = family.serve(model, k, rounding or Rounding()).eval()
    inputs = family.inputs(model, Asked(histories, exclude))
    assert list(inputs) == list(graph.axes)
    with torch.no_grad():
        answer: tuple[Tensor, Tensor] = graph(*inputs.values())
    return answer


def assert_same_answer(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(found[1], expected[1], atol=1e-3, rtol=1e-3)
    assert found[0].equal(expected[0])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_the_served_graph_answers_as_the_model_does(attention: str, layers: int, heads: int) -> None:
    model = fakes.tiny_model(attention=attention, num_hidden_layers=layers, num_attention_heads=heads)
    histories = fakes.histories(1, 3, 8, 12)
    served = served_answer(model, histories, histories, 5)
    assert_same_answer(served, expected_answer(model, histories, histories, 5))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_served_graph_leaves_out_what_it_is_told_to_and_nothing_else(attention: str) -> None:
    model = fakes.tiny_model(attention=attention)
    histories = fakes.histories(3, 5)
    free = served_answer(model, histories, fakes.histories(0, 0), ITEMS)
    assert [sorted(row) for row in free[0].tolist()] == [list(range(ITEMS))] * 2
    best, second = free[0][:, 0].numpy(), free[0][:, 1].tolist()
    without = served_answer(model, histories, [best[:1], best[1:]], 5)
    assert without[0][:, 0].tolist() == second
    assert_same_answer(without, (free[0][:, 1:6], free[1][:, 1:6]))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_neither_pad_nor_mask_is_recommended_however_high_they_score(attention: str) -> None:
    model = fakes.tiny_model(attention=attention)
    with torch.no_grad():
        model.cls.predictions.bias[ITEMS:] = 1e6
    items, _ = served_answer(model, fakes.histories(0, 3, 8), fakes.histories(0, 0, 0), ITEMS)
    assert items.max() < ITEMS


def test_a_graph_answers_no_more_items_than_there_are() -> None:
    assert family.serve(fakes.tiny_model(), 100, Rounding()).top_k == ITEMS


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("layers", [1, 2])
def test_an_empty_history_is_served_a_finite_answer(attention: str, layers: int) -> None:
    model = fakes.tiny_model(attention=attention, num_hidden_layers=layers)
    items, found = served_answer(model, fakes.histories(0, 4), fakes.histories(0, 4), 5)
    assert found.isfinite().all()
    assert len(set(items[0].tolist())) == 5


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_int8_table_is_served_as_the_model_with_a_rounded_table(attention: str) -> None:
    model, histories = fakes.tiny_model(attention=attention), fakes.histories(1, 5, 8)
    served = served_answer(model, histories, histories, 5, Rounding(item_table="int8-per-row"))
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        integers, scales = quantize_rows(table)
        table.copy_(integers * scales)
    assert_same_answer(served, expected_answer(model, histories, histories, 5))


def test_int8_weights_are_near_the_models_and_the_only_floats_left_are_small() -> None:
    model, histories = fakes.tiny_model(), fakes.histories(1, 5, 8)
    rounding = Rounding(linear="weights", item_table="int8-per-row")
    _, rounded = served_answer(model, histories, histories, 5, rounding)
    _, exact = served_answer(model, histories, histories, 5)
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    state = family.serve(model, 5, rounding).state_dict()
    assert {name for name in state if state[name].dtype == torch.float32 and state[name].numel() > 150} <= {"bias_V"}


def test_the_weights_that_a_target_may_round_are_named() -> None:
    for heads in (2, 8):
        graph = family.serve(fakes.tiny_model(num_attention_heads=heads), 5, Rounding())
        state = graph.state_dict()
        assert all(state[name].dim() == 2 for name in graph.linear_weights)
        assert {name.removesuffix(".weight.values") for name in graph.linear_weights} == {
            "layers.0.qkv",
            "layers.0.output",
            *(f"{layer}.feed_forward.{map_}" for layer in ("layers.0", "last") for map_ in ("up", "down")),
            "last.query",
            "last.output",
            "transform",
        }


# --- a catalogue that changes ---

NOBODY = np.array([], dtype=np.int32)


def random_weights(count: int = 3, seed: int = 0) -> sp.csr_matrix:
    """Rows that sum to 1, of three known items each."""
    random = np.random.default_rng(seed)
    columns = np.concatenate([random.permutation(ITEMS)[:3] for _ in range(count)])
    values = random.dirichlet([1, 1, 1], size=count).ravel()
    return sp.csr_matrix((values, (np.repeat(np.arange(count), 3), columns)), (count, ITEMS))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_known_items_score_as_before_beside_new_ones(attention: str) -> None:
    model, people = fakes.tiny_model(attention=attention), fakes.histories(0, 1, 3, 8, 12)
    before = scores(model, people)
    grown = family.with_items(model, random_weights(), NOBODY, Rounding())
    found = scores(grown, people)
    assert found.shape == (5, ITEMS + 3)
    torch.testing.assert_close(found[:, :ITEMS], before, atol=1e-6, rtol=1e-6)
    assert scores(model, people).equal(before), "the model itself stays as it was"


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_an_item_made_of_one_other_scores_as_it_and_is_read_as_it(attention: str) -> None:
    model = fakes.tiny_model(attention=attention)
    twin = sp.csr_matrix(([1.0], ([0], [7])), (1, ITEMS))
    grown = family.with_items(model, twin, NOBODY, Rounding())
    one, other = scores(grown, [np.array([2, 7, 3])]), scores(grown, [np.array([2, ITEMS, 3])])
    torch.testing.assert_close(one[:, ITEMS], one[:, 7], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_new_items_score_is_that_of_its_row_and_mean_bias() -> None:
    model, weights, people = fakes.tiny_model(), random_weights(), fakes.histories(3, 8)
    grown = family.with_items(model, weights, NOBODY, Rounding())
    row = torch.from_numpy(mean_rows(weights, model.get_input_embeddings().weight[:ITEMS].detach().numpy()))
    bias = torch.from_numpy(weights @ model.cls.predictions.bias[:ITEMS].detach().numpy()).float()
    inputs = family.inputs(model, Asked(people, people))["history"]
    labels = torch.full_like(inputs, UNLABELLED)
    labels[:, -1] = 0
    with torch.no_grad():
        states = family.supervise(model, {"input_ids": inputs, "labels": labels}).states_NH
        expected = states @ row.T + bias
    torch.testing.assert_close(scores(grown, people)[:, ITEMS:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rounding", [Rounding(), Rounding("weights", "int8-per-row")])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_removed_item_is_read_but_scored_as_what_must_not_be_recommended(attention: str, rounding: Rounding) -> None:
    model, people = fakes.tiny_model(attention=attention), fakes.histories(1, 4, 8)
    removed = np.array([people[0][0], 5, 11])
    grown = family.with_items(model, random_weights(), removed, rounding)
    whole = family.with_items(model, random_weights(), NOBODY, rounding)
    found, expected = scores(grown, people), scores(whole, people)
    assert (found[:, removed] < MASKED / 2).all()
    expected[:, removed] = found[:, removed]
    assert found.equal(expected)
    items, values = served_answer(grown, people, fakes.histories(0, 0, 0), ITEMS + 3, rounding)
    assert (values[:, -3:] < MASKED / 2).all()
    live = sorted({*range(ITEMS + 3)} - {*removed.tolist()})
    assert [sorted(row) for row in items[:, :-3].tolist()] == [live] * 3


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_grown_model_is_served_as_itself(attention: str) -> None:
    model = fakes.tiny_model(attention=attention)
    grown = family.with_items(model, random_weights(), np.array([4]), Rounding())
    people = [np.array([1, ITEMS + 2, 3]), np.array([ITEMS]), np.array([4, 9])]
    assert_same_answer(served_answer(grown, people, people, 8), expected_answer(grown, people, people, 8))


def test_new_rows_are_rounded_as_the_known_ones_are() -> None:
    model, people = fakes.tiny_model(), fakes.histories(3, 8)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        integers, scales = quantize_rows(table)
        table.copy_(integers * scales)
    rounding = Rounding(item_table="int8-per-row")
    grown = family.with_items(model, random_weights(), NOBODY, rounding)
    rows = grown.get_input_embeddings().weight[ITEMS : ITEMS + 3]
    integers, scales = quantize_rows(rows.detach())
    torch.testing.assert_close(rows, integers * scales, atol=0, rtol=1e-6)
    assert_same_answer(served_answer(grown, people, people, 8, rounding), expected_answer(grown, people, people, 8))


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_grown_model_comes_back_from_its_folder(attention: str, tmp_path: Path) -> None:
    grown = family.with_items(fakes.tiny_model(attention=attention), random_weights(), np.array([4]), Rounding())
    family.save(grown, tmp_path)
    loaded, people = family.load(tmp_path), fakes.histories(2, 9, items=ITEMS + 3)
    assert scores(loaded, people).equal(scores(grown, people))
    assert (loaded.config.vocab_size, loaded.config.pad_token_id) == (ITEMS + 5, ITEMS + 3)
    assert loaded.config.recommender["mask_token_id"] == ITEMS + 4


# --- examples ---


def all_examples(examples: Examples, epochs: int = 1) -> Iterator[tuple[list[int], list[int]]]:
    for epoch in range(epochs):
        examples.set_epoch(epoch)
        for index in range(len(examples)):
            ids, labels = examples[index]
            yield ids.tolist(), labels.tolist()


@pytest.fixture
def people() -> Interactions:
    """Training parts of 1 to 28 items; windows hold 8 (causal) or 9."""
    return fakes.interactions(users=25, items=30, shortest=3, longest=30)


def train_items(people: Interactions, start: int = 0) -> Counter[int]:
    return Counter(item for user in range(people.user_count) for item in people.train(user)[start:].tolist())


def test_every_training_item_but_a_users_first_is_predicted_in_every_epoch(people: Interactions) -> None:
    examples = family.examples(fakes.tiny_model(items=30), people, seed=0)
    for epoch in range(10):
        examples.set_epoch(epoch)
        labels = Counter(label for _, row in all_examples(examples) for label in row)
        assert labels.keys() == train_items(people, start=1).keys()
        assert labels >= train_items(people, start=1)


def test_who_fits_into_one_window_has_one() -> None:
    people = fakes.interactions(users=20, items=30, shortest=4, longest=11)  # training parts of 2 to 9: 8 targets
    examples = family.examples(fakes.tiny_model(items=30), people, seed=0)
    assert len(examples) == 20
    assert Counter(label for _, row in all_examples(examples) for label in row) == train_items(people, start=1)


def test_windows_begin_elsewhere_in_another_epoch_but_the_latest() -> None:
    people = fakes.interactions(users=1, items=30, shortest=30, longest=30)
    examples = family.examples(fakes.tiny_model(items=30), people, seed=0)
    ends: list[list[int]] = []
    for epoch in range(20):
        examples.set_epoch(epoch)
        ends.append([labels[-1] for _, labels in (examples[index] for index in range(len(examples)))])
    assert {row[0] for row in ends} == {people.train(0)[-1]}
    assert len({row[1] for row in ends}) > 4


def test_items_of_one_moment_change_places_from_epoch_to_epoch() -> None:
    people = fakes.interactions(users=1, items=30, shortest=22, longest=22)
    people = replace(people, timestamps=people.timestamps // 4)
    moments = [people.train(0)[at : at + 4].tolist() for at in range(0, 20, 4)]
    examples = family.examples(fakes.tiny_model(items=30, max_length=20), people, seed=0)
    told: list[list[int]] = []
    for epoch in range(5):
        examples.set_epoch(epoch)
        ids, labels = examples[0]
        told.append([*ids.tolist(), labels[-1]])
        assert [sorted(told[-1][at : at + 4]) for at in range(0, 20, 4)] == [sorted(moment) for moment in moments]
    assert len({tuple(row) for row in told}) == 5
    examples.set_epoch(0)
    assert examples[0][0].tolist() == told[0][:-1]


def test_windows_of_one_epoch_tell_one_order() -> None:
    people = fakes.interactions(users=1, items=60, shortest=60, longest=60)
    people = replace(people, timestamps=np.zeros_like(people.timestamps))
    examples = family.examples(fakes.tiny_model(items=60), people, seed=0)
    follows = {pair for ids, labels in all_examples(examples) for pair in zip(ids, labels, strict=True)}
    assert len(follows) == len(people.train(0)) - 1


def test_a_label_is_what_follows_in_the_users_training_part(people: Interactions) -> None:
    parts = [people.train(user).tolist() for user in range(people.user_count)]
    for ids, labels in all_examples(family.examples(fakes.tiny_model(items=30), people, seed=0)):
        window = [*ids, labels[-1]]
        assert labels == window[1:]
        assert len(ids) <= 8
        assert any(part[at : at + len(window)] == window for part in parts for at in range(len(part)))


def test_masked_windows_hold_every_training_item(people: Interactions) -> None:
    examples = family.examples(fakes.tiny_model(items=30, attention="masked"), people, seed=0)
    whole: Counter[int] = Counter()
    for ids, labels in all_examples(examples):
        whole.update(label if label != UNLABELLED else item for item, label in zip(ids, labels, strict=True))
    assert whole.keys() == train_items(people).keys()
    assert whole >= train_items(people)


def test_masked_labels_stand_where_the_masks_do(people: Interactions) -> None:
    examples = family.examples(fakes.tiny_model(items=30, attention="masked"), people, seed=0)
    for ids, labels in all_examples(examples, epochs=5):
        assert any(label != UNLABELLED for label in labels)
        for item, label in zip(ids, labels, strict=True):
            assert (item == 31) == (label != UNLABELLED)


def test_the_share_of_masks_is_about_what_the_recipe_says() -> None:
    people = fakes.interactions(users=200, items=50, shortest=22, longest=22)  # 20 to train on: one window
    model = fakes.tiny_model(items=50, attention="masked", max_length=30, mask_probability=0.4)
    masked = [[item == 51 for item in ids] for ids, _ in all_examples(family.examples(model, people, seed=0))]
    last_alone = [row for row in masked if row == [False] * 19 + [True]]
    others = np.array([row for row in masked if row != [False] * 19 + [True]])
    assert len(last_alone) / 200 == pytest.approx(0.1, abs=0.06)
    assert others.mean() == pytest.approx(0.4, abs=0.03)
    assert others.mean(axis=0) == pytest.approx(0.4, abs=0.15)  # any place may be masked


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_position_that_serving_uses_is_trained(attention: str) -> None:
    people = fakes.interactions(users=6, items=30, shortest=25, longest=30)
    model = fakes.tiny_model(items=30, attention=attention).train()
    supervision = family.supervise(model, batch_of(family.examples(model, people, seed=0)))
    supervision.scores().logsumexp(dim=1).sum().backward()
    positions = model.bert.embeddings.position_embeddings.weight.grad
    assert positions is not None
    assert (positions.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_held_out_items_are_in_no_batch(attention: str) -> None:
    lists = [[*part, 20 + user, 40 + user] for user, part in enumerate(fakes.histories(*range(1, 19), items=20))]
    people = fakes.interactions_of(lists, items=60)  # 20 to 39 are validation's alone, 40 to 59 test's
    examples = family.examples(fakes.tiny_model(items=60, attention=attention), people, seed=0)
    for epoch in range(5):
        examples.set_epoch(epoch)
        batch = batch_of(examples)
        ids, labels = batch["input_ids"], batch["labels"]
        assert ids[(ids != 60) & (ids != 61)].max() < 20
        assert labels.max() < 20
        assert labels[labels != UNLABELLED].min() >= 0


def test_an_example_depends_on_seed_epoch_and_index_alone(people: Interactions) -> None:
    model = fakes.tiny_model(items=30, attention="masked")
    one, other = (family.examples(model, people, seed=7) for _ in range(2))
    one.set_epoch(3)
    forwards = [one[index] for index in range(len(one))]
    list(all_examples(other, epochs=2))
    other.set_epoch(3)
    backwards = [other[index] for index in reversed(range(len(other)))][::-1]
    for (ids, labels), (same_ids, same_labels) in zip(forwards, backwards, strict=True):
        assert ids.tolist() == same_ids.tolist()
        assert labels.tolist() == same_labels.tolist()


def test_another_epoch_and_another_seed_mask_other_places(people: Interactions) -> None:
    model = fakes.tiny_model(items=30, attention="masked")
    examples = family.examples(model, people, seed=0)
    first = list(all_examples(examples))
    examples.set_epoch(1)
    second = [(ids.tolist(), labels.tolist()) for ids, labels in (examples[i] for i in range(len(examples)))]
    third = list(all_examples(family.examples(model, people, seed=1)))
    for one, other in ((first, second), (first, third), (second, third)):
        assert sum(a != b for a, b in zip(one, other, strict=True)) > len(first) / 2


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_batch_is_as_long_as_its_longest_example_and_labels_stand_below_their_inputs(attention: str) -> None:
    examples = family.examples(fakes.tiny_model(attention=attention), fakes.interactions(), seed=0)
    pairs = [examples[0], examples[3], examples[1]]
    batch = examples.collate(pairs)
    length = max(len(ids) for ids, _ in pairs)
    assert batch["input_ids"].shape == batch["labels"].shape == (3, length)
    for row, (ids, labels) in enumerate(pairs):
        padding = length - len(ids)
        assert batch["input_ids"][row].tolist() == [PAD] * padding + ids.tolist()
        assert batch["labels"][row].tolist() == [UNLABELLED] * padding + labels.tolist()


# --- histories as arrays ---


def test_histories_stand_at_the_right_with_their_latest_items() -> None:
    rows = [np.array([1, 2, 3, 4]), np.array([5]), np.array([], dtype=np.int64)]
    assert left_padded(rows, 3, 9).tolist() == [[2, 3, 4], [9, 9, 5], [9, 9, 9]]
    assert left_padded(rows[1:], 3, 9).tolist() == [[5], [9]]
    assert left_padded(rows[2:], 3, 9).tolist() == [[9]]
    assert left_padded(rows, 3, 9).dtype == np.int64


# --- the model that a recipe describes ---


def test_a_model_is_built_as_its_section_says() -> None:
    section = fakes.tiny_section(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=4, max_length=11, dropout=0.25, mask_probability=0.3
    )
    for attention, positions in (("causal", 11), ("masked", 12)):  # a masked model spends a place on the mask
        config = family.build(section.model_copy(update={"attention": attention}), 50).config
        assert (config.vocab_size, config.pad_token_id) == (52, 50)
        assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 3, 4)
        assert config.intermediate_size == 96
        assert config.max_position_embeddings == positions
        assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.25
        assert config.recommender == {"family": "bert4rec", "mask_token_id": 51, "mask_probability": 0.3}


def test_item_embeddings_start_from_what_is_used_with_what() -> None:
    people = fakes.interactions(users=60, items=20, shortest=8)
    people = replace(people, catalogue_size=22)  # 20 and 21 are nobody's
    vectors = item_vectors(people, 16)
    model = family.build(fakes.tiny_section(), 22)
    table = model.bert.embeddings.word_embeddings.weight.detach()
    fresh = table.clone()
    family.seed_items(model, people)
    columns = vectors.shape[1]
    torch.testing.assert_close(table[:20, :columns], 0.05 * torch.from_numpy(vectors[:20]))
    assert table[20:].equal(fresh[20:])
    assert table[:, columns:].equal(fresh[:, columns:])


def test_the_item_table_is_both_input_and_output() -> None:
    model = family.build(fakes.tiny_section(), ITEMS)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
