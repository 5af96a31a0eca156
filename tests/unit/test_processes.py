"""Several processes: who is who, what they tell each other, and how a batch is cut."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import fakes
from compress import processes, training
from compress.learner import Learner, Taught
from compress.models.bert4rec import Bert4Rec
from compress.recipe.losses import KL, Hidden, Loss, Softmax
from conftest import ROOT

TALK = """\
import json, os, sys, torch
from compress import processes
processes.meet()
rank = processes.rank()
values = torch.tensor([rank, 1.5])
said = [
    processes.first_says({"from": rank}),
    processes.all_say(rank * 10),
    processes.total(values).tolist(),
    values.tolist(),
]
print(json.dumps(said))
sys.stdout.flush()
if rank == 0:
    processes.end(3)
    processes.leave()
    sys.exit(0)
try:
    processes.first_says("never heard")
    print("went on")
finally:
    processes.leave()
"""


def launched(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    """As in one of several processes, before it speaks to another."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(count))


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # of somebody else: no launcher says this alone
    assert (processes.count(), processes.rank()) == (1, 0)
    values = torch.ones(2)
    assert processes.first_says("this") == "this"
    assert processes.all_say("this") == ["this"]
    assert processes.total(values) is values
    processes.end(3)


def test_a_launcher_says_how_many_and_which(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, 2, 4)
    assert (processes.count(), processes.rank()) == (4, 2)


def test_a_process_that_is_to_work_alone_knows_no_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, 0, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("HF_HOME", "/kept")
    environment = processes.environment_alone()
    assert not {"RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & environment.keys()
    assert environment["HF_HOME"] == "/kept"
    code = "from compress import processes; print(processes.count())"
    alone = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert alone.stdout == "1\n"


def test_they_hear_the_first_and_each_other_and_end_with_its_code(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    (tmp_path / "talk.py").write_text(TALK)
    environment = {**os.environ, **shared, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    talking = [
        subprocess.Popen(
            [sys.executable, tmp_path / "talk.py"],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    heard = [process.communicate(timeout=120)[0] for process in talking]
    assert [process.returncode for process in talking] == [0, 3, 3]
    for rank, lines in enumerate(heard):
        (line,) = lines.splitlines()
        assert json.loads(line) == [{"from": 0}, [0, 10, 20], [3.0, 4.5], [rank, 1.5]]


# --- a batch is cut ---


def shares(monkeypatch: pytest.MonkeyPatch, examples: int, batch_size: int, count: int) -> list[list[list[int]]]:
    """Batches by process."""
    found = []
    for rank in range(count):
        launched(monkeypatch, rank, count)
        found.append(list(training._Shares(range(examples), batch_size, drop_last=False)))
    return found


@pytest.mark.parametrize(
    ("examples", "batch_size", "count"), [(24, 8, 2), (23, 8, 2), (11, 4, 3), (9, 7, 2), (5, 9, 4)]
)
def test_the_shares_of_a_batch_are_the_batch(
    monkeypatch: pytest.MonkeyPatch, examples: int, batch_size: int, count: int
) -> None:
    by_process = shares(monkeypatch, examples, batch_size, count)
    assert len({len(batches) for batches in by_process}) == 1, "all take the same steps"
    for start, *parts in zip(range(0, examples, batch_size), *by_process, strict=True):
        whole = list(range(start, min(start + batch_size, examples)))
        assert sorted(chain.from_iterable(parts)) == whole
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_of_too_few_sequences_all_take_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [batches[-1] for batches in shares(monkeypatch, 10, 4, 3)] == [[8, 9]] * 3
    assert [batches[-1] for batches in shares(monkeypatch, 9, 4, 2)] == [[8], [8]]


HIDDEN = Hidden(kind="hidden", layers={0: 0, 2: 2})


@pytest.mark.parametrize(
    "terms",
    [
        [Softmax(kind="softmax", weight=2)],
        [KL(kind="kl", temperature=2), HIDDEN],
        [HIDDEN],
        [Softmax(kind="softmax"), KL(kind="kl"), HIDDEN],
    ],
    ids=lambda terms: "+".join(term.kind for term in terms),
)
@pytest.mark.parametrize("cut", [(3, 3), (5, 1), (1, 2, 3)])
def test_the_mean_of_the_processes_gradients_is_the_batchs(
    monkeypatch: pytest.MonkeyPatch, terms: list[Loss], cut: tuple[int, ...]
) -> None:
    """Masked sequences of many lengths: the parts have unequal numbers of labels and of positions."""
    family = Bert4Rec()
    people = fakes.interactions_of([[(user + step) % 24 for step in range(4 + user)] for user in range(6)], 24)
    teacher = fakes.tiny_model(items=24, seed=1)
    learner = Learner(family, fakes.tiny_model(items=24, attention="masked"), terms, 24, Taught([(family, teacher)]))
    examples = family.examples(learner.model, people, 0)
    sequences = [examples[index] for index in range(6)]

    def gradients(*parts: list[Any]) -> list[torch.Tensor]:
        learner.zero_grad()
        for part in parts:
            (learner(**examples.collate(part))["loss"] / len(parts)).backward()
        return [parameter.grad.clone() for parameter in learner.parameters() if parameter.grad is not None]

    whole = gradients(sequences)
    ends = [sum(cut[: part + 1]) for part in range(len(cut))]
    parts = [sequences[end - size : end] for end, size in zip(ends, cut, strict=True)]
    counts = torch.stack([_counts(examples.collate(part), 24) for part in parts]).sum(dim=0)
    launched(monkeypatch, 0, len(cut))
    monkeypatch.setattr(processes, "total", lambda _: counts)  # what gloo would add up
    for found, expected in zip(gradients(*parts), whole, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def _counts(batch: dict[str, torch.Tensor], pad_id: int) -> torch.Tensor:
    """Labels, and positions that are no padding."""
    return torch.stack([(batch["labels"] >= 0).sum(), (batch["input_ids"] != pad_id).sum()])
