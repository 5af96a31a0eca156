from __future__ import annotations

import pytest
import torch

from compress.methods.rounding import Rounding
from compress.models import FAMILIES
from compress.recipe.model import Bert4RecModel
from deploy.bundle import Bundle
from deploy.flops import flops_by_length
from deploy.runtimes.torch import TorchEager, TorchServed

WIDTH, ITEMS, LENGTH = 16, 50, 12


@pytest.fixture
def description() -> Bundle:
    return Bundle(
        family="bert4rec",
        precision="fp32",
        catalogue_size=ITEMS,
        pad_id=ITEMS,
        max_length=LENGTH,
        top_k=10,
        needs_vnni=False,
        targets={},
        sha256={},
    )


def test_a_one_layer_served_graph_costs_what_pencil_and_paper_say(description: Bundle) -> None:
    torch.manual_seed(0)
    section = Bert4RecModel.model_validate(
        {
            "family": "bert4rec",
            "hidden_size": WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_length": LENGTH,
        }
    )
    family = FAMILIES["bert4rec"]
    model = family.build(section, ITEMS).eval()
    constant, linear, square = flops_by_length(TorchServed(family.serve(model, 10, Rounding())), description)
    query_and_output, feed_forward, head, catalogue = (
        2 * WIDTH * 2 * WIDTH,
        2 * WIDTH * 4 * WIDTH,
        WIDTH * WIDTH,
        WIDTH * (ITEMS + 2),
    )
    assert constant == 2 * (query_and_output + feed_forward + head + catalogue)
    assert linear == 2 * (2 * 2 * WIDTH), "two heads, scores and sums over positions"
    assert square == 0, "no product between positions remains"


def test_the_eager_model_pays_for_every_position(description: Bundle) -> None:
    torch.manual_seed(0)
    section = Bert4RecModel.model_validate({"family": "bert4rec", "hidden_size": WIDTH, "max_length": LENGTH})
    family = FAMILIES["bert4rec"]
    model = family.build(section, ITEMS).eval()
    constant, linear, square = flops_by_length(TorchEager(family, model, 10, 1), description)
    per_layer = 4 * WIDTH * WIDTH + 2 * WIDTH * 4 * WIDTH
    assert constant == pytest.approx(0, abs=1)
    assert linear == pytest.approx(2 * (2 * per_layer + WIDTH * WIDTH + WIDTH * (ITEMS + 2)), rel=1e-6)
    assert square == pytest.approx(2 * 2 * 2 * WIDTH, rel=1e-6), "attention scores and sums, two layers"
