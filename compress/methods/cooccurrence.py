"""Item vectors from what is used with what: where the training of an item table best begins.

I: items, H: width.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh

from compress.data.interactions import TRAIN, Interactions

WINDOW = 5
"""Steps within which two items of one user count as occurring together."""


def item_vectors(interactions: Interactions, width: int) -> NDArray[np.float32]:
    """Vectors whose inner products approximate positive pointwise mutual information.

    Args:
        interactions: the training parts are counted.
        width: columns wanted; there are fewer if the information has fewer positive eigenvalues.
    Returns: (I, H), root mean square 1; a row of zeros for an item that tells nothing about another.
    Source: Levy & Goldberg 2014, section 3 (Neural word embedding as implicit matrix factorization).

    """
    counts_II = follows(interactions, WINDOW)
    ppmi_II = _ppmi((counts_II + counts_II.T).tocoo())
    rank = min(width, interactions.catalogue_size - 1)
    if not ppmi_II.nnz:
        return np.zeros((interactions.catalogue_size, rank), dtype=np.float32)
    # Not singular vectors: input and output table are one, so that only positive eigenvalues are products of vectors.
    strength_H, direction_IH = eigsh(ppmi_II, k=rank, which="LA", rng=np.random.default_rng(0))
    positive = strength_H > 1e-6 * strength_H.max()
    vectors_IH = direction_IH[:, positive] * np.sqrt(strength_H[positive])
    vectors_IH /= np.sqrt(np.square(vectors_IH).mean())
    vectors_IH[np.diff(ppmi_II.indptr) == 0] = 0  # but for rounding errors they are
    found: NDArray[np.float32] = vectors_IH.astype(np.float32)
    return found


def follows(interactions: Interactions, window: int) -> sp.csr_matrix:
    """How often an item (column) follows another (row) within `window` steps, in the training parts: (I, I)."""
    size = interactions.catalogue_size
    users = np.repeat(np.arange(interactions.user_count), np.diff(interactions.offsets))[interactions.parts == TRAIN]
    items = interactions.items[interactions.parts == TRAIN]
    counts_II = sp.csr_matrix((size, size))
    for step in range(1, window + 1):
        together = users[step:] == users[:-step]
        pairs = items[:-step][together], items[step:][together]
        counts_II = counts_II + sp.csr_matrix((np.ones(len(pairs[0])), pairs), shape=(size, size))
    return counts_II


def _ppmi(counts_II: sp.coo_matrix) -> sp.csr_matrix:
    totals_I = np.asarray(counts_II.sum(axis=1)).ravel()
    expected = totals_I[counts_II.row] * totals_I[counts_II.col] / totals_I.sum()
    information = np.maximum(0, np.log(counts_II.data / expected))
    ppmi_II = sp.csr_matrix((information, (counts_II.row, counts_II.col)), shape=counts_II.shape)
    ppmi_II.eliminate_zeros()
    return ppmi_II
