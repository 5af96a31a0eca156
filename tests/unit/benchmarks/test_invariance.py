"""Whether company changes an answer, of runtimes that are known to mind it or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fakes
from benchmarks.invariance import invariance
from deploy.rankers.catalogue import Catalogue

ITEMS = 20
Arrays = dict[str, Any]


class _Runtime:
    """Ten items from the one after the last of each history, further on by what company says."""

    name, threads = "fake", 1

    def __init__(self, company: Callable[[Arrays], int]) -> None:
        self.company = company
        self.widths: list[int] = []

    def __call__(self, inputs: Arrays) -> tuple[Any, Any]:
        history_BL = inputs["history"]
        assert (history_BL[:, -1] < ITEMS).all(), "histories end together"
        self.widths.append(history_BL.shape[1])
        items_BK = (history_BL[:, -1:] + 1 + np.arange(10) + self.company(inputs)) % ITEMS
        return items_BK, np.broadcast_to(np.linspace(1, 0, 10, dtype=np.float32), items_BK.shape)


def _recommender(company: Callable[[Arrays], int], rank: Any = Catalogue) -> Any:
    description = SimpleNamespace(pad_id=ITEMS, max_length=12, top_k=10, catalogue_size=ITEMS)
    ranker = rank(Path(), description)
    return SimpleNamespace(runtime=_Runtime(company), ranker=ranker, calls=ranker.calls)


PEOPLE = fakes.interactions(users=24, items=ITEMS, shortest=5, longest=14)


def test_what_looks_at_its_own_history_alone_is_the_same_in_any_company() -> None:
    recommender = _recommender(lambda inputs: 0)
    found = invariance(recommender, PEOPLE)
    everybody = {"same": 1.0, "overlap": 1.0}
    assert found == {"users": 24, "padded": everybody, "batch": everybody}
    alone, padded = recommender.runtime.widths[:24], recommender.runtime.widths[24:48]
    assert len(set(alone)) > 3
    assert set(padded) == {max(alone)}


def test_what_minds_padding_is_told_from_what_minds_others() -> None:
    by_width = invariance(_recommender(lambda inputs: int(inputs["history"].shape[1] == 12)), PEOPLE)
    widest = np.mean([len(PEOPLE.history("test", user)) >= 12 for user in range(24)])
    assert 0 < widest < 1
    assert by_width["padded"]["same"] == pytest.approx(widest, abs=1e-6)
    assert by_width["padded"]["overlap"] == pytest.approx(widest + 0.9 * (1 - widest), abs=1e-6)
    by_mates = invariance(_recommender(lambda inputs: 5 * (len(inputs["history"]) > 1)), PEOPLE)
    assert by_mates["padded"]["same"] == 1
    assert by_mates["batch"] == {"same": 0.0, "overlap": 0.5}


def test_what_answers_one_user_at_a_time_has_no_batch() -> None:
    class OneByOne(Catalogue):
        def calls(self, asked: Any) -> list[Any]:
            return [call for row in range(len(asked)) for call in super(OneByOne, self).calls(asked.of([row]))]

        def rank(self, runtime: Any, asked: Any) -> Any:
            answers = [runtime(call) for call in self.calls(asked)]
            return tuple(np.concatenate(part) for part in zip(*answers, strict=True))

    assert invariance(_recommender(lambda inputs: 0, OneByOne), PEOPLE)["batch"] is None
