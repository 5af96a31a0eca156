"""Adds items to a trained model's catalogue and takes others out of it, without training, and states what that costs.

`python -m compress.refresh recipe.yaml`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from compress.command import main
from compress.errors import DataError
from compress.recipe.serving import RefreshSection
from compress.stage import Workspace

if TYPE_CHECKING:  # what is slow to load is loaded when there is work, not to find out that there is none
    import polars as pl
    import scipy.sparse as sp
    from transformers import PreTrainedModel

    from compress.data.interactions import IntArray, Interactions
    from compress.methods.rounding import Rounding
    from compress.methods.text_similarity import TextSimilarity
    from compress.metrics import Floats
    from compress.models.family import Family

TOP = 10
"""Quality is judged on so many recommended items."""

FOLDS = 20
"""Parts of the catalogue that are taken for new in turn: 5% of the items at a time."""


def run(section: RefreshSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `model/` and its own `items.parquet`.

    Returns:
        validation NDCG@10 of the same users after and before, a removed target counted as a miss; what a row made of
        texts is worth beside a trained one; and what `export` reads of the input's metrics.

    Raises: DataError, one line, if a file does not fit the catalogue.

    """
    import numpy as np
    import polars as pl

    from compress import models
    from compress.data.catalogue import extend
    from compress.data.interactions import ITEMS, Interactions
    from compress.evaluation import recommend_all, served
    from compress.methods import linear_rounding
    from compress.methods.rounding import Rounding
    from compress.metrics import ranking_metrics

    data, source = inputs["data"], inputs[section.input]
    items = pl.read_parquet(data.path(ITEMS), glob=False).sort("item")
    similarity = _similarity(section, items)
    added, weights_NI = _added(section, items, similarity)
    removed = _removed(section, items, added)

    family, model = models.load(source.path("model"))
    carried = source.metrics.get("rounding", {})
    rounding = Rounding.of(source)
    refreshed = family.with_items(model, weights_NI, removed, rounding)
    family.save(refreshed, workspace.folder / "model")
    if rounding.maps:  # of the encoder, which stays as it is
        linear_rounding.write(rounding.maps, workspace.folder)
    extend(items, added, removed).write_parquet(workspace.folder / ITEMS)

    interactions = Interactions.of(inputs)
    targets_U = interactions.targets("validation")
    before_UK, after_UK = (
        recommend_all(served(family, each, rounding), interactions, "validation") for each in (model, refreshed)
    )
    gone_U = np.isin(targets_U, removed)
    before_U = ranking_metrics(before_UK, targets_U)["ndcg@10"]
    after_U = np.where(gone_U, 0, ranking_metrics(after_UK, targets_U)["ndcg@10"])
    worth = similarity and _worth(
        family, model, interactions, similarity, section.nearest, rounding, before_U, workspace.seed
    )
    return {
        "ndcg@10": round(float(after_U.mean()), 6),
        "ndcg@10_before": round(float(before_U.mean()), 6),
        "removed_targets": int(gone_U.sum()),
        **({"new_row_ratio": worth["ratio"]["mean"]} if worth and worth["ratio"] else {}),
        "added": added.height,
        "removed": len(removed),
        "new_items_share@10": round(float((after_UK >= items.height).mean()), 6),
        "ratio_without_removed_targets": _ratio(after_U[~gone_U], before_U[~gone_U]),
        "new_rows": worth,
        "rounding": carried,
    }


def _similarity(section: RefreshSection, items: pl.DataFrame) -> TextSimilarity | None:
    """Of the known items' texts, if new rows are made of them."""
    if section.add is None or section.rows != "text":
        return None
    from compress.methods.text_similarity import TextSimilarity

    try:
        return TextSimilarity(items["text"].fill_null("").to_list())
    except ValueError:
        raise DataError(
            "data: no item has a text (data.columns.text); name neighbours instead (rows: neighbours)"
        ) from None


