"""What a recommender must beat: popularity, and a Markov chain worth the name.

U: users, I: items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from compress.data.histories import Asked, Recommend, best_items
from compress.data.interactions import Interactions
from compress.evaluation import recommend_all
from compress.methods.cooccurrence import follows
from compress.metrics import ranking_metrics

SMOOTHINGS = (2.5, 5, 10, 20, 40, 80, 160)
DECAYS = (0.3, 0.5, 0.7, 0.85, 1.0)


def popularity(interactions: Interactions, k: int = 10) -> Recommend:
    """The k most popular items of the training parts."""
    counts_I = interactions.popularity().astype(np.float64)
    return lambda asked: best_items(np.tile(counts_I, (len(asked), 1)), asked.excluded, k)


@dataclass(frozen=True)
class Markov:
    """Parameters of the chain."""

    window: int = 3
    """Steps within which one item counts as following another."""
    items: int = 3
    """Latest items whose rows are summed."""
    smoothing: float = 20
    """Pseudo-count of popularity in a row (a Dirichlet prior)."""
    decay: float = 0.7
    """Weight of an item relative to the one after it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class MarkovChain:
    """Counts of what follows what, from the training parts; parameters are applied when it recommends."""

    def __init__(self, interactions: Interactions, window: int = Markov.window) -> None:
        self.counts_II = follows(interactions, window)
        self.totals_I = np.asarray(self.counts_II.sum(axis=1)).ravel()
        popular = interactions.popularity()
        self.popularity_I = popular / popular.sum()

    def score(self, parameters: Markov) -> Callable[[Asked], NDArray[np.float64]]:
        """Sums the smoothed rows of a history's latest items: (U, I), excluded ones among them."""

        def score(asked: Asked) -> NDArray[np.float64]:
            latest = [history[-parameters.items :][::-1] for history in asked.histories]
            users = np.repeat(np.arange(len(latest)), [len(part) for part in latest])
            ages = np.concatenate([np.arange(len(part)) for part in latest])
            items = np.concatenate(latest)
            weights = parameters.decay**ages / (self.totals_I[items] + parameters.smoothing)
            weights_UI = sp.csr_matrix((weights, (users, items)), shape=(len(latest), len(self.totals_I)))
            prior_U = parameters.smoothing * np.asarray(weights_UI.sum(axis=1))
            scores_UI: NDArray[np.float64] = (weights_UI @ self.counts_II).toarray() + prior_U * self.popularity_I
            return scores_UI

        return score

    def recommend(self, parameters: Markov, k: int = 10) -> Recommend:
        """The k best."""
        score = self.score(parameters)
        return lambda asked: best_items(score(asked), asked.excluded, k)


def tune_markov(interactions: Interactions, k: int = 10) -> tuple[Markov, Recommend]:
    """The chain whose smoothing and decay rank best for validation users; it recommends k items."""
    chain = MarkovChain(interactions)
    targets = interactions.targets("validation")

    def quality(parameters: Markov) -> float:
        top = recommend_all(chain.recommend(parameters), interactions, "validation", batch_size=512)
        return float(np.nanmean(ranking_metrics(top, targets)["ndcg@10"]))

    grid = [Markov(smoothing=smoothing, decay=decay) for smoothing, decay in product(SMOOTHINGS, DECAYS)]
    best = max(grid, key=quality)
    return best, chain.recommend(best, k)
