"""Cross-encoder: Hugging Face's own scores of text pairs, however they are asked for, and examples to learn them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertForMaskedLM, BertForSequenceClassification

import fakes
import text_fakes
from compress import models
from compress.data.histories import Asked, Histories
from compress.data.interactions import Interactions
from compress.data.texts import FILES, Texts, rendered_texts
from compress.errors import DataError, RecipeError
from compress.methods.rounding import Rounding, quantize_rows
from compress.models import text_examples
from compress.models.cross_encoder import CrossEncoder
from compress.models.text_examples import TextExamples
from compress.models.text_family import CHUNK
from compress.recipe.adoption import CrossEncoderCheckpoint

ITEMS = text_fakes.COUNT
SHORT = 26
"""Tokens of a pair: too few for long histories."""
family = CrossEncoder()
Model = BertForSequenceClassification


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return text_fakes.texts(tmp_path_factory.mktemp("texts"))


def histories() -> list[NDArray[np.int64]]:
    return fakes.histories(1, 6, 0, 3, items=ITEMS)


def room(model: Model) -> int:
    """Tokens of a user's text: whatever item stands beside it."""
    return model.config.max_position_embeddings - model.texts.items.longest - 1


@torch.no_grad()
def by_hugging_face(model: Model, histories: Histories) -> Tensor:
    """Scores of the catalogue, (histories, I): every pair is tokenised and run alone."""
    items, parts = rendered_texts(model.texts.folder)
    tokenizer = text_fakes.tokenizer(model.texts)
    rows = []
    for history in histories:
        text, row = model.texts.user_text(history, parts), []
        for item in items:
            tokenizer.no_truncation()
            own = len(tokenizer.encode(item, add_special_tokens=False).ids)
            tokenizer.enable_truncation(room(model) + own + 1, strategy="only_first")
            pair = tokenizer.encode(text, item)
            logits = model(
                input_ids=torch.tensor([pair.ids]),
                attention_mask=torch.tensor([pair.attention_mask]),
                token_type_ids=torch.tensor([pair.type_ids]),
            ).logits[0]
            row.append(logits[0] if len(logits) == 1 else logits[1] - logits[0])
        rows.append(torch.stack(row))
    return torch.stack(rows)


@torch.no_grad()
def scores(model: Model, histories: Histories, excluded: Histories | None = None) -> Tensor:
    return family.scorer(model)(Asked(histories, fakes.nothing(histories) if excluded is None else excluded))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# --- scores ---


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("max_length", [SHORT, 64])
def test_a_score_is_hugging_faces_of_the_text_pair(texts: Texts, labels: int, max_length: int) -> None:
    model = text_fakes.cross_encoder(texts, labels=labels, max_length=max_length)
    longest = max(len(texts.user(history, 1_000)) for history in histories())
    assert (longest > room(model)) is (max_length == SHORT), "some are cut, or none"
    assert_close(scores(model, histories()), by_hugging_face(model, histories()))


