"""Takes one's own Hugging Face folder as a stage: tokens mapped to items, its reading checked, its quality measured.

`python -m compress.adopt recipe.yaml`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.artifact import Artifact
from compress.command import main
from compress.recipe.adoption import AdoptSection
from compress.stage import Workspace

CHECKED_USERS = 1_000


def run(section: AdoptSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `model/`, the same weights in the family's own layout. Returns validation metrics, beside popularity's.

    Raises: DataError if the folder is no such checkpoint, or ranks better when read in another way than declared, or
        not above popularity.
    """
    import polars as pl

    from compress import models
    from compress.baselines import popularity
    from compress.data.interactions import ITEMS, Interactions
    from compress.evaluation import evaluate, plain, validate, validated

    interactions = Interactions.of(inputs)
    item_ids = pl.read_parquet(inputs["data"].path(ITEMS), glob=False).sort("item")["item_id"].to_list()
    family = models.FAMILIES[section.model.family]
    sources = [models.source(inputs[name]) for name in section.model.inputs()]
    model = family.adopt(section.model, section.path, item_ids, *sources)
    quality = validate(plain(family, model, interactions.judged_items), interactions, workspace.folder)
    if section.check == "ranking":
        _check_ranking(section, family, model, interactions, validated(workspace.folder))
    family.save(model, workspace.folder / "model")
    popular = evaluate(popularity(interactions), interactions, "validation")
    return {
        **quality,
        "popularity_ndcg@10": popular["ndcg@10"],
        "parameters": model.num_parameters(),
    }


def _check_ranking(section: AdoptSection, family: Any, model: Any, interactions: Any, lists_UK: Any) -> None:
    """Holds the declared reading against the others and against popularity, on the same validation users.

    Args: lists_UK: what it answers all of them.
    """
    import numpy as np

    from compress.baselines import popularity
    from compress.data.histories import Recommend
    from compress.errors import DataError
    from compress.evaluation import plain, recommend_all
    from compress.metrics import compare, ranking_metrics

    rows = np.random.default_rng(0).permutation(len(lists_UK))[:CHECKED_USERS]
    users = interactions.users("validation")[rows]

    def judged(top_UK: Any) -> Any:
        return ranking_metrics(top_UK, interactions.targets("validation", users))["ndcg@10"]

    def ndcg(recommend: Recommend) -> Any:
        return judged(recommend_all(recommend, interactions, "validation", users=users))

    declared = judged(lists_UK[rows])
    others = {words: ndcg(plain(family, other)) for words, other in family.other_readings(model).items()}
    best = max(others, key=lambda words: others[words].mean(), default=None)
    if best and others[best].any() and compare(declared, others[best]).difference.high < 0:
        raise DataError(
            f"{section.path}: ranks better as {best} (NDCG@10 {others[best].mean():.4f} on validation users) than as "
            f"declared ({declared.mean():.4f}); correct the stage's model section, or set check: none"
        )
    popular = ndcg(popularity(interactions))
    if popular.any() and compare(declared, popular).difference.low <= 0:
        raise DataError(
            f"{section.path}: does not rank above popularity (NDCG@10 {declared.mean():.4f}, popularity "
            f"{popular.mean():.4f} on validation users): is each token its item? check tokens, pad_token, mask_token "
            "and max_length, or set check: none"
        )


if __name__ == "__main__":
    raise SystemExit(main("adopt"))
