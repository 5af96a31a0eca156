"""The contract of a family: everything a stage may ask of a recommender, whatever its architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from compress.data.histories import Asked, Recommend
from compress.data.interactions import IntArray, Interactions
from compress.data.texts import Texts
from compress.methods.fake_quantization import FakeQuantized, FakeQuantizedByCall, fake_quantized_weight
from compress.methods.linear_rounding import LinearRounding, Maps
from compress.methods.rounding import Rounding, Stored
from compress.models.observed import Projected

Batch = Mapping[str, Tensor]

Score = Callable[[Asked], Tensor]
"""Scores of the catalogue, (B, I); -inf for what is excluded."""


class Examples(Dataset[Any]):
    """Training examples: item i of epoch e is a function of (seed, e, i) alone, so a resumed run sees the same ones."""

    epoch = 0

    @property
    def shaped_by(self) -> dict[str, Any]:
        """What of the model they depend on, besides data, texts and seed: with the same they are the same."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        raise NotImplementedError

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """A batch, padded to its longest example."""
        raise NotImplementedError

    def positions(self, example: Any) -> int:
        """How many of a batch's labelled positions are this example's; they stand together, in the examples' order."""
        return 1


class Drawn(Examples):
    """So many of the examples, others in each epoch until all have been there."""

    def __init__(self, examples: Examples, count: int, seed: int) -> None:
        self.examples = examples
        self.count = count
        self.seed = seed

    @property
    def shaped_by(self) -> dict[str, Any]:
        return {"drawn": [self.seed, self.count], **self.examples.shaped_by}

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.examples.set_epoch(epoch)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        lap, place = divmod(self.epoch * self.count + index, len(self.examples))
        return self.examples[int(_order(self.seed, lap, len(self.examples))[place])]

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        return self.examples.collate(examples)

    def positions(self, example: Any) -> int:
        return self.examples.positions(example)


@lru_cache(maxsize=2)  # an epoch may end one lap and begin the next
def _order(seed: int, lap: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, lap, count)).permutation(count)


class Scorer(Protocol):
    """From states to scores of items."""

    def __call__(self, states_NH: Tensor, items_K: Tensor | None) -> Tensor:
        """Every state with each item, (N, K); with the whole catalogue if None, (N, I)."""

    def pairs(self, states_NH: Tensor, items_N: Tensor) -> Tensor:
        """Every state with its own item: (N)."""


class Best(NamedTuple):
    """A teacher's best items at each position, their scores, and the score that each other item has."""

    items_NK: Tensor
    scores_NK: Tensor
    rest_N: Tensor


@dataclass(frozen=True)
class Supervision:
    """What a model says at the positions of a batch that have a label.

    N: labelled positions, H: width, I: items of the catalogue, B: sequences, L: positions.
    """

    states_NH: Tensor
    labels_N: Tensor
    hidden_states_BLH: Sequence[Tensor] | Mapping[int, Tensor]
    """Embedding output, then the output of every layer; empty unless asked for, and of a cache those that it keeps."""
    real_BL: Tensor
    """True where a position is no padding."""
    scorer: Scorer
    projected: tuple[Projected, ...] = ()
    """Queries, keys and values of every layer; empty unless asked for."""
    heads: int = 1
    causal: bool = False
    """Whether a position looks at none that is later."""
    best: Best | None = None
    """All that is remembered of a teacher that is not asked again."""
    wanted_NK: Tensor | None = None
    """What the labels say of each score, 1 or 0; None: the item of `labels_N` alone is wanted."""

    def scores(self, items_K: Tensor | None = None) -> Tensor:
        """Scores of the given items, (N, K), or of the whole catalogue, (N, I)."""
        return self.scorer(self.states_NH, items_K)

    def wanted(self) -> Tensor:
        """What the labels say of each score of a batch's own items, 1 or 0: (N, K)."""
        if self.wanted_NK is not None:
            return self.wanted_NK
        return nn.functional.one_hot(self.labels_N, self.scores().shape[1])

    def label_scores(self) -> Tensor:
        """The score of each position's own label: (N)."""
        return self.scorer.pairs(self.states_NH, self.labels_N)


