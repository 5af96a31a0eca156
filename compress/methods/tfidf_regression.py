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

from compress.data.histories import Asked, Recommend, best_items
from compress.data.interactions import IntArray
from compress.data.texts import Ragged, Texts

UNCUT = 2**20
"""Tokens of a user's text: no model's limit is this one's."""


def tfidf_regression(
    texts: Texts, asked: Asked, items: Sequence[IntArray], wanted: Sequence[NDArray[Any]], k: int = 10
) -> Recommend:
    """Scores an item by its own tokens and by those it has in common with the user's text.

    Features of a pair are the item's tf-idf and its product with the user's, token by token; the strength of the
    regularisation is chosen by cross-validation over the examples.

    Args:
        asked: users of the examples.
        items: of each example.
        wanted: which of them were, 1 or 0.

    """
    vocab_size = texts.layout.vocab_size
    candidates_IV = TfidfTransformer(sublinear_tf=True).fit_transform(_counts(texts.items, vocab_size))
    counts_UV = _counts(Ragged.of(texts.users(asked, UNCUT)), vocab_size)
    weigh = TfidfTransformer(sublinear_tf=True).fit(counts_UV)
    rows_P = np.repeat(np.arange(len(asked)), [len(some) for some in items])
    items_PV = candidates_IV[np.concatenate(items)]
    wanted_P = np.concatenate(wanted)
    users_UV = weigh.transform(counts_UV)
    features = sp.hstack([items_PV, items_PV.multiply(users_UV[rows_P])]).tocsr()
    model = LogisticRegressionCV(
        Cs=[0.1, 1.0, 10.0], cv=3, scoring="neg_log_loss", l1_ratios=(0,), use_legacy_attributes=False, max_iter=300
    )
    weights = model.fit(features, wanted_P).coef_.ravel()
    own_V, shared_V = np.split(weights, 2)

    def recommend(asked: Asked) -> NDArray[np.int64]:
        users_UV = weigh.transform(_counts(Ragged.of(texts.users(asked, UNCUT)), vocab_size))
        scores_UI = (users_UV.multiply(shared_V) @ candidates_IV.T).toarray() + candidates_IV @ own_V
        return best_items(scores_UI, asked.excluded, k)

    return recommend


def _counts(texts: Ragged, vocab_size: int) -> sp.csr_matrix:
    """How often each text has each token, (texts, V)."""
    counts = sp.csr_matrix((np.ones(len(texts.tokens)), texts.tokens, texts.offsets), shape=(len(texts), vocab_size))
    counts.sum_duplicates()
    return counts