def test_how_pairs_are_chunked_changes_no_score(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_fakes.cross_encoder(texts)
    expected = scores(model, histories())
    alone = torch.cat([scores(model, [history]) for history in histories()])
    assert len(histories()) * ITEMS > CHUNK > ITEMS
    assert_close(alone, expected, 1e-5)
    assert_close(scores(model, histories()[::-1]), expected.flip(0), 1e-5)


def test_what_is_excluded_scores_minus_infinity_and_nothing_else_changes(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts)
    kept: list[Sequence[int]] = [[3], [0, 23, 7], range(ITEMS), [5, 6]]
    expected = scores(model, histories())
    for row, few in zip(expected, kept, strict=True):
        row[np.setdiff1d(np.arange(ITEMS), few)] = -torch.inf
    assert_close(scores(model, histories(), text_fakes.without(texts, *kept)), expected, 1e-5)


@pytest.mark.parametrize("kept", [[[], [2, 5]], [[], []]])
def test_users_for_whom_nothing_is_left_have_no_scores(texts: Texts, kept: list[list[int]]) -> None:
    model = text_fakes.cross_encoder(texts)
    found = scores(model, histories()[:2], text_fakes.without(texts, *kept))
    assert found.isfinite().sum(dim=1).tolist() == [len(few) for few in kept]


def test_only_the_latest_items_are_read(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts)
    history = histories()[1]
    assert len(history) > texts.layout.last == 4
    assert scores(model, [history]).equal(scores(model, [history[-4:]]))
    assert not scores(model, [history]).equal(scores(model, [history[-3:]]))
    assert not scores(model, [history]).equal(scores(model, [history[::-1]]))


@torch.no_grad()
def test_the_plain_way_answers_as_the_model_scores(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts)
    for history, few in zip(histories(), ([1], range(ITEMS), [4, 2], range(20)), strict=True):
        (found,) = family.plain(model, 5, family.inputs(model, Asked([history], text_fakes.without(texts, few))))
        assert_close(found, scores(model, [history])[0, sorted(few)], 1e-5)


def test_a_graphs_inputs_are_of_one_user(texts: Texts) -> None:
    with pytest.raises(ValueError, match="2 requests: a cross-encoder's graph answers one at a time"):
        family.inputs(text_fakes.cross_encoder(texts), Asked(histories()[:2], fakes.nothing(histories()[:2])))


# --- the served graph ---


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("labels", [1, 2])
@torch.no_grad()
def test_the_served_graph_answers_as_the_model_does(texts: Texts, layers: int, heads: int, labels: int) -> None:
    model = text_fakes.cross_encoder(texts, labels=labels, num_hidden_layers=layers, num_attention_heads=heads)
    graph = family.serve(model, 10, Rounding()).eval()
    assert graph.last.merged is (heads < 8)  # type: ignore[union-attr]
    for history, few in zip(histories(), ([3], range(ITEMS), [9, 0], [0]), strict=True):
        inputs = family.inputs(model, Asked([history], text_fakes.without(texts, few)))
        assert list(inputs) == list(graph.axes)
        (found,) = graph(*inputs.values())
        assert_close(found, family.plain(model, 10, inputs)[0])
        assert_close(found, scores(model, [history])[0, sorted(few)])


@torch.no_grad()
def test_the_served_graph_may_be_given_more_padding(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts)
    graph = family.serve(model, 10, Rounding()).eval()
    inputs = family.inputs(model, Asked(histories()[:1], text_fakes.without(texts, [3, 4])))
    wider = torch.nn.functional.pad(inputs["items"], (0, 5), value=texts.layout.pad)
    assert_close(graph(inputs["user"], wider)[0], graph(*inputs.values())[0], 1e-5)


@torch.no_grad()
def test_an_int8_table_is_served_as_the_rounded_table_it_stands_for(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts)
    inputs = family.inputs(model, Asked(histories()[:1], fakes.nothing(histories()[:1])))
    exact = family.plain(model, 10, inputs)[0]
    (found,) = family.serve(model, 10, Rounding(item_table="int8-per-row")).eval()(*inputs.values())
    integers, scales = quantize_rows(model.bert.embeddings.word_embeddings.weight)
    model.bert.embeddings.word_embeddings.weight.copy_(integers * scales)
    assert_close(found, family.plain(model, 10, inputs)[0])
    assert 0 < (found - exact).abs().max() < 0.1 * exact.std()


@torch.no_grad()
def test_int8_weights_are_close(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts)
    inputs = family.inputs(model, Asked(histories()[:1], fakes.nothing(histories()[:1])))
    exact = family.plain(model, 10, inputs)[0]
    graph = family.serve(model, 10, Rounding(linear="weights")).eval()
    assert graph.linear_weights == family.serve(model, 10, Rounding()).linear_weights
    (found,) = graph(*inputs.values())
    assert 0 < (found - exact).abs().max() < 0.3 * exact.std()


# --- what is learned from ---


@pytest.fixture(scope="module")
def people() -> Interactions:
    return fakes.interactions(users=25, items=ITEMS, shortest=2, longest=14)


def examples_of(texts: Texts, people: Interactions, seed: int = 0, **options: Any) -> TextExamples:
    made = family.examples(text_fakes.cross_encoder(texts, **options), people, seed)
    assert isinstance(made, TextExamples)
    return made


def test_every_training_item_but_the_first_is_told_from_others_given_what_came_before(
    texts: Texts, people: Interactions
) -> None:
    examples = examples_of(texts, people)
    found = [examples[index] for index in range(len(examples))]
    told = Counter((*history.tolist(), int(items[0])) for _, history, items, _ in found)
    parts = [people.train(user).tolist() for user in range(people.user_count)]
    assert told == Counter(tuple(part[: place + 1]) for part in parts for place in range(1, len(part)))


@pytest.mark.parametrize("drawn", ["uniform", "popularity"])
def test_negatives_are_no_training_items_of_the_user_and_each_is_there_once(
    texts: Texts, people: Interactions, drawn: str
) -> None:
    examples = examples_of(texts, people, negatives=6, drawn=drawn)
    for epoch in range(5):
        examples.set_epoch(epoch)
        for index in range(len(examples)):
            _, *negatives = examples[index].items
            assert len(set(negatives)) == len(negatives) == 6
            assert not set(negatives) & set(people.train(int(examples.user_of[index])).tolist())


@pytest.mark.parametrize("attempts", [0, 8])
def test_once_the_catalogue_runs_out_negatives_come_again(
    texts: Texts, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_examples, "ATTEMPTS", attempts)
    people = fakes.interactions(users=2, items=ITEMS, shortest=22, longest=22)  # 20 of 24 in training
    enough, few = (examples_of(texts, people, negatives=negatives) for negatives in (4, 7))
    for index in range(len(enough)):
        unseen = set(range(ITEMS)) - set(people.train(int(enough.user_of[index])).tolist())
        assert set(enough[index].items[1:].tolist()) == unseen
        counts = Counter(few[index].items[1:].tolist())
        assert set(counts) == unseen
        assert sorted(counts.values()) == [1, 2, 2, 2]


def test_who_has_used_everything_is_told_from_something(texts: Texts) -> None:
    order = fakes.histories(ITEMS, items=ITEMS)[0].tolist()
    people = fakes.interactions_of([[*order, 0, 1]], ITEMS)
    examples = examples_of(texts, people)
    for index in range(len(examples)):
        items = examples[index].items
        assert items.shape == (4,)
        assert set(items.tolist()) <= set(range(ITEMS))


def test_negatives_are_drawn_as_often_as_the_recipe_says(texts: Texts) -> None:
    lists = [[item, (item + 1) % ITEMS, *[0] * (item % 4), 0, 0] for item in range(2, ITEMS)]
    people = fakes.interactions_of([[2, 3, 0, 0], *lists], ITEMS)
    shares = people.popularity() / people.popularity().sum()
    unseen = np.setdiff1d(np.arange(ITEMS), people.train(0))
    for drawn, weights in (("popularity", shares), ("uniform", np.full(ITEMS, 1 / ITEMS))):
        examples = examples_of(texts, people, negatives=1, drawn=drawn)
        counts: Counter[int] = Counter()
        for epoch in range(3_000):
            examples.set_epoch(epoch)
            counts[int(examples[0].items[1])] += 1
        expected = weights[unseen] / weights[unseen].sum()
        assert [counts[item] / 3_000 for item in unseen.tolist()] == pytest.approx(expected.tolist(), abs=0.03)
        assert counts.keys() <= set(unseen.tolist())


def retrieved(people: Interactions, count: int) -> Interactions:
    """The same, and so many unseen items that a first stage found for each."""
    random = np.random.default_rng(3)
    unseen = [np.setdiff1d(np.arange(ITEMS), people.train(user)) for user in range(people.user_count)]
    return replace(people, retrieved=[random.permutation(few)[:count].astype(np.int32) for few in unseen])


@pytest.mark.parametrize("negatives", [1, 4, 5])
def test_half_of_the_negatives_are_what_was_retrieved_for_the_user(
    texts: Texts, people: Interactions, negatives: int
) -> None:
    found, half = retrieved(people, 8), -(-negatives // 2)
    examples = examples_of(texts, found, negatives=negatives, drawn="retrieved")
    assert found.retrieved is not None
    hard: dict[int, set[int]] = {}
    others: set[int] = set()
    for epoch in range(120):
        examples.set_epoch(epoch)
        for index in range(0, len(examples), 11):
            user, drawn = int(examples.user_of[index]), examples[index].items[1:].tolist()
            assert len(set(drawn)) == negatives
            assert set(drawn[:half]) <= set(found.retrieved[user].tolist())
            assert not set(drawn) & set(people.train(user).tolist())
            hard.setdefault(index, set()).update(drawn[:half])
            others |= set(drawn[half:]) - set(found.retrieved[user].tolist())
    assert {len(items) for items in hard.values()} == {8}, "all of them come in time"
    assert bool(others) is (negatives > 1)


def test_what_was_not_retrieved_fills_up_what_was(texts: Texts, people: Interactions) -> None:
    found = retrieved(people, 2)
    examples = examples_of(texts, found, negatives=8, drawn="retrieved")
    assert found.retrieved is not None
    for index in range(len(examples)):
        user, negatives = int(examples.user_of[index]), examples[index].items[1:].tolist()
        assert set(found.retrieved[user].tolist()) == set(negatives[:2])
        assert len(set(negatives)) == 8
        assert not set(negatives) & set(people.train(user).tolist())


def test_retrieved_negatives_without_a_retrieve_stage_are_one_line(texts: Texts, people: Interactions) -> None:
    with pytest.raises(RecipeError, match=r"^drawn: retrieved: [^\n]*$"):
        examples_of(texts, people, drawn="retrieved")


def test_held_out_items_are_told_of_nobody(texts: Texts) -> None:
    lists = [[*part, 14 + user, 19 + user] for user, part in enumerate(fakes.histories(3, 5, 8, 2, 12, items=14))]
    examples = examples_of(texts, fakes.interactions_of(lists, ITEMS))
    for index in range(len(examples)):
        _, history, items, _ = examples[index]
        assert max([*history.tolist(), int(items[0])]) < 14


def test_an_example_depends_on_seed_epoch_and_index_alone(texts: Texts, people: Interactions) -> None:
    one, other = (examples_of(texts, people, seed=7) for _ in range(2))
    first = [one[index].items.tolist() for index in range(len(one))]
    for made in (one, other):
        made.set_epoch(3)
    forwards = [one[index].items.tolist() for index in range(len(one))]
    backwards = [other[index].items.tolist() for index in reversed(range(len(other)))][::-1]
    another = examples_of(texts, people, seed=8)
    assert forwards == backwards
    for different in (first, [another[index].items.tolist() for index in range(len(another))]):
        assert sum(a != b for a, b in zip(forwards, different, strict=True)) > len(forwards) / 2


def test_a_batch_holds_the_texts_and_who_they_are_of(texts: Texts, people: Interactions) -> None:
    examples = examples_of(texts, people)
    pairs = [examples[index] for index in (0, 9, 4)]
    batch = examples.collate(pairs)
    ids = np.stack([pair.items for pair in pairs])
    users = [texts.user(pair.history, 1_000).tolist() for pair in pairs]
    longest = max(map(len, users))
    assert batch["user"].tolist() == [[*user, *[texts.layout.pad] * (longest - len(user))] for user in users]
    assert batch["item_ids"].tolist() == ids.tolist()
    assert batch["wanted"].tolist() == [[1, 0, 0, 0]] * 3
    assert batch["items"].flatten(0, 1).tolist() == texts.candidates(ids.ravel()).tolist()
    popularity = people.popularity()
    shares = (popularity / popularity.sum() + 3 / ITEMS) / 4  # of four items one is a label, three are drawn
    assert batch["shares"].numpy() == pytest.approx(shares[ids], rel=1e-6)


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("max_length", [SHORT, 64])
@torch.no_grad()
def test_supervised_scores_are_the_models_of_each_examples_items(
    texts: Texts, people: Interactions, labels: int, max_length: int
) -> None:
    model = text_fakes.cross_encoder(texts, labels=labels, max_length=max_length)
    examples = family.examples(model, people, seed=0)
    batch = text_fakes.batch_of(examples, 40)
    supervision = family.supervise(model, batch)
    asked = [examples[index] for index in range(40)]
    everything = scores(model, [example.history for example in asked])
    expected = everything.gather(1, torch.from_numpy(np.stack([example.items for example in asked])))
    assert_close(supervision.scores(), expected)
    assert supervision.labels_N.tolist() == [0] * 40
    assert_close(supervision.label_scores(), expected[:, 0])
    with pytest.raises(ValueError, match="no others"):
        supervision.scores(torch.tensor([1, 2]))


@torch.no_grad()
def test_hidden_states_are_of_all_pairs_and_change_no_score(texts: Texts, people: Interactions) -> None:
    model = text_fakes.cross_encoder(texts, num_hidden_layers=3)
    batch = text_fakes.batch_of(family.examples(model, people, seed=0), 30)
    without, with_states = (family.supervise(model, batch, layers=wanted) for wanted in (False, True))
    assert_close(with_states.scores(), without.scores(), 1e-5)
    assert without.hidden_states_BLH == ()
    assert len(with_states.hidden_states_BLH) == 4
    pairs, length = 30 * 4, batch["user"].shape[1] + batch["items"].shape[2]
    assert {states.shape for states in with_states.hidden_states_BLH} == {(pairs, length, 16)}
    user, item = batch["user"][17], batch["items"][17, 2]
    ids = torch.cat([user[user != texts.layout.pad], item[item != texts.layout.pad]])
    types = (torch.arange(len(ids)) >= (user != texts.layout.pad).sum()).long()
    alone = model.bert(ids[None], token_type_ids=types[None], output_hidden_states=True).hidden_states
    row = 17 * 4 + 2
    assert with_states.real_BL[row].tolist() == [True] * len(ids) + [False] * (length - len(ids))
    for found, expected in zip(with_states.hidden_states_BLH, alone, strict=True):
        assert_close(found[row, : len(ids)], expected[0])


def test_every_weight_that_reads_a_pair_is_trained(texts: Texts, people: Interactions) -> None:
    model = text_fakes.cross_encoder(texts, max_length=SHORT, dropout=0.1).train()
    family.supervise(
        model, text_fakes.batch_of(family.examples(model, people, seed=0))
    ).scores().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# --- a student ---


@pytest.mark.parametrize("labels", [1, 2])
def test_a_student_with_all_of_its_teachers_layers_scores_as_its_teacher(texts: Texts, labels: int) -> None:
    student, teacher = (text_fakes.cross_encoder(texts, seed, labels, num_hidden_layers=3) for seed in (0, 1))
    expected = scores(teacher, histories())
    assert (scores(student, histories()) - expected).abs().max() > 0.1
    family.seed_student(student, teacher, "spread", "random")
    assert scores(student, histories()).equal(expected)


def test_a_student_that_reads_shorter_texts_reads_them_as_its_teacher(texts: Texts) -> None:
    teacher = text_fakes.cross_encoder(texts, seed=1, max_length=64)
    student = text_fakes.cross_encoder(texts, max_length=50)
    family.seed_student(student, teacher, "spread", "random")
    short = fakes.histories(1, 2, items=ITEMS)
    assert max(len(texts.user(history, 99)) for history in short) <= room(student)
    assert_close(scores(student, short), scores(teacher, short), 1e-5)


def test_chosen_layers_are_the_teachers(texts: Texts) -> None:
    teacher = text_fakes.cross_encoder(texts, seed=1, num_hidden_layers=3)
    student = text_fakes.cross_encoder(texts, num_hidden_layers=2)
    family.seed_student(student, teacher, [0, 2], "random")
    for layer, source in zip(student.bert.encoder.layer, (0, 2), strict=True):
        theirs = teacher.bert.encoder.layer[source].state_dict()
        assert all(value.equal(theirs[name]) for name, value in layer.state_dict().items())
    assert student.classifier.weight.equal(teacher.classifier.weight)


def test_a_narrower_student_keeps_a_head_of_its_own(texts: Texts) -> None:
    teacher = text_fakes.cross_encoder(texts, seed=1)
    student = text_fakes.cross_encoder(texts, hidden_size=8)
    before = student.classifier.weight.clone()
    family.seed_student(student, teacher, "spread", "principal-directions")
    assert student.classifier.weight.equal(before)
    gram, theirs = (
        model.bert.embeddings.word_embeddings.weight.detach() @ model.bert.embeddings.word_embeddings.weight.detach().T
        for model in (student, teacher)
    )
    values = torch.linalg.eigvalsh(theirs.double()).flip(0)[:8]
    torch.testing.assert_close(torch.linalg.eigvalsh(gram.double()).flip(0)[:8], values, atol=1e-3, rtol=1e-3)


# --- folders ---


def test_a_saved_model_comes_back_with_its_texts_and_the_same_scores(texts: Texts, tmp_path: Path) -> None:
    for labels in (1, 2):
        model = text_fakes.cross_encoder(texts, labels=labels)
        folder = tmp_path / str(labels)
        family.save(model, folder)
        found, loaded = models.load(folder)
        assert isinstance(found, CrossEncoder)
        assert not loaded.training
        assert scores(loaded, histories()).equal(scores(model, histories()))
        assert loaded.config.recommender == model.config.recommender
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", *FILES}


def test_a_model_is_built_as_its_section_says(texts: Texts) -> None:
    section = text_fakes.cross_encoder_section(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=4, max_length=70, dropout=0.25, drawn="popularity"
    )
    model = family.build(section.model_copy(update={"intermediate_size": None}), ITEMS, texts)
    config = model.config
    assert (config.vocab_size, config.pad_token_id) == (texts.layout.vocab_size, texts.layout.pad)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 3, 4)
    assert (config.intermediate_size, config.max_position_embeddings, config.num_labels) == (96, 70, 1)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.25
    assert config.recommender == {
        "family": "cross_encoder",
        "catalogue_size": ITEMS,
        "negatives": 3,
        "drawn": "popularity",
        "attention": "both_ways",
    }
    greedy = family.build(text_fakes.cross_encoder_section(negatives=100), ITEMS, texts)
    assert greedy.config.recommender["negatives"] == ITEMS - 1


@pytest.mark.parametrize("layers", [None, 1, 2, 3])
@torch.no_grad()
def test_a_pretrained_model_begins_as_its_checkpoints_first_layers(
    texts: Texts, tmp_path: Path, layers: int | None
) -> None:
    theirs = text_fakes.pretrained(tmp_path)
    section = text_fakes.cross_encoder_section(checkpoint=tmp_path, num_hidden_layers=layers)
    model = family.build(section, ITEMS, texts).eval()
    ids = torch.from_numpy(texts.alone(np.array([3])))
    states = theirs(ids, output_hidden_states=True).hidden_states
    assert_close(model.bert(ids).last_hidden_state, states[layers or 3], 1e-5)
    assert (model.config.max_position_embeddings, model.config.vocab_size) == (60, 150)
    assert model.config.num_labels == len(model.classifier.weight) == 1


@torch.no_grad()
def test_a_pretrained_model_may_read_fewer_tokens_than_its_checkpoint(texts: Texts, tmp_path: Path) -> None:
    theirs = text_fakes.pretrained(tmp_path)
    for max_length, positions in ((40, 40), (500, 60)):
        section = text_fakes.cross_encoder_section(checkpoint=tmp_path, max_length=max_length)
        model = family.build(section, ITEMS, texts).eval()
        assert model.config.max_position_embeddings == positions
        found = model.bert.embeddings.position_embeddings.weight
        assert found.equal(theirs.embeddings.position_embeddings.weight[:positions])


@torch.no_grad()
def test_a_pretrained_model_may_be_the_encoder_of_a_language_model(texts: Texts, tmp_path: Path) -> None:
    theirs = text_fakes.pretrained(tmp_path, BertForMaskedLM)
    model = family.build(text_fakes.cross_encoder_section(checkpoint=tmp_path), ITEMS, texts).eval()
    ids = torch.from_numpy(texts.alone(np.array([3])))
    assert_close(model.bert(ids).last_hidden_state, theirs.bert(ids).last_hidden_state, 1e-5)


def test_a_checkpoint_with_one_token_type_is_one_line(texts: Texts, tmp_path: Path) -> None:
    text_fakes.pretrained(tmp_path, type_vocab_size=1)
    with pytest.raises(DataError, match=rf"^{tmp_path}: has one token type[^\n]*$"):
        family.build(text_fakes.cross_encoder_section(checkpoint=tmp_path), ITEMS, texts)


def test_more_layers_than_the_checkpoint_has_are_one_line(texts: Texts, tmp_path: Path) -> None:
    text_fakes.pretrained(tmp_path)
    section = text_fakes.cross_encoder_section(checkpoint=tmp_path, num_hidden_layers=5)
    with pytest.raises(DataError, match=rf"^{tmp_path}: [^\n]*$"):
        family.build(section, ITEMS, texts)


def test_a_checkpoint_that_knows_fewer_tokens_is_one_line(texts: Texts, tmp_path: Path) -> None:
    text_fakes.pretrained(tmp_path, vocab_size=50)
    section = text_fakes.cross_encoder_section(checkpoint=tmp_path)
    with pytest.raises(DataError) as raised:
        family.build(section, ITEMS, texts)
    assert str(raised.value) == (
        f"{tmp_path}: knows 50 tokens, the texts have {texts.layout.vocab_size}: tokenize them with the model's own "
        "tokenizer"
    )


def test_a_model_that_items_alone_fill_is_one_line(texts: Texts, tmp_path: Path) -> None:
    longest = texts.items.longest
    text_fakes.pretrained(tmp_path, max_position_embeddings=longest + 2)
    said = f"reads {longest + 2} tokens, and an item's text takes up to {longest + 1} of them: nothing is left"
    for options, what in (({"checkpoint": tmp_path}, str(tmp_path)), ({"max_length": longest + 2}, "max_length: ")):
        with pytest.raises(DataError, match=rf"^{what}[^\n]*{said}[^\n]*$"):
            family.build(text_fakes.cross_encoder_section(**options), ITEMS, texts)
    just = text_fakes.cross_encoder(texts, max_length=longest + 4)  # [CLS], a token, [SEP]
    assert_close(scores(just, histories()), by_hugging_face(just, histories()))


# --- somebody else's ---


def checkpoint(**options: Any) -> CrossEncoderCheckpoint:
    return CrossEncoderCheckpoint.model_validate({"family": "cross_encoder", "texts": "texts", **options})


@pytest.mark.parametrize("labels", [1, 2])
def test_an_adopted_model_scores_as_its_owner_runs_it(texts: Texts, tmp_path: Path, labels: int) -> None:
    theirs = text_fakes.pretrained(tmp_path, BertForSequenceClassification, num_labels=labels, pad_token_id=7)
    model = family.adopt(checkpoint(negatives=5), tmp_path, [str(item) for item in range(ITEMS)], texts)
    assert not model.training
    theirs.texts = texts
    assert_close(scores(model, histories()), by_hugging_face(theirs, histories()))
    assert model.config.recommender == {
        "family": "cross_encoder",
        "catalogue_size": ITEMS,
        "negatives": 5,
        "drawn": "uniform",
    }
    family.save(model, tmp_path / "ours")
    _, loaded = models.load(tmp_path / "ours")
    assert scores(loaded, histories()).equal(scores(model, histories()))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: text_fakes.pretrained(folder, BertForMaskedLM), "a bert BertForMaskedLM is not supported"),
        (
            lambda folder: text_fakes.pretrained(folder),
            "a bert BertModel is not supported; BertForSequenceClassification is",
        ),
        (
            lambda folder: text_fakes.pretrained(folder, BertForSequenceClassification, num_labels=3),
            "3 labels; a cross-encoder has one logit or two",
        ),
        (
            lambda folder: text_fakes.pretrained(folder, BertForSequenceClassification, num_labels=1, vocab_size=40),
            "knows 40 tokens",
        ),
        (lambda folder: None, "no Hugging Face folder"),
    ],
)
def test_what_cannot_be_adopted_is_one_line(
    texts: Texts, tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=rf"^{tmp_path}: [^\n]*{said}[^\n]*$"):
        family.adopt(checkpoint(), tmp_path, [str(item) for item in range(ITEMS)], texts)


def test_a_catalogue_is_not_refreshed_by_rows(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts)
    with pytest.raises(RecipeError, match=r"^refresh: [^\n]*$"):
        family.with_items(model, None, np.array([1]), Rounding())  # type: ignore[arg-type]
