"""PyTorch in eager mode."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from compress.data.histories import MASKED
from compress.models.family import Family, ServedGraph
from deploy.runtimes import Ids, Scores


class TorchEager:
    """The Hugging Face model with all logits: how people run a recommender before they do anything about it."""

    name = "torch-eager"

    def __init__(self, family: Family, model: PreTrainedModel, top_k: int, threads: int) -> None:
        self.family = family
        self.model = model.eval()
        self.top_k = top_k
        self.threads = threads

    @torch.inference_mode()
    def __call__(self, history_BL: Ids, exclude_BE: Ids) -> tuple[Ids, Scores]:
        _use_threads(self.threads)
        scores_BI = self.family.score(self.model, torch.from_numpy(history_BL))
        pad = torch.full((len(scores_BI), 1), MASKED)
        scores = torch.cat([scores_BI, pad], dim=1).scatter_(1, torch.from_numpy(exclude_BE), MASKED)
        best = scores.topk(self.top_k)
        return best.indices.numpy(), best.values.numpy()


class TorchServed:
    """A served graph before it is exported."""

    name = "torch-eager"

    def __init__(self, served: ServedGraph, threads: int = 1) -> None:
        self.served = served.eval()
        self.threads = threads

    @torch.inference_mode()
    def __call__(self, history_BL: Ids, exclude_BE: Ids) -> tuple[Ids, Scores]:
        _use_threads(self.threads)
        items_BK, scores_BK = self.served(torch.from_numpy(history_BL), torch.from_numpy(exclude_BE))
        return items_BK.numpy(), scores_BK.numpy()


def _use_threads(threads: int) -> None:
    """The number is the process's, not a model's: each call sets what it wants."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
