"""Which known items a new one resembles, by their texts.

N: new items, I: known items, K: neighbours, F: features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_union

SHARPNESS = 6
"""Power of the cosine that a neighbour is weighted with. One that is nearly the same item counts for more than several
that share a word; with 6 it hardly matters how many of those are taken along (Online Retail II, validation)."""


class TextSimilarity:
    """Cosine of TF-IDF over words and pairs of words, and over character n-grams: `mugs` is near `mug`."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Counts how frequent each word is among known items.

        Args:
            texts: of the known items, (I); an empty one is like nothing.
        Raises: ValueError if no text has a word.

        """
        self.texts = texts
        self.features = make_union(
            TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True),
        )
        self.known_IF = self.features.fit_transform(texts).tocsr()

    def weights(
        self, texts: Sequence[str], nearest: int, hidden: NDArray[np.integer[Any]] | None = None
    ) -> sp.csr_matrix:
        """How much of each known item a new one is made of: (N, I), rows sum to 1.

        A text that shares nothing with any known one has a row of zeros.

        Args:
            texts: of the new items, (N).
            nearest: known items that a new one is made of, at most.
            hidden: known items that nothing is made of.

        """
        count = self.known_IF.shape[0]
        seen = np.arange(count) if hidden is None else np.setdiff1d(np.arange(count), hidden)
        finder = NearestNeighbors(n_neighbors=min(nearest, len(seen)), metric="cosine").fit(self.known_IF[seen])
        distances_NK, found_NK = finder.kneighbors(self.features.transform(texts))
        likeness_NK = np.maximum(1 - distances_NK, 0) ** SHARPNESS
        weights_NK = likeness_NK / np.maximum(likeness_NK.sum(axis=1, keepdims=True), 1e-300)
        rows = np.repeat(np.arange(len(texts)), weights_NK.shape[1])
        return sp.csr_matrix((weights_NK.ravel(), (rows, seen[found_NK.ravel()])), (len(texts), count))
