"""The first stage of a ranking in two: retrieves a few candidates for each user, which later stages rank anew.

`python -m compress.retrieve recipe.yaml`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.texts import RetrieveSection
from compress.stage import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from compress.data.histories import Asked
    from compress.data.interactions import IntArray, Interactions

    Score = Callable[[Asked], NDArray[np.floating[Any]]]
    """Of the catalogue, (users, I), on any scale; what is excluded may have any."""

USERS = 64
"""Asked about at once."""


def run(section: RetrieveSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `candidates.parquet`: part, user, item, score, best first; for training too, as negatives that are hard.

    With `rehearsals`, also `rehearsals.parquet`: user, place in training, item, score.

    Returns recall, the ceiling of whatever ranks the lists anew, and NDCG@10 of their own order, on validation and
    test users. Nothing is chosen by the latter.

    Raises: DataError if the catalogue has no more items than that.

    """
    import numpy as np
    import polars as pl

    from compress.data.interactions import CANDIDATES, NOBODY, PARTS, REHEARSALS, TRAIN, Interactions
    from compress.errors import DataError
    from compress.metrics import ranking_metrics

    interactions = Interactions.of(inputs)
    if interactions.candidates is not None:
        raise DataError("data.candidates: gives the lists already; a retrieve stage would make others")
    if interactions.catalogue_size <= section.candidates:
        raise DataError(f"candidates: {section.candidates} of a catalogue of {interactions.catalogue_size} items")
    score, facts = _first_stage(section, inputs, interactions)

    # Of training, what would be guessed instead of each user's last item; nothing that the user has there.
    trained = np.flatnonzero(interactions.train_ends - interactions.offsets[:-1] > 1)
    trains = [interactions.train(user) for user in trained.tolist()]
    tables = [_lists(score, trained, [train[:-1] for train in trains], trains, section.candidates, TRAIN)]
    metrics: dict[str, Any] = {}
    for split, part in PARTS.items():
        users, targets = interactions.users(split), interactions.targets(split)
        histories = [interactions.history(split, user) for user in users]
        table = _lists(score, users, histories, histories, section.candidates, part)
        tables.append(table)
        lists = {user: own["item"].to_numpy() for (user,), own in table.group_by("user", maintain_order=True)}
        top_UC = np.full((len(users), section.candidates), NOBODY)
        for row, user in zip(top_UC, users.tolist(), strict=True):
            row[: len(lists.get(user, ()))] = lists.get(user, ())
        metrics[split] = {
            "recall": round(float((top_UC == targets[:, None]).any(axis=1).mean()), 6),
            "ndcg@10": round(float(ranking_metrics(top_UC, targets)["ndcg@10"].mean()), 6),
        }
    pl.concat(tables).write_parquet(workspace.folder / CANDIDATES)
    if section.rehearsals:
        rehearsed = _rehearsals(section, interactions, facts["markov"])
        rehearsed.write_parquet(workspace.folder / REHEARSALS)
        facts["rehearsals"] = rehearsed.select("user", "place").n_unique()
    return {"candidates": section.candidates, **facts, **metrics}


def _lists(
    score: Score,
    users: IntArray,
    histories: Sequence[IntArray],
    excluded: Sequence[IntArray],
    count: int,
    part: int,
) -> pl.DataFrame:
    """The best items of each user that are not excluded, best first, and their scores.

    Of a user who has had nearly everything there are fewer.
    """
    import numpy as np
    import polars as pl
    from tqdm import tqdm

    from compress.data.histories import Asked, best_items

    types = pl.Schema({"part": pl.UInt8, "user": pl.Int32, "item": pl.Int32, "score": pl.Float32})
    tables = [pl.DataFrame(schema=types)]
    for start in tqdm(range(0, len(users), USERS), desc="retrieve", leave=False, disable=None):
        rows = slice(start, start + USERS)
        scores_UI = np.array(score(Asked(histories[rows], excluded[rows])), dtype=np.float64)
        top_UC = best_items(scores_UI, excluded[rows], count)  # the others' scores are now -inf
        best_UC = np.take_along_axis(scores_UI, top_UC, axis=1)
        there = best_UC > -np.inf
        found = {"user": np.repeat(users[rows], there.sum(axis=1)), "item": top_UC[there], "score": best_UC[there]}
        tables.append(pl.DataFrame(found).select(pl.lit(part).alias("part"), *found).cast(types))
    return pl.concat(tables)


def _rehearsals(section: RetrieveSection, interactions: Interactions, parameters: Mapping[str, Any]) -> pl.DataFrame:
    """What a chain finds that was counted without each user's latest training items, when asked about those.

    Each as if nothing were known of what came after; lists that lack the item in question teach nothing.
    """
    import numpy as np
    import polars as pl

    from compress.baselines import Markov, MarkovChain

    earlier = interactions.without_latest(section.rehearsals)
    score = _log(MarkovChain(earlier).score(Markov(**parameters)))
    tables = []
    for step in range(1, section.rehearsals + 1):  # the latest, then the one before it, ...
        places = interactions.train_ends - interactions.offsets[:-1] - step
        users = np.flatnonzero(places > 0)
        trains = [interactions.train(user) for user in users.tolist()]
        histories = [train[:place] for train, place in zip(trains, places[users], strict=True)]
        wanted = [train[place] for train, place in zip(trains, places[users], strict=True)]
        excluded = [train[train != item] for train, item in zip(trains, wanted, strict=True)]
        at = pl.DataFrame({"user": users, "place": places[users], "wanted": wanted})
        lists = _lists(score, users, histories, excluded, section.candidates, 0)
        tables.append(lists.join(at.cast(pl.Int32), on="user", how="left", maintain_order="left"))
    teaching = (pl.col("item") == pl.col("wanted")).any() & (pl.len() > 1)
    whole = pl.concat(tables).filter(teaching.over("user", "place"))
    return whole.sort("user", "place", maintain_order=True).select("user", "place", "item", "score")


def _first_stage(
    section: RetrieveSection, inputs: Mapping[str, Artifact], interactions: Interactions
) -> tuple[Score, dict[str, Any]]:
    import torch

    from compress import models
    from compress.baselines import MarkovChain, tune_markov

    if section.by == "markov":
        parameters, _ = tune_markov(interactions, section.candidates)
        return _log(MarkovChain(interactions).score(parameters)), {"markov": parameters.as_dict()}
    family, model = models.load(inputs[section.by].path("model"))
    scorer = family.scorer(model)

    @torch.no_grad()
    def score(asked: Asked) -> NDArray[np.floating[Any]]:
        scores_UI: NDArray[np.floating[Any]] = scorer(asked).cpu().numpy()
        return scores_UI

    return score, {}


def _log(score: Score) -> Score:
    """Of probabilities: what a model's scores are, up to a constant."""
    import numpy as np

    return lambda asked: np.log(np.maximum(score(asked), 1e-30))


if __name__ == "__main__":
    raise SystemExit(main("retrieve"))
