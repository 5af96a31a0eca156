"""The first stage of a ranking in two: retrieves a few candidates for each user, which later stages rank anew.

`python -m compress.retrieve recipe.yaml`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.texts import RetrieveSection
from compress.stage import Workspace

if TYPE_CHECKING:
    from compress.data.histories import Recommend
    from compress.data.interactions import IntArray, Interactions, Split

SPLITS: dict[int, Split] = {1: "validation", 2: "test"}

USERS = 64
"""Asked about at once, for training."""


def run(section: RetrieveSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `candidates.parquet`: part, user, item, best first; for training as well, as negatives that are hard.

    Returns recall, the ceiling of whatever ranks the lists anew, and NDCG@10 of their own order, on validation and
    test users. Nothing is chosen by the latter.

    Raises: DataError if the catalogue has no more items than that.

    """
    import numpy as np
    import polars as pl

    from compress.data.interactions import CANDIDATES, PARTS, TRAIN, Interactions
    from compress.errors import DataError
    from compress.evaluation import recommend_all
    from compress.metrics import ranking_metrics

    interactions = Interactions.of(inputs)
    if interactions.candidates is not None:
        raise DataError("data.candidates: gives the lists already; a retrieve stage would make others")
    if interactions.catalogue_size <= section.candidates:
        raise DataError(f"candidates: {section.candidates} of a catalogue of {interactions.catalogue_size} items")
    recommend, facts = _retriever(section, inputs, interactions)

    def table(part: int, users: IntArray, top_UC: IntArray) -> pl.DataFrame:
        """Of a user who has had nearly everything there are fewer: what was had stands at the list's end."""
        seen = [
            interactions.train(user) if part == TRAIN else interactions.history(SPLITS[part], user) for user in users
        ]
        lists = [row[(row >= 0) & ~np.isin(row, had)] for row, had in zip(top_UC, seen, strict=True)]
        user = np.repeat(users, [len(row) for row in lists]).astype(np.int32)
        item = np.concatenate([np.empty(0, dtype=np.int32), *lists]).astype(np.int32)
        return pl.DataFrame({"user": user, "item": item}).with_columns(part=pl.lit(part, pl.UInt8))

    trained = np.flatnonzero(interactions.train_ends - interactions.offsets[:-1] > 1)
    tables = [table(TRAIN, trained, _for_training(recommend, interactions, trained))]
    metrics: dict[str, Any] = {}
    for split, part in PARTS.items():
        users, targets = interactions.users(split), interactions.targets(split)
        top_UC = recommend_all(recommend, interactions, split)
        tables.append(table(part, users, top_UC))
        metrics[split] = {
            "recall": round(float((top_UC == targets[:, None]).any(axis=1).mean()), 6),
            "ndcg@10": round(float(ranking_metrics(top_UC, targets)["ndcg@10"].mean()), 6),
        }
    pl.concat(tables).write_parquet(workspace.folder / CANDIDATES)
    return {"candidates": section.candidates, **facts, **metrics}


def _for_training(recommend: Recommend, interactions: Interactions, users: IntArray) -> IntArray:
    """What is found for each user without the last training item; nothing that the user has in training."""
    import numpy as np

    from compress.data.histories import Asked

    trains = [interactions.train(user) for user in users]
    parts = [trains[start : start + USERS] for start in range(0, len(trains), USERS)]
    found = [recommend(Asked([train[:-1] for train in part], part)) for part in parts]
    return np.concatenate(found) if found else np.empty((0, 0), dtype=np.int64)


def _retriever(
    section: RetrieveSection, inputs: Mapping[str, Artifact], interactions: Interactions
) -> tuple[Recommend, dict[str, Any]]:
    from compress import models
    from compress.baselines import tune_markov
    from compress.evaluation import plain

    if section.by == "markov":
        parameters, recommend = tune_markov(interactions, section.candidates)
        return recommend, {"markov": parameters.as_dict()}
    return plain(*models.load(inputs[section.by].path("model")), k=section.candidates), {}


if __name__ == "__main__":
    raise SystemExit(main("retrieve"))
