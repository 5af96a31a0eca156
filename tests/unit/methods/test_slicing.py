"""What is kept of a wider model does what it did there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fakes
import text_fakes
from compress.data.histories import Asked
from compress.methods.seeding import seed_encoder
from compress.methods.slicing import hidden_sizes, important_units, largest
from compress.models.bert4rec import Bert4Rec
from compress.models.cross_encoder import CrossEncoder

IMPORTANT = "important-units"


def shaken(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return text_fakes.shaken(fakes.tiny_model(seed=seed, **options))


@torch.no_grad()
def scores(model: Any) -> Tensor:
    histories = fakes.histories(1, 5, 8)
    found: Tensor = Bert4Rec().score(model.eval(), Asked(histories, fakes.nothing(histories)))
    return found


def test_the_largest_in_rising_order() -> None:
    assert largest(torch.tensor([[3.0, 9.0, 1.0, 4.0], [0.0, 1.0, 2.0, 3.0]]), 2).tolist() == [[1, 3], [2, 3]]
    with pytest.raises(ValueError, match="5 of 4 units"):
        largest(torch.ones(4), 5)


@torch.no_grad()
def test_units_that_do_nothing_are_the_ones_left_out() -> None:
    """Heads, dimensions of heads and neurons that are zero: without them the model answers as with them."""
    teacher = shaken(hidden_size=16, num_attention_heads=4, intermediate_size=24)
    head, silent = 1, 3  # of four heads of four dimensions the second, and of each other the last
    for layer in teacher.bert.encoder.layer:
        attention = layer.attention.self
        gone = [*range(4 * head, 4 * head + 4), *range(silent, 16, 4)]
        for name in ("query", "key", "value"):
            getattr(attention, name).weight[gone] = 0
            getattr(attention, name).bias[gone] = 0
        layer.attention.output.dense.weight[:, gone] = 0
        layer.output.dense.weight[:, 5:17] = 0
    units = important_units(teacher.bert.encoder.layer[0], torch.arange(16), heads=3, head_size=3, neurons=12)
    assert units.queries_ad.tolist() == [[0, 1, 2], [8, 9, 10], [12, 13, 14]] == units.values_ad.tolist()
    assert not set(units.neurons_f.tolist()) & set(range(5, 17))

    from transformers.models.bert.modeling_bert import BertLayer

    from compress.methods.slicing import copy_layer

    config = fakes.tiny_model(hidden_size=12, num_attention_heads=4, intermediate_size=12).config  # heads of three
    small = BertLayer(config)
    states = torch.randn(2, 5, 16)
    attention = small.attention.self
    attention.num_attention_heads = 3
    for name in ("query", "key", "value"):
        setattr(attention, name, torch.nn.Linear(16, 9))
    small.attention.output.dense = torch.nn.Linear(9, 16)
    small.attention.output.LayerNorm = torch.nn.LayerNorm(16, eps=config.layer_norm_eps)
    small.intermediate.dense, small.output.dense = torch.nn.Linear(16, 12), torch.nn.Linear(12, 16)
    small.output.LayerNorm = torch.nn.LayerNorm(16, eps=config.layer_norm_eps)
    copy_layer(small, teacher.bert.encoder.layer[0], units)
    ours, theirs = (layer.eval()(states) for layer in (small, teacher.bert.encoder.layer[0]))
    ours, theirs = (each[0] if isinstance(each, tuple) else each for each in (ours, theirs))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_student_as_wide_as_its_teacher_is_its_teacher() -> None:
    teacher, student = shaken(seed=1), shaken(seed=2)
    Bert4Rec().seed_student(student, teacher, "spread", IMPORTANT)
    torch.testing.assert_close(scores(student), scores(teacher), atol=1e-5, rtol=1e-4)


def test_fewer_neurons_of_the_same_width_are_kept_units() -> None:
    teacher, student = shaken(intermediate_size=24), shaken(seed=1, intermediate_size=10)
    seed_encoder(student.bert, teacher.bert, "spread", IMPORTANT)
    for ours, theirs in zip(student.bert.encoder.layer, teacher.bert.encoder.layer, strict=True):
        rows = {tuple(row) for row in theirs.intermediate.dense.weight.tolist()}
        assert all(tuple(row) in rows for row in ours.intermediate.dense.weight.tolist())


def test_a_narrower_student_has_its_teachers_dimensions_everywhere() -> None:
    teacher = shaken(hidden_size=32, num_attention_heads=4, intermediate_size=48)
    student = shaken(seed=1, hidden_size=16, num_attention_heads=2, intermediate_size=24)
    Bert4Rec().seed_student(student, teacher, "first", IMPORTANT)
    kept = largest(hidden_sizes(teacher.bert), 16)
    table = teacher.bert.embeddings.word_embeddings.weight
    assert student.bert.embeddings.word_embeddings.weight.equal(table[:, kept])
    ours, theirs = student.cls.predictions, teacher.cls.predictions
    assert ours.transform.dense.weight.equal(theirs.transform.dense.weight[kept][:, kept])
    assert ours.bias.equal(theirs.bias)
    assert student.bert.encoder.layer[1].output.LayerNorm.bias.equal(
        teacher.bert.encoder.layer[1].output.LayerNorm.bias[kept]
    )


def test_important_units_rank_nearer_to_the_teacher_than_chance(tmp_path: Any) -> None:
    """Of a teacher whose other half is small."""
    texts = text_fakes.texts(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 24}
    teacher = text_fakes.cross_encoder(texts, **sizes)
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            layer.output.dense.weight[:, ::2] *= 0.05
    asked = Asked(fakes.histories(4, 6, items=24), fakes.nothing(fakes.histories(4, 6, items=24)))
    found = {}
    for how in (IMPORTANT, "random"):
        student = text_fakes.cross_encoder(texts, seed=3, **{**sizes, "intermediate_size": 12})
        CrossEncoder().seed_student(student, teacher, "spread", how)
        with torch.no_grad():
            difference = CrossEncoder().score(student, asked) - CrossEncoder().score(teacher, asked)
        found[how] = difference.std().item()
    assert found[IMPORTANT] < 0.3 * found["random"]
