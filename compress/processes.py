"""Several processes on one stage, as `torchrun` and `accelerate launch` start them.

The first process alone locks, writes and speaks; the others wait for it, train beside it and leave nothing. Reads the
environment and loads no torch until something must be agreed on.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells each process in the environment; `TORCHELASTIC_*` besides."""

PATIENCE_HOURS = 24
"""How long the others wait: the first may have to make a stage's inputs before it can begin."""


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process writes and speaks; true where there is only one."""
    return int(os.environ.get("RANK", 0)) == 0


def alone() -> dict[str, str]:
    """The environment for a child that is a process of its own."""
    return {
        key: value for key, value in os.environ.items() if key not in LAUNCHED and not key.startswith("TORCHELASTIC_")
    }


def first_says(value: T) -> T:
    """The first process's value, in every process: a point that all of them must reach."""
    if count() == 1:
        return value
    import datetime

    import torch
    from torch import distributed

    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=datetime.timedelta(hours=PATIENCE_HOURS))
    said = [value]
    distributed.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    return said[0]