def _added(
    section: RefreshSection, items: pl.DataFrame, similarity: TextSimilarity | None
) -> tuple[pl.DataFrame, sp.csr_matrix]:
    """The new items, and how much of each known one they are made of."""
    import polars as pl
    import scipy.sparse as sp

    from compress.data.catalogue import read_new_neighbours, read_new_texts
    from compress.methods.new_rows import equal_weights

    if section.add is None:
        return pl.DataFrame(schema={"item_id": pl.String}), sp.csr_matrix((0, items.height))
    if similarity is None:
        added = read_new_neighbours(section.add, items)
        return added, equal_weights(added["neighbours"].to_list(), items.height)
    added = read_new_texts(section.add, items)
    weights_NI = similarity.weights(added["text"].to_list(), section.nearest)
    unlike = (weights_NI.sum(axis=1) == 0).nonzero()[0]
    if len(unlike):
        item_id, text = added.row(int(unlike[0]))
        raise DataError(
            f"{section.add}: item {item_id!r}: its text {text!r} shares nothing with any known item's; "
            f"describe it in their words or leave it out ({len(unlike)} of {added.height} rows)"
        )
    return added, weights_NI


def _removed(section: RefreshSection, items: pl.DataFrame, added: pl.DataFrame) -> IntArray:
    import numpy as np

    from compress.data.catalogue import read_removed

    if section.remove is None:
        return np.empty(0, dtype=np.int32)
    removed = read_removed(section.remove, items, added)
    left = items.height + added.height - len(removed)
    if left <= TOP:
        raise DataError(
            f"{section.remove}: {left} items would be left; a top {TOP} needs more than that to choose from"
        )
    return removed


def _worth(
    family: Family,
    model: PreTrainedModel,
    interactions: Interactions,
    similarity: TextSimilarity,
    nearest: int,
    rounding: Rounding,
    trained_U: Floats,
    seed: int,
) -> dict[str, Any]:
    """Each known item taken for new in its turn, its row made of the others', and how its users fare with that.

    In histories, too, it is the new row that is read. An item that shares no word with another has no new row; its
    users are left out.
    """
    import numpy as np

    from compress.evaluation import recommend_all, served
    from compress.metrics import ranking_metrics

    known = interactions.catalogue_size
    asked_U, targets_U = interactions.users("validation"), interactions.targets("validation")
    rebuilt_U, judged_U = np.zeros_like(trained_U), np.zeros(len(trained_U), dtype=bool)
    rebuilt_items = 0
    for part in np.array_split(np.random.default_rng(seed).permutation(known), min(FOLDS, known)):
        weights_NI = similarity.weights([similarity.texts[item] for item in part], nearest, hidden=part)
        alike_N = np.asarray(weights_NI.sum(axis=1)).ravel() > 0
        hidden, weights_NI = part[alike_N], weights_NI[alike_N]
        rebuilt_items += len(hidden)
        users = np.flatnonzero(np.isin(targets_U, hidden))
        if not len(users):
            continue
        renumbered = np.arange(known)
        renumbered[hidden] = known + np.arange(len(hidden))
        theirs = interactions.of_users(asked_U[users]).renumbered(renumbered, known + len(hidden))
        as_new = family.with_items(model, weights_NI, hidden, rounding)
        top_UK = recommend_all(served(family, as_new, rounding), theirs, "validation")
        rebuilt_U[users] = ranking_metrics(top_UK, theirs.targets("validation"))["ndcg@10"]
        judged_U[users] = True
    if not judged_U.any():
        return {"items": rebuilt_items, "users": 0, "ratio": None}
    return {
        "items": rebuilt_items,
        "users": int(judged_U.sum()),
        "ndcg@10": round(float(rebuilt_U[judged_U].mean()), 6),
        "ndcg@10_trained": round(float(trained_U[judged_U].mean()), 6),
        "ratio": _ratio(rebuilt_U[judged_U], trained_U[judged_U]),
    }


def _ratio(ours_U: Floats, theirs_U: Floats) -> dict[str, float] | None:
    """Of two models' means over the same users with the paired 95% interval; None where there is none to form."""
    from compress.metrics import compare

    if not theirs_U.any():
        return None
    return {name: round(value, 6) for name, value in asdict(compare(ours_U, theirs_U).ratio).items()}


if __name__ == "__main__":
    raise SystemExit(main("refresh"))