class ServedGraph(nn.Module):
    """The recommender as it is exported: ids in, scores out, all in one graph."""

    axes: ClassVar[Mapping[str, tuple[str | int, ...]]]
    """The inputs of `forward` in their order, and the names of their axes, all of them dynamic but those of a size."""
    floats: ClassVar[frozenset[str]] = frozenset()
    """Which inputs are float32; the others are int64."""
    outputs: ClassVar[tuple[str, ...]]
    uniform = True
    """Whether all layers but the last compute every position of every row."""

    def __init__(self, catalogue_size: int, pad_id: int, max_length: int, top_k: int) -> None:
        super().__init__()
        self.catalogue_size = catalogue_size
        self.pad_id = pad_id
        self.max_length = max_length
        self.top_k = min(top_k, catalogue_size)

    def example(self, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        """Inputs of zeros. Args: sizes: of the axes that have names."""
        return tuple(
            torch.zeros(
                [size if isinstance(size, int) else sizes[size] for size in axes],
                dtype=torch.float32 if name in self.floats else torch.int64,
            )
            for name, axes in self.axes.items()
        )

    @property
    def axis_names(self) -> list[str]:
        """Of the dynamic ones, each once."""
        return list(dict.fromkeys(axis for axes in self.axes.values() for axis in axes if isinstance(axis, str)))

    @property
    def linear_weights(self) -> list[str]:
        """Names of the floating-point matrices that a target may multiply as int8."""
        return list(self.linear_maps)

    @property
    def linear_maps(self) -> dict[str, Weight]:
        """Every linear map, by the name that its matrix has in the exported graph."""
        found = {name: module for name, module in self.named_modules() if isinstance(module, Weight)}
        return {f"{name}.weight.values": module for name, module in found.items()}

    def store_weights(self, rounding: Rounding) -> None:
        """Rounds every `Weight` that is to be int8 in the file and floating point in the product."""
        if rounding.linear == "weights":
            for module in self.modules():
                if isinstance(module, Weight):
                    module.weight = Stored(module.weight(), "int8-per-column")

    def fake_quantize(self, maps: Maps) -> None:
        """Rounds what these maps multiply as integers do, in place: it then answers as an int8 graph, and is none."""
        for name, how in maps.items():
            if how is not None:
                self.linear_maps[name].fake_quantize(how)

    def fake_quantize_by_call(self) -> None:
        """The same of all maps, with scales that are each call's own: what `linear: dynamic` answers, nearly."""
        for linear in self.linear_maps.values():
            linear.weight = Stored(linear.weight(), "int8-per-column")
            linear.input = FakeQuantizedByCall()


class Weight(nn.Module):
    """A linear map stored as (in, out): one MatMul and one Add in the graph, its weight under its own name.

    Args:
        made_of: the model's layers whose outputs, side by side, are this map's; none if it is made otherwise.

    """

    def __init__(self, weight_IO: Tensor, bias_O: Tensor, made_of: Sequence[nn.Linear] = ()) -> None:
        super().__init__()
        self.made_of = tuple(made_of)  # in a tuple: no modules of this one
        self.weight = Stored(weight_IO)
        self.bias = nn.Parameter(bias_O.detach().clone(), requires_grad=False)
        self.input: nn.Module = nn.Identity()
        """What it reads goes through here: calibration looks at it, fake quantization rounds it."""

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.input(x) @ self.weight() + self.bias
        return product

    def fake_quantize(self, how: LinearRounding) -> None:
        """Puts its input and weight on their grids, and takes off its bias what that leaves on average."""
        weight_IO = self.weight()
        self.bias = nn.Parameter(self.bias + torch.from_numpy(how.bias_shift(weight_IO.numpy())), requires_grad=False)
        self.weight = Stored(fake_quantized_weight(weight_IO, how))
        self.input = FakeQuantized(how)


class Family(Protocol):
    """A kind of recommender."""

    def build(self, section: Any, catalogue_size: int, *sources: Any, **named: Any) -> PreTrainedModel:
        """A fresh model, weights drawn from torch's global generator or a pretrained checkpoint.

        Args:
            section: the family's own, of `recipe.model`.
            sources: what the stages left that it `reads`, in that order: texts, features, a model.

        """

    def seed_items(self, model: PreTrainedModel, interactions: Interactions) -> None:
        """Starts a fresh model's item embeddings from what is used with what in training, in place."""

    def load(self, folder: Path) -> PreTrainedModel:
        """The model saved in a Hugging Face folder, in eval mode."""

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Writes the Hugging Face folder that `load` reads."""

    def adopt(self, section: Any, folder: Path, item_ids: Sequence[str], texts: Texts | None = None) -> PreTrainedModel:
        """Somebody else's Hugging Face folder in this family's layout, in eval mode.

        Args:
            section: the family's own, of `recipe.adoption`.
            item_ids: raw ids of the catalogue; the place is the dense id.
            texts: of the catalogue, if the section names them.
        Raises: DataError if it is no such model or does not know an item.

        """

    def other_readings(self, model: PreTrainedModel) -> Mapping[str, PreTrainedModel]:
        """The same weights as if declared otherwise, by that declaration in words."""

    def baselines(self, model: PreTrainedModel, interactions: Interactions, k: int) -> dict[str, Recommend]:
        """What its reports hold it against besides popularity and the Markov chain, by name; k items each."""

    def examples(self, model: PreTrainedModel, interactions: Interactions, seed: int) -> Examples:
        """Training examples from the training part of every user's history."""

    def supervise(self, model: PreTrainedModel, batch: Batch, *, layers: bool = False) -> Supervision:
        """A forward pass at the labelled positions of a batch. Args: layers: whether losses look at those."""

    def inputs(self, model: PreTrainedModel, asked: Asked) -> dict[str, Tensor]:
        """What the served graph reads, by name and in the order of its `forward`."""

    def plain(self, model: PreTrainedModel, top_k: int, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The served graph's outputs from its inputs the plain way, as people run a model before they rewrite it."""

    def scorer(self, model: PreTrainedModel) -> Score:
        """The model as it is now; what does not depend on a user is computed once."""

    def seed_student(
        self, student: PreTrainedModel, teacher: PreTrainedModel, layers: Sequence[int] | str, width: str
    ) -> None:
        """Starts a student from its teacher's weights, in place."""

    def trim(
        self, model: PreTrainedModel, interactions: Interactions, scratch: Path, *, vocabulary: bool, positions: bool
    ) -> dict[str, Any]:
        """Cuts what no request reaches, in place: scores of every text that is covered stay bit for bit.

        Args:
            scratch: where files may lie until the model is saved.
            vocabulary: word embeddings of tokens that neither the catalogue nor the users' texts have.
            positions: position embeddings behind the longest request.
        Returns: facts about what went.

        """

    def with_items(
        self, model: PreTrainedModel, weights_NI: sp.csr_matrix, removed: IntArray, rounding: Rounding
    ) -> PreTrainedModel:
        """A copy that knows N more items, numbered after the others, and never recommends the removed ones.

        Args:
            weights_NI: how much of each known item a new one is made of; rows sum to 1.
            removed: known items whose score becomes MASKED; they are still read in histories, and lend their rows.
            rounding: new rows are rounded as the known ones are.

        """

    def serve(self, model: PreTrainedModel, top_k: int, rounding: Rounding) -> ServedGraph:
        """The model rewritten for serving: the same numbers with less work."""
