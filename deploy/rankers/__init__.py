"""What a family's served graph is asked and how its outputs are read; numpy alone, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from compress.data.histories import Asked
from deploy.rankers.buckets import Fill
from deploy.rankers.catalogue import Catalogue
from deploy.rankers.pairs import HybridPairs, Pairs, PlainHybridPairs, PlainPairs
from deploy.rankers.towers import PlainTowers, Towers
from deploy.runtimes import Arrays, Ids, Runtime, Scores

if TYPE_CHECKING:
    from deploy.bundle import Bundle


class Ranker(Protocol):
    """From dense ids to calls of the runtime, and back to ranked dense ids."""

    files: tuple[str, ...]
    """What the family's bundles hold besides graphs and id map."""
    attributes: frozenset[str]
    """Of a user, that the model reads besides the history."""
    reads_first_stage: bool
    """Whether an answer needs the scores that a first stage gave its candidates."""
    pad: int
    """What pads the histories or texts that the runtime reads."""

    def __init__(self, folder: Path, description: Bundle) -> None: ...

    @property
    def fills(self) -> Mapping[str, Fill]:
        """Of the runtime's inputs, those that may be padded further, by name."""

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        """Sizes that a call's axes lie between, whatever is asked, but for its rows, by the names of the axes."""

    def calls(self, asked: Asked) -> list[Arrays]:
        """The runtime's inputs, a call each, that answer all of these users."""

    def rank(self, runtime: Runtime, asked: Asked) -> tuple[Ids, Scores]:
        """The best items and their scores, (users, top_k) each; MASKED is the score of what is no answer."""


RANKERS: dict[str, type[Ranker]] = {
    "bert4rec": Catalogue,
    "cross_encoder": Pairs,
    "two_tower": Towers,
    "hybrid": HybridPairs,
}
"""By family, as the bundle names it."""

PLAIN: Mapping[str, type[Ranker]] = RANKERS | {
    "cross_encoder": PlainPairs,
    "two_tower": PlainTowers,
    "hybrid": PlainHybridPairs,
}
"""How people ask a model of the family before they do anything about it."""
