"""Several processes that train one model together, as torchrun and accelerate start them.

The first process leads: it alone takes locks, makes missing inputs, prints and writes; the others wait for its word
and train along. torch is found by name, inside functions: a finished run is recognised without it.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long processes wait for the first one's word: it may be making their inputs, or validating."""

LAUNCHER = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)
"""What a launcher tells a process about its siblings, besides TORCHELASTIC_*."""


@dataclass(frozen=True)
class _End:
    code: int


def count() -> int:
    """How many processes were started together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0; the first one is 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def environment_alone() -> dict[str, str]:
    """This environment without the launcher's variables, for a process that is to work alone."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHER and not name.startswith("TORCHELASTIC_")
    }


def meet() -> None:
    """Waits for all processes to be there, for as long as torch does: minutes, not `PATIENCE`."""
    if count() > 1:
        _patient()


def first_says(value: T) -> T:
    """The first process's value, in all of them; the others' is not looked at.

    Raises: SystemExit with the first process's code, in the others, if it has ended instead.
    """
    if count() == 1:
        return value
    said: list[Any] = [value]
    _distributed().broadcast_object_list(said, src=0, group=_patient())
    if isinstance(said[0], _End):
        raise SystemExit(said[0].code)
    heard: T = said[0]
    return heard


def all_say(value: T) -> list[T]:
    """The values of all processes, by rank, in all of them; so nobody gets past it before all are there."""
    said = [value] * count()
    if count() > 1:
        _distributed().all_gather_object(said, value, group=_patient())
    return said


def end(code: int) -> None:
    """The first process's last word: the others end with this code when they next listen."""
    if count() > 1:
        _distributed().broadcast_object_list([_End(code)], src=0, group=_patient())


def leave() -> None:
    """Lets go of the others."""
    if count() > 1:
        _patient.cache_clear()
        _distributed().destroy_process_group()


def total(values: T) -> T:
    """The elementwise sum of a tensor over all processes, in all of them; `values` stay as they are."""
    if count() == 1:
        return values
    tensor: Any = values
    summed: T = tensor.clone()
    _distributed().all_reduce(summed)
    return summed


@cache
def _patient() -> Any:
    """A group for the first one's word; gradients go through the default group, whose time runs out as usual."""
    distributed = _distributed()
    if not distributed.is_initialized():
        cuda = importlib.import_module("torch").cuda.is_available()
        distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def _distributed() -> Any:
    return importlib.import_module("torch.distributed")
