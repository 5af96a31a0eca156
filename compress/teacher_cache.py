"""What teachers say of each training example, computed once: for all epochs, and for all students of a recipe.

A record is the teacher's best items at each labelled position, in half precision, and how much it leaves for the rest,
which all others share evenly; where a loss asks for them also what its layers say at every position. Records lie in
shards that are written whole or not at all, memory-mapped when read.

N: labelled positions, K: best items of one, I: items that are scored, P: positions that are no padding, H: width.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from compress.artifact import digest, sealed, unsealed, write_json
from compress.errors import RecipeError
from compress.models.family import Batch, Best, Examples, Supervision

SHARD = 2_048
"""Examples of a shard."""

ITEMS, SCORES, REST, WIDTH = "taught_items", "taught_scores", "taught_rest", "taught_width"
"""What a batch says of its positions: (N, K), (N, K), (N) and (N)."""

LAYER = "taught_layer_{}"
"""What a batch says of a teacher's layer: (P, H)."""

OPEN_SHARDS = 64


class Record(NamedTuple):
    """Of an example's labelled positions, in their order."""

    items_NK: NDArray[np.int32]
    scores_NK: NDArray[np.float16]
    rest_N: NDArray[np.float32]
    """The score that each item has which is not among the best."""
    layers: Sequence[NDArray[np.float16]] = ()
    """Hidden states of the layers that the cache keeps, (P, H) each."""


Ask = Callable[[Batch], Supervision]


class TeacherCache(Examples):
    """Examples with what their teachers say of them.

    Epochs take turns with a fixed number of variants, so that what is drawn afresh for each (crops, orders, negatives)
    is drawn from a fixed set.
    """

    def __init__(self, examples: Examples, folder: Path, variants: int, layers: Sequence[int] = ()) -> None:
        """Args: layers: of the teacher, 0 for its embeddings, whose hidden states are kept too."""
        self.examples = examples
        self.folder = folder
        self.variants = variants
        self.layers = tuple(layers)
        self.variant = 0
        examples.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.variant = epoch % self.variants
        self.examples.set_epoch(self.variant)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Any, Record]:
        place, row = divmod(index, SHARD)
        return self.examples[index], _open(self._shard(self.variant, place)).record(row)

    def collate(self, examples: Sequence[tuple[Any, Record]]) -> dict[str, Tensor]:
        batch = self.examples.collate([example for example, _ in examples])
        records = [record for _, record in examples]
        items, scores, rest = (np.concatenate(parts) for parts in zip(*(record[:3] for record in records), strict=True))
        width = _open(self._shard(self.variant, 0)).width
        return {
            **batch,
            ITEMS: torch.from_numpy(items.astype(np.int64)),
            SCORES: torch.from_numpy(scores.astype(np.float32)),
            REST: torch.from_numpy(rest),
            WIDTH: torch.full((len(rest),), width),
            **{
                LAYER.format(layer): torch.from_numpy(np.concatenate([record.layers[place] for record in records]))
                for place, layer in enumerate(self.layers)
            },
        }

    def fill(self, ask: Ask, top: int, batch_size: int) -> int:
        """Asks the teachers about all that no earlier run has; returns of how many examples."""
        missing = [
            (variant, place)
            for variant in range(self.variants)
            for place in range(math.ceil(len(self) / SHARD))
            if not whole(self._shard(variant, place))
        ]
        asked = 0
        total = sum(len(self._rows(place)) for _, place in missing)
        with tqdm(total=total, desc="teacher", unit="example", disable=None) as bar:
            for variant, place in missing:
                self.examples.set_epoch(variant)
                records, width = [], 0
                rows = self._rows(place)
                for start in range(0, len(rows), batch_size):
                    some = [self.examples[index] for index in rows[start : start + batch_size]]
                    found, width = _records(self.examples, some, ask, top, self.layers)
                    records += found
                    bar.update(len(some))
                _write(self._shard(variant, place), records, width)
                asked += len(rows)
        self.set_epoch(self.epoch)
        return asked

    def _rows(self, place: int) -> range:
        return range(place * SHARD, min(len(self), (place + 1) * SHARD))

    def _shard(self, variant: int, place: int) -> Path:
        return self.folder / f"variant-{variant}-shard-{place}"


def key(ingredients: Mapping[str, Any]) -> str:
    """The name of a cache of what such ingredients make."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:32]


def forget_earlier(home: Path, ingredients: Mapping[str, Any]) -> None:
    """Says what the cache of these ingredients is made of, and deletes those of earlier teachers and code.

    Args: home: of all caches; ingredients: `inputs` by name, `code`, and whatever else makes answers.
    """
    home.mkdir(exist_ok=True)
    write_json(home / f"{key(ingredients)}.json", dict(ingredients))  # before the folder: without it, it is nobody's
    for folder in filter(Path.is_dir, home.iterdir()):
        told = folder.with_name(f"{folder.name}.json")
        if not (told.is_file() and _is_current(json.loads(told.read_text(encoding="utf-8")), ingredients)):
            shutil.rmtree(folder, ignore_errors=True)
            told.unlink(missing_ok=True)


def _is_current(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a cache is of the code that runs now, and of inputs as they are now, as far as we have them too."""
    same_inputs = all(ours["inputs"].get(name, made) == made for name, made in theirs["inputs"].items())
    return bool(same_inputs and json.loads(json.dumps(ours["code"])) == theirs["code"])


