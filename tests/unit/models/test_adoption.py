"""Somebody else's checkpoint: read as it was trained, mapped item by item, refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

import fakes
from compress.data.histories import Asked
from compress.errors import DataError
from compress.methods.rounding import Rounding
from compress.models.bert4rec import Bert4Rec
from compress.recipe.adoption import Bert4RecCheckpoint

PAD, FIRST, MASK = 0, 3, 15
"""Special tokens and the first item's of the foreign model: 1 and 2 mean something else, 12 items, 16 tokens."""
ITEMS = [f"sku{number}" for number in range(12)]
LENGTH = 6


def foreign(folder: Path, **options: Any) -> BertForMaskedLM:
    """A model as people save it: more positions than it reads, two token types, a pooler's worth of nothing."""
    torch.manual_seed(0)
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=16, max_position_embeddings=20, **fields, **options)
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[A]", "[B]", *ITEMS, "[MASK]"]))
    return model


def section(**options: Any) -> Bert4RecCheckpoint:
    fields = {"family": "bert4rec", "attention": "masked", "alignment": "left", "max_length": LENGTH}
    fields |= {"pad_token": PAD, "mask_token": MASK if options.get("attention", "masked") == "masked" else None}
    return Bert4RecCheckpoint.model_validate(fields | options)


def as_its_owner_runs_it(model: BertForMaskedLM, history: list[int], attention: str, alignment: str) -> list[float]:
    """Scores of all items, alone in a batch, with transformers and the foreign tokens."""
    tokens = [FIRST + item for item in history[-LENGTH:]] + ([MASK] if attention == "masked" else [])
    size = LENGTH + (attention == "masked")
    fill = [PAD] * (size - len(tokens))
    ids = tokens + fill if alignment == "left" else fill + tokens
    at = len(tokens) - 1 if alignment == "left" else size - 1
    input_ids = torch.tensor([ids])
    real = torch.tensor([[float(token != PAD) for token in ids]])
    if attention == "causal":
        allowed = torch.ones(size, size).tril()[None, None] * real[:, None, None, :]
        mask: torch.Tensor = (1 - allowed) * torch.finfo(torch.float32).min
    else:
        mask = real
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=mask).logits
    found: list[float] = logits[0, at, FIRST : FIRST + len(ITEMS)].tolist()
    return found


@pytest.mark.parametrize("attention", ["causal", "masked"])
@pytest.mark.parametrize("alignment", ["left", "right"])
def test_an_adopted_model_scores_as_its_owner_runs_it(tmp_path: Path, attention: str, alignment: str) -> None:
    theirs = foreign(tmp_path)
    family = Bert4Rec()
    model = family.adopt(section(attention=attention, alignment=alignment), tmp_path, ITEMS)
    histories = [np.array(history) for history in ([3], [1, 2, 5, 7], [0, 1, 2, 3, 4, 5], [9, 8, 7, 6, 5, 4, 3, 2])]
    with torch.no_grad():
        ours = family.score(model, Asked(histories, fakes.nothing(histories)))
    for row, history in zip(ours, histories, strict=True):
        expected = as_its_owner_runs_it(theirs, history.tolist(), attention, alignment)
        assert row.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("attention", ["causal", "masked"])
@pytest.mark.parametrize("alignment", ["left", "right"])
def test_an_adopted_model_is_served_with_the_same_numbers(tmp_path: Path, attention: str, alignment: str) -> None:
    foreign(tmp_path)
    family = Bert4Rec()
    model = family.adopt(section(attention=attention, alignment=alignment), tmp_path, ITEMS)
    histories = fakes.histories(1, 3, 6, 8, items=12)
    nothing = fakes.nothing(histories)
    with torch.no_grad():
        items, scores = family.serve(model, 12, Rounding())(*family.inputs(model, Asked(histories, nothing)).values())
        expected = family.score(model, Asked(histories, nothing)).gather(1, items)
    assert scores.tolist() == [pytest.approx(row, abs=1e-4) for row in expected.tolist()]


