"""PyTorch in eager mode."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from compress.models.family import Family, ServedGraph
from deploy.runtimes import Arrays, Outputs


class TorchEager:
    """The Hugging Face model the plain way: how people run a recommender before they do anything about it."""

    name = "torch-eager"

    def __init__(self, family: Family, model: PreTrainedModel, top_k: int, threads: int) -> None:
        self.family = family
        self.model = model.eval()
        self.top_k = top_k
        self.threads = threads

    @torch.inference_mode()
    def __call__(self, inputs: Arrays) -> Outputs:
        _use_threads(self.threads)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return tuple(output.numpy() for output in self.family.plain(self.model, self.top_k, tensors))


class TorchServed:
    """A served graph before it is exported."""

    name = "torch-eager"

    def __init__(self, served: ServedGraph, threads: int = 1) -> None:
        self.served = served.eval()
        self.threads = threads

    @torch.inference_mode()
    def __call__(self, inputs: Arrays) -> Outputs:
        _use_threads(self.threads)
        outputs = self.served(*(torch.from_numpy(inputs[name]) for name in self.served.axes))
        return tuple(output.numpy() for output in outputs)


def _use_threads(threads: int) -> None:
    """The number is the process's, not a model's: each call sets what it wants."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
