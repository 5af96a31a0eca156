from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from compress.methods.rounding import Rounding
from compress.models import FAMILIES
from compress.recipe.model import Bert4RecModel
from deploy.flops import counted, evaluated, polynomial
from deploy.runtimes import Arrays
from deploy.runtimes.torch import TorchEager, TorchServed

WIDTH, ITEMS, LENGTH = 16, 50, 12
family = FAMILIES["bert4rec"]


def fresh(**options: Any) -> BertForMaskedLM:
    torch.manual_seed(0)
    fields = {"family": "bert4rec", "hidden_size": WIDTH, "num_attention_heads": 2, "max_length": LENGTH}
    return family.build(Bert4RecModel.model_validate(fields | options), ITEMS).eval()


def request(batch: int, length: int, excluded: int = 1) -> Arrays:
    return {"history": np.zeros((batch, length), np.int64), "exclude": np.zeros((batch, excluded), np.int64)}


def test_a_one_layer_served_graph_costs_what_pencil_and_paper_say() -> None:
    described = polynomial(family.serve(fresh(num_hidden_layers=1), 10, Rounding()))
    query_and_output, feed_forward, head, catalogue = (
        2 * WIDTH * 2 * WIDTH,
        2 * WIDTH * 4 * WIDTH,
        WIDTH * WIDTH,
        WIDTH * (ITEMS + 2),
    )
    expected = np.zeros((3, 3, 3))  # powers of the batch, of what is excluded, of the length
    expected[1, 0, 0] = 2 * (query_and_output + feed_forward + head + catalogue)
    expected[1, 0, 1] = 2 * (2 * 2 * WIDTH)  # two heads, scores and sums over positions
    assert described["axes"] == ["batch", "excluded", "length"]
    # No product between positions remains, and what is excluded costs none.
    assert np.array(described["coefficients"]).tolist() == expected.tolist()


@pytest.mark.parametrize("attention", ["causal", "masked"])
def test_a_polynomial_says_of_any_calls_what_they_cost(attention: str) -> None:
    graph = family.serve(fresh(attention=attention), 10, Rounding())
    runtime = TorchServed(graph)
    calls = [request(1, 1), request(1, LENGTH), request(7, 5, 20)]
    each = [counted(partial(runtime, call)) for call in calls]
    described = polynomial(graph)
    assert [evaluated(described, graph.axes, [call]) for call in calls] == pytest.approx(each, rel=1e-9)
    assert evaluated(described, graph.axes, calls) == pytest.approx(sum(each), rel=1e-9)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_eager_model_pays_for_every_position(batch: int) -> None:
    runtime = TorchEager(family, fresh(), 10, 1)
    per_layer = 4 * WIDTH * WIDTH + 2 * WIDTH * 4 * WIDTH
    linear = 2 * (2 * per_layer + WIDTH * WIDTH + WIDTH * (ITEMS + 2))
    square = 2 * 2 * 2 * WIDTH  # attention scores and sums, two layers
    for length in (1, 6, LENGTH):
        found = counted(partial(runtime, request(batch, length, excluded=5)))
        assert found == batch * (linear * length + square * length**2)
