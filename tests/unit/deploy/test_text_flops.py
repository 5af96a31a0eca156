"""What calls of a graph over texts cost: counted, and as the export's polynomial says it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import fakes
import text_fakes
from compress.data.histories import Asked
from compress.data.texts import Texts
from compress.methods.rounding import Rounding
from compress.models.cross_encoder import CrossEncoder
from compress.models.two_tower import TwoTower
from deploy.flops import counted, evaluated, polynomial
from deploy.rankers.pairs import Pairs
from deploy.rankers.towers import Towers
from deploy.runtimes import Arrays
from deploy.runtimes.torch import TorchServed

ITEMS, WIDTH, FEED_FORWARD = 60, 16, 24


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return text_fakes.texts(tmp_path_factory.mktemp("texts"), ITEMS)


def calls(kind: Any, texts: Texts) -> list[Arrays]:
    """Real ones, of users with short and long texts."""
    from deploy.bundle import Bundle

    fields: dict[str, Any] = {"precision": "fp32", "needs_vnni": False, "targets": {}, "sha256": {}, "family": ""}
    ranker = kind(texts.folder, Bundle(catalogue_size=ITEMS, pad_id=ITEMS, max_length=64, top_k=10, **fields))
    histories = fakes.histories(1, 4, 9, items=ITEMS)
    made: list[Arrays] = ranker.calls(Asked(histories, histories))
    return made


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("heads", [2, 8])
def test_a_polynomial_says_what_real_calls_of_pairs_cost(texts: Texts, layers: int, heads: int) -> None:
    model = text_fakes.cross_encoder(texts, num_hidden_layers=layers, num_attention_heads=heads)
    graph = CrossEncoder().serve(model, 10, Rounding()).eval()
    described, asked = polynomial(graph), calls(Pairs, texts)
    assert len({(call["user"].shape, call["items"].shape) for call in asked}) > 4
    each = [counted(partial(TorchServed(graph), call)) for call in asked]
    assert described["axes"] == ["candidates", "item_tokens", "user_tokens"]
    assert [evaluated(described, graph.axes, [call]) for call in asked] == pytest.approx(each, rel=1e-9)
    assert evaluated(described, graph.axes, asked) == pytest.approx(sum(each), rel=1e-9)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_polynomial_says_what_real_calls_of_towers_cost(texts: Texts, pooling: str) -> None:
    graph = TwoTower().serve(text_fakes.two_tower(texts, pooling=pooling), 10, Rounding()).eval()
    asked = calls(Towers, texts)
    found = evaluated(polynomial(graph), graph.axes, asked)
    assert found == pytest.approx(sum(counted(partial(TorchServed(graph), call)) for call in asked), rel=1e-9)


def test_one_layer_over_pairs_costs_what_pencil_and_paper_say(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts, num_hidden_layers=1, num_attention_heads=2)
    described = polynomial(CrossEncoder().serve(model, 10, Rounding()))
    query_and_output, feed_forward = 2 * WIDTH * 2 * WIDTH, 2 * WIDTH * FEED_FORWARD
    pooler, score = WIDTH * WIDTH, WIDTH
    expected = np.zeros((3, 3, 3))  # powers of candidates, of item tokens, of user tokens
    expected[1, 0, 0] = 2 * (query_and_output + feed_forward + pooler + score)
    expected[1, 1, 0] = expected[1, 0, 1] = 2 * (2 * 2 * WIDTH)  # two heads, scores and sums over positions
    assert np.array(described["coefficients"]).tolist() == expected.tolist()


def test_a_users_text_is_projected_once_for_all_candidates(texts: Texts) -> None:
    model = text_fakes.cross_encoder(texts, num_hidden_layers=2)
    described = polynomial(CrossEncoder().serve(model, 10, Rounding()))
    found = np.array(described["coefficients"])
    once = 2 * WIDTH * 3 * WIDTH  # query, key and value of the first layer
    assert found[0].tolist() == [[0, once, 0], [0, 0, 0], [0, 0, 0]]
    assert found[1, 1, 0] == pytest.approx(found[1, 0, 1] + once), "an item's are its own"
