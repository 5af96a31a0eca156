"""What a text recommender must beat: a logistic regression on the tf-idf of the same texts.

U: users, I: items, V: tokens, P: pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegressionCV

from compress.data.histories import Histories, Recommend, best_items
from compress.data.interactions import IntArray
from compress.data.texts import Ragged, Texts

Example = tuple[IntArray, IntArray]
"""A history, and items of which the first came next."""


def tfidf_regression(texts: Texts, examples: Sequence[Example], k: int = 10) -> Recommend:
    """Scores an item by its own tokens and by those it has in common with the user's history.

    Features of a pair are the item's tf-idf and its product with the user's, token by token; the strength of the
    regularisation is chosen by cross-validation over the examples.
    """
    candidates_IV, pieces_IV = (_tfidf(ragged, texts.layout.vocab_size) for ragged in (texts.items, texts.history))
    users_UV = _users([history for history, _ in examples], pieces_IV, texts.layout.last)
    sizes = [len(items) for _, items in examples]
    rows_P = np.repeat(np.arange(len(examples)), sizes)
    items_PV = candidates_IV[np.concatenate([items for _, items in examples])]
    wanted_P = np.concatenate([np.arange(size) == 0 for size in sizes])
    features = sp.hstack([items_PV, items_PV.multiply(users_UV[rows_P])]).tocsr()
    model = LogisticRegressionCV(
        Cs=[0.1, 1.0, 10.0], cv=3, scoring="neg_log_loss", l1_ratios=(0,), use_legacy_attributes=False, max_iter=300
    )
    weights = model.fit(features, wanted_P).coef_.ravel()
    own_V, shared_V = np.split(weights, 2)

    def recommend(histories: Histories, excluded: Histories) -> NDArray[np.int64]:
        users_UV = _users(histories, pieces_IV, texts.layout.last)
        scores_UI = (users_UV.multiply(shared_V) @ candidates_IV.T).toarray() + candidates_IV @ own_V
        return best_items(scores_UI, excluded, k)

    return recommend


def _users(histories: Sequence[NDArray[Any]], pieces_IV: sp.csr_matrix, last: int) -> sp.csr_matrix:
    """The mean of a history's latest items, (U, V)."""
    latest = [history[-last:] for history in histories]
    rows = np.repeat(np.arange(len(latest)), [len(items) for items in latest])
    shares = np.concatenate([np.full(len(items), 1 / max(1, len(items))) for items in latest])
    weights_UI = sp.csr_matrix((shares, (rows, np.concatenate(latest))), shape=(len(latest), pieces_IV.shape[0]))
    means_UV: sp.csr_matrix = weights_UI @ pieces_IV
    return means_UV


def _tfidf(texts: Ragged, vocab_size: int) -> sp.csr_matrix:
    counts = sp.csr_matrix((np.ones(len(texts.tokens)), texts.tokens, texts.offsets), shape=(len(texts), vocab_size))
    counts.sum_duplicates()
    weighted: sp.csr_matrix = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    return weighted
