"""How a student starts: directions that lose nothing, layers that are copies, positions that count from the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM

import fakes
from compress.data.histories import Asked
from compress.methods.seeding import chosen_layers, principal_directions, seed_encoder
from compress.models.bert4rec import Bert4Rec

PRINCIPAL = "principal-directions"


def low_rank(rows: int, width: int, rank: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(rows, rank, generator=random) @ torch.randn(rank, width, generator=random)


@pytest.mark.parametrize("rows", [4, 30])  # fewer rows than directions, and more
def test_principal_directions_are_orthonormal(rows: int) -> None:
    directions = principal_directions(low_rank(rows, 16, 3), 8)
    assert directions.shape == (16, 8)
    torch.testing.assert_close(directions.T @ directions, torch.eye(8), atol=1e-5, rtol=0)


def test_principal_directions_reconstruct_a_table_of_their_rank() -> None:
    table = low_rank(30, 16, 5)
    directions = principal_directions(table, 5)
    torch.testing.assert_close(table @ directions @ directions.T, table, atol=1e-4, rtol=1e-4)


def test_principal_directions_come_longest_first_and_keep_the_mean() -> None:
    table = torch.zeros(8, 4)
    table[:, 2] = 3.0  # the same in every row: no variance, most of the length
    table[0, 1], table[1, 1] = 1.0, -1.0
    directions = principal_directions(table, 2)
    torch.testing.assert_close(directions.abs(), torch.eye(4)[:, [2, 1]], atol=1e-6, rtol=0)


def test_more_directions_than_width_are_an_error() -> None:
    with pytest.raises(ValueError, match="a table 16 wide has no 17 principal directions"):
        principal_directions(low_rank(30, 16, 5), 17)


@pytest.mark.parametrize(
    ("student_depth", "teacher_depth", "expected"),
    [
        (1, 1, [0]),
        (1, 12, [0]),
        (2, 6, [0, 3]),
        (3, 6, [0, 2, 4]),
        (2, 2, [0, 1]),
        (3, 4, [0, 1, 2]),
        (4, 2, [0, 0, 1, 1]),  # a deeper student
    ],
)
def test_layers_are_spread_evenly_from_the_first(student_depth: int, teacher_depth: int, expected: list[int]) -> None:
    assert chosen_layers("spread", student_depth, teacher_depth) == expected


@pytest.mark.parametrize(
    ("which", "student_depth", "expected"),
    [("first", 2, [0, 1]), ("last", 2, [4, 5]), ("last", 6, [0, 1, 2, 3, 4, 5]), ("first", 7, [0, 1, 2, 3, 4, 5, 5])],
)
def test_the_first_and_the_last_layers(which: str, student_depth: int, expected: list[int]) -> None:
    assert chosen_layers(which, student_depth, 6) == expected


def test_every_spread_layer_exists_and_none_goes_back() -> None:
    for student_depth in range(1, 13):
        for teacher_depth in range(1, 13):
            layers = chosen_layers("spread", student_depth, teacher_depth)
            assert layers[0] == 0
            assert layers == sorted(layers)
            assert layers[-1] < teacher_depth
            assert len(set(layers)) == min(student_depth, teacher_depth)


def scores(model: BertForMaskedLM) -> Tensor:
    histories = fakes.histories(1, 5, 8)
    with torch.no_grad():
        return Bert4Rec().score(model.eval(), Asked(histories, fakes.nothing(histories)))


def layer_states(model: BertForMaskedLM, layer: int) -> dict[str, Tensor]:
    states: dict[str, Tensor] = model.bert.encoder.layer[layer].state_dict()
    return states


@pytest.mark.parametrize("attention", ["causal", "masked"])
def test_a_student_like_its_teacher_answers_like_it(attention: str) -> None:
    teacher = fakes.tiny_model(attention=attention, num_hidden_layers=3)
    student = fakes.tiny_model(attention=attention, num_hidden_layers=3, seed=1)
    Bert4Rec().seed_student(student, teacher, "spread", PRINCIPAL)
    assert scores(student).equal(scores(teacher))


@pytest.mark.parametrize(
    ("layers", "sources"), [((2, 0), (2, 0)), ("spread", (0, 1)), ("first", (0, 1)), ("last", (1, 2))]
)
def test_chosen_layers_are_copies(layers: tuple[int, ...] | str, sources: tuple[int, ...]) -> None:
    teacher = fakes.tiny_model(num_hidden_layers=3)
    student = fakes.tiny_model(num_hidden_layers=2, seed=1)
    Bert4Rec().seed_student(student, teacher, layers, PRINCIPAL)
    for target, source in enumerate(sources):
        for name, value in layer_states(student, target).items():
            assert value.equal(layer_states(teacher, source)[name]), name
    assert student.cls.predictions.transform.dense.weight.equal(teacher.cls.predictions.transform.dense.weight)


def test_a_deeper_student_repeats_its_teachers_layers() -> None:
    teacher, student = fakes.tiny_model(num_hidden_layers=2), fakes.tiny_model(num_hidden_layers=4, seed=1)
    Bert4Rec().seed_student(student, teacher, "spread", PRINCIPAL)
    for target, source in enumerate([0, 0, 1, 1]):
        assert layer_states(student, target)["output.dense.weight"].equal(
            layer_states(teacher, source)["output.dense.weight"]
        )


def test_of_another_ffn_only_what_fits_is_copied() -> None:
    teacher, student = fakes.tiny_model(), fakes.tiny_model(intermediate_size=24, seed=1)
    before = {name: value.clone() for name, value in layer_states(student, 0).items()}
    seed_encoder(student.bert, teacher.bert, "spread", PRINCIPAL, from_end=True)
    after, source = layer_states(student, 0), layer_states(teacher, 0)
    assert after["attention.self.query.weight"].equal(source["attention.self.query.weight"])
    assert after["output.LayerNorm.weight"].equal(source["output.LayerNorm.weight"])
    assert after["intermediate.dense.weight"].equal(before["intermediate.dense.weight"])
    assert after["output.dense.weight"].equal(before["output.dense.weight"])


def test_a_narrower_student_keeps_the_products_of_items_and_positions() -> None:
    teacher, student = fakes.tiny_model(), fakes.tiny_model(hidden_size=8, seed=1)
    positions = teacher.bert.embeddings.position_embeddings.weight
    items = teacher.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        both = low_rank(len(items) + len(positions), 16, 6)
        items.copy_(both[: len(items)])
        positions.copy_(both[len(items) :])
    Bert4Rec().seed_student(student, teacher, "spread", PRINCIPAL)
    ours = student.bert.embeddings.word_embeddings.weight, student.bert.embeddings.position_embeddings.weight
    for mine, theirs in zip(ours, (items, positions), strict=True):
        torch.testing.assert_close(mine @ mine.T, theirs @ theirs.T, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(ours[0] @ ours[1].T, items @ positions.T, atol=1e-3, rtol=1e-4)


def test_a_narrower_student_takes_over_the_bias_and_stays_tied() -> None:
    teacher, student = fakes.tiny_model(), fakes.tiny_model(hidden_size=8, seed=1)
    Bert4Rec().seed_student(student, teacher, "spread", PRINCIPAL)
    assert student.cls.predictions.decoder.bias.equal(teacher.cls.predictions.bias)
    assert student.cls.predictions.decoder.weight.equal(student.bert.embeddings.word_embeddings.weight)


def test_a_catalogue_smaller_than_the_student_is_wide_still_seeds_it() -> None:
    teacher, student = fakes.tiny_model(items=5), fakes.tiny_model(items=5, hidden_size=8, seed=1)
    seed_encoder(student.bert, teacher.bert, "spread", PRINCIPAL, from_end=True)
    ours, theirs = student.bert.embeddings.word_embeddings.weight, teacher.bert.embeddings.word_embeddings.weight
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("width", "how"), [(8, "random"), (32, PRINCIPAL)])
def test_what_cannot_or_must_not_be_projected_stays_fresh(width: int, how: str) -> None:
    teacher, student = fakes.tiny_model(), fakes.tiny_model(hidden_size=width, seed=1)
    before = {name: value.clone() for name, value in student.bert.state_dict().items()}
    seed_encoder(student.bert, teacher.bert, "spread", how)
    assert all(value.equal(before[name]) for name, value in student.bert.state_dict().items())


@pytest.mark.parametrize(("ours", "theirs"), [(6, 10), (10, 6)])
@pytest.mark.parametrize("hidden_size", [16, 8])
def test_positions_are_shared_from_the_end(ours: int, theirs: int, hidden_size: int) -> None:
    teacher = fakes.tiny_model(max_length=theirs)
    student = fakes.tiny_model(max_length=ours, hidden_size=hidden_size, seed=1)
    table = student.bert.embeddings.position_embeddings.weight
    before = table.detach().clone()
    seed_encoder(student.bert, teacher.bert, "spread", PRINCIPAL, from_end=True)
    wanted = teacher.bert.embeddings.position_embeddings.weight
    if hidden_size == 8:
        wanted = wanted @ principal_directions(teacher.bert.embeddings.word_embeddings.weight, 8)
    torch.testing.assert_close(table[-6:], wanted[-6:])
    assert table[:-6].equal(before[:-6])