def test_items_may_be_mapped_by_a_file_or_by_an_offset(tmp_path: Path) -> None:
    foreign(tmp_path)
    by_vocabulary = Bert4Rec().adopt(section(), tmp_path, ITEMS)
    lines = [f"{FIRST + number},{item}" for number, item in enumerate(ITEMS)]
    (tmp_path / "map.csv").write_text("\n".join(["token_id,item_id", *lines]))
    by_file = Bert4Rec().adopt(section(tokens=tmp_path / "map.csv"), tmp_path, ITEMS)
    by_offset = Bert4Rec().adopt(section(token_offset=FIRST), tmp_path, [str(number) for number in range(12)])
    for other in (by_file, by_offset):
        for name, weight in by_vocabulary.state_dict().items():
            assert weight.equal(other.state_dict()[name])


def test_an_adopted_left_aligned_model_can_be_trained_on(tmp_path: Path) -> None:
    foreign(tmp_path)
    family = Bert4Rec()
    model = family.adopt(section(), tmp_path, ITEMS)
    examples = family.examples(model, fakes.interactions(items=12, longest=12), seed=0)
    batch = examples.collate([examples[index] for index in range(4)])
    assert torch.isfinite(family.supervise(model, batch).scores()).all()


def test_other_readings_are_the_other_three_with_the_same_weights(tmp_path: Path) -> None:
    foreign(tmp_path)
    model = Bert4Rec().adopt(section(), tmp_path, ITEMS)
    readings = Bert4Rec().other_readings(model)
    assert set(readings) == {
        "attention: causal, alignment: left",
        "attention: causal, alignment: right",
        "attention: masked, alignment: right",
    }
    direct = Bert4Rec().adopt(section(alignment="right"), tmp_path, ITEMS)
    other = readings["attention: masked, alignment: right"]
    histories = fakes.histories(2, 6, items=12)
    with torch.no_grad():
        ours, theirs = (Bert4Rec().score(each, Asked(histories, fakes.nothing(histories))) for each in (other, direct))
    assert ours.allclose(theirs)


def _spoilt_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("spoil", "options", "complaint"),
    [
        (lambda folder: (folder / "config.json").unlink(), {}, "no Hugging Face folder"),
        (lambda folder: (folder / "config.json").write_text("[]"), {}, "config.json is not a model's"),
        (lambda folder: _spoilt_config(folder, model_type="roberta"), {}, "a roberta BertForMaskedLM is not supported"),
        (lambda folder: (folder / "model.safetensors").unlink(), {}, "no safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" * 40), {}, "cannot be loaded"),
        (lambda folder: _spoilt_config(folder, num_hidden_layers=3), {}, "weights are missing"),
        (lambda folder: foreign(folder, tie_word_embeddings=False), {}, "untied"),
        (lambda folder: (folder / "vocab.txt").unlink(), {}, "name a file of token_id,item_id with tokens"),
        (lambda folder: (folder / "vocab.txt").write_text("sku0\nsku1"), {}, "10 of 12 items have no token"),
        (lambda folder: None, {"max_length": 20}, "it takes 21 positions, the model has 20"),
        (lambda folder: None, {"pad_token": 16}, "the model has 16 tokens"),
        (lambda folder: None, {"pad_token": FIRST}, "item 'sku0' has the pad or mask token"),
        (lambda folder: None, {"token_offset": 1}, "item ids must be integers"),
        (lambda folder: None, {"tokens": Path("nowhere.csv")}, "nowhere.csv: cannot be read"),
    ],
)
def test_what_cannot_be_adopted_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], options: dict[str, Any], complaint: str
) -> None:
    foreign(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=complaint) as raised:
        Bert4Rec().adopt(section(**options), tmp_path, ITEMS)
    assert "\n" not in str(raised.value)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=16, **fields)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="BertForSequenceClassification is not supported; BertForMaskedLM is"):
        Bert4Rec().adopt(section(), tmp_path, ITEMS)
