"""A graph that ranks the catalogue: histories in, top-k out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compress.data.histories import Asked, left_padded
from deploy.rankers.buckets import Fill
from deploy.runtimes import Arrays, Ids, Runtime, Scores

if TYPE_CHECKING:
    from deploy.bundle import Bundle


class Catalogue:
    """All users in one call."""

    files: tuple[str, ...] = ()
    attributes: frozenset[str] = frozenset()
    reads_first_stage = False

    def __init__(self, folder: Path, description: Bundle) -> None:
        self.description = description
        self.pad = description.pad_id

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {"length": (1, self.description.max_length), "excluded": (0, self.description.catalogue_size)}

    @property
    def fills(self) -> Mapping[str, Fill]:
        excluded = Fill("left", self.description.catalogue_size, self.description.pad_id)
        return {"history": Fill("left", self.description.max_length, self.pad), "exclude": excluded}

    def calls(self, asked: Asked) -> list[Arrays]:
        longest = max(map(len, asked.excluded))
        return [{**self.read(asked), "exclude": left_padded(asked.excluded, longest, self.description.pad_id)}]

    def read(self, asked: Asked) -> Arrays:
        """What the graph reads of the users: the latest items that fit."""
        return {"history": left_padded(asked.histories, self.description.max_length, self.description.pad_id)}

    def rank(self, runtime: Runtime, asked: Asked) -> tuple[Ids, Scores]:
        (arrays,) = self.calls(asked)
        items_BK, scores_BK = runtime(arrays)
        return items_BK, scores_BK