@torch.no_grad()
def _records(
    examples: Examples, some: Sequence[Any], ask: Ask, top: int, layers: Sequence[int]
) -> tuple[list[Record], int]:
    """Of each example alone which positions are its own, and of all together what the teachers say of them.

    Raises: RecipeError if layers are asked for and examples have no row of their own.
    """
    taught = ask(examples.collate(some))
    scores_NI = taught.scores().float().cpu()
    width = scores_NI.shape[1]
    best = scores_NI.topk(min(top, width), dim=1)
    all_N = scores_NI.logsumexp(dim=1)
    left_N = (1 - (best.values - all_N[:, None]).exp().sum(dim=1)).clamp(min=1e-12)
    others = width - best.values.shape[1]
    rest_N = all_N + left_N.log() - math.log(max(1, others))
    counts = [examples.positions(example) for example in some]
    arrays = (best.indices.numpy().astype(np.int32), best.values.numpy().astype(np.float16), rest_N.numpy())
    borders = np.cumsum(counts)[:-1]
    if layers and len(taught.real_BL) != len(some):
        raise RecipeError(
            "cache: texts of an example share no row, and hidden states are kept by rows; leave cache out"
        )
    states = [
        tuple(taught.hidden_states_BLH[layer][row, taught.real_BL[row]].half().cpu().numpy() for layer in layers)
        for row in range(len(some))
    ]
    parts = zip(*(np.split(array, borders) for array in arrays), states, strict=True)
    return [Record(*part) for part in parts], width


ARRAYS = ("items", "scores", "rest", "offsets")
STATES = ("states", "state_offsets")
"""If layers are kept: (layers, P, H), and where each example's positions begin."""
DESCRIPTION = "shard.json"


def _write(folder: Path, records: Sequence[Record], width: int) -> None:
    """All at once, or nothing: two students may fill the same cache."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    together = [np.concatenate(parts) for parts in zip(*(record[:3] for record in records), strict=True)]
    arrays = dict(zip(ARRAYS, (*together, _offsets(record.rest_N for record in records)), strict=True))
    if records[0].layers:
        states = np.stack([np.concatenate(parts) for parts in zip(*(record.layers for record in records), strict=True)])
        arrays |= dict(zip(STATES, (states, _offsets(record.layers[0] for record in records)), strict=True))
    for name, array in arrays.items():
        np.save(aside / f"{name}.npy", array, allow_pickle=False)
    files = {f"{name}.npy": digest(aside / f"{name}.npy") for name in arrays}
    write_json(aside / DESCRIPTION, sealed({"width": width, "sha256": files}))
    if not whole(folder):
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        with contextlib.suppress(OSError):  # another process was faster
            aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _offsets(parts: Iterable[Sized]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, parts)])


def whole(folder: Path) -> bool:
    """Whether a shard was written to its end and is as it was then."""
    try:
        described = unsealed(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")))
        return all(digest(folder / name) == expected for name, expected in described["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Shard:
    """A shard that is whole, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in (*ARRAYS, *STATES)
            if f"{name}.npy" in described["sha256"]
        }
        self.items, self.scores, self.rest, self.offsets = (arrays[name] for name in ARRAYS)
        self.states, self.state_offsets = (arrays.get(name) for name in STATES)
        self.width: int = described["width"]

    def record(self, row: int) -> Record:
        own = slice(self.offsets[row], self.offsets[row + 1])
        layers: Sequence[NDArray[np.float16]] = ()
        if self.states is not None and self.state_offsets is not None:
            layers = tuple(self.states[:, self.state_offsets[row] : self.state_offsets[row + 1]])
        return Record(self.items[own], self.scores[own], self.rest[own], layers)


@lru_cache(maxsize=OPEN_SHARDS)
def _open(folder: Path) -> _Shard:
    return _Shard(folder)


def remembered(batch: Batch, student: Supervision) -> Supervision:
    """What teachers have said of a batch that has their records."""
    return Supervision(
        states_NH=batch[SCORES],
        labels_N=student.labels_N,
        hidden_states_BLH=_layers(batch, student.real_BL),
        real_BL=student.real_BL,
        scorer=_Remembered(batch),
        best=Best(batch[ITEMS], batch[SCORES], batch[REST]),
        wanted_NK=student.wanted_NK,
    )


def _layers(batch: Batch, real_BL: Tensor) -> dict[int, Tensor]:
    """By layer, zeros where padding is."""
    kept = {name: states_PH.float() for name, states_PH in batch.items() if name.startswith(LAYER.format(""))}
    return {
        int(name.removeprefix(LAYER.format(""))): states_PH.new_zeros(
            *real_BL.shape, states_PH.shape[1]
        ).masked_scatter(real_BL[:, :, None], states_PH)
        for name, states_PH in kept.items()
    }


class _Remembered:
    """A `Scorer` of the best items, the others at what is left for them."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __call__(self, states_NH: Tensor, items_K: Tensor | None) -> Tensor:
        width = int(self.batch[WIDTH][0])
        scores_NI = self.batch[REST][:, None].repeat(1, width).scatter_(1, self.batch[ITEMS], states_NH)
        return scores_NI if items_K is None else scores_NI[:, items_K]

    def pairs(self, states_NH: Tensor, items_N: Tensor) -> Tensor:
        return self(states_NH, None).gather(1, items_N[:, None]).squeeze(1)
