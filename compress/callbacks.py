"""What happens beside the steps of a training: which epoch it is, progress, memory, checkpoints that survive a kill."""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from compress import processes
from compress.errors import RecPressError
from compress.models.family import Examples


class Epochs(TrainerCallback):
    """Tells the examples which epoch it is: accelerate does not in the rest of an epoch that a run resumes in."""

    def __init__(self, examples: Examples, steps_per_epoch: int) -> None:
        self.examples = examples
        self.steps_per_epoch = steps_per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.examples.set_epoch(state.global_step // self.steps_per_epoch)


class Memory(TrainerCallback):
    """Gives the system back what the allocator keeps for later.

    Batches of many shapes leave holes that no later one fits: 3 MB a step on Online Retail II, 10 MB with a million
    items. Closing them every few seconds costs nothing that can be measured; mapping each large block costs half.
    """

    SECONDS = 5.0

    def __init__(self) -> None:
        self.trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other systems have none
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trim is not None and time.monotonic() - self.last >= self.SECONDS:
            self.trim(0)
            self.last = time.monotonic()


class Schedules(TrainerCallback):
    """Tells a learner how much of training is over; a resumed one goes on where it was."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.learner.progress = state.global_step / max(1, state.max_steps)


class Finite(TrainerCallback):
    """Ends a training whose loss is no number any more: the weights are none either."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **kwargs: Any) -> None:
        refuse_unless_finite(float(logs.get("loss", 0.0)), state.global_step)


def refuse_unless_finite(loss: float, step: int) -> None:
    """Raises: RecPressError, one line, if the loss up to a step is infinite or no number."""
    if not math.isfinite(loss):
        raise RecPressError(f"training: the loss is {loss} by step {step}; lower learning_rate or max_grad_norm")


class Clock:
    """Seconds that a training took to where it is, those before the checkpoint that it resumed from included."""

    def __init__(self, checkpoint: str | None) -> None:
        self._before = json.loads((Path(checkpoint) / WHOLE).read_text())["seconds"] if checkpoint else 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return float(self._before + time.monotonic() - self._started)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began


class Progress(TrainerCallback):
    """One bar for the whole training, with the latest loss."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **kwargs: Any) -> None:
        shown = {"epoch": f"{state.epoch:.1f}"}
        shown |= {name: f"{float(logs[name]):.4f}" for name in ("loss", "eval_ndcg@10") if name in logs}
        self.bar.set_postfix(shown, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


WHOLE = "whole.json"

ASKED_EVERY = 8
"""Steps after which several processes agree whether a checkpoint is due; asking takes up to a millisecond."""


class WholeCheckpoints(TrainerCallback):
    """Checkpoints by the clock, and marks each one that was written to its end."""

    def __init__(self, seconds: float, steps_per_epoch: int, clock: Clock) -> None:
        self.seconds = seconds
        self.steps_per_epoch = steps_per_epoch
        self.clock = clock
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy == "no" or state.global_step % self.steps_per_epoch:
            self._save_if_due(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy != "no":  # after validation, whose result belongs to the checkpoint
            self._save_if_due(args, state, control)

    def _save_if_due(self, args: Any, state: Any, control: Any) -> None:
        every = 1 if processes.count() == 1 else ASKED_EVERY
        if args.save_strategy == "no" and state.global_step < state.max_steps and state.global_step % every == 0:
            control.should_save |= processes.first_says(time.monotonic() - self.last >= self.seconds)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        processes.all_say(None)  # each writes the state of its random generators
        self.last = time.monotonic()
        if processes.rank():
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        whole = {"step": state.global_step, "sizes": sizes, "seconds": self.clock.seconds}
        (folder / WHOLE).write_text(json.dumps(whole))


def last_whole(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; others, half-written or half taken away, are deleted.

    None, and nothing is left, where the best epoch so far is not there any more: the Trainer would take the last one's
    weights for it.
    """
    newest: tuple[int, Path] | None = None
    for folder in checkpoints.glob("checkpoint-*"):
        try:
            whole = json.loads((folder / WHOLE).read_text())
            step = int(whole["step"])
            # The Trainer takes an old checkpoint away before the new one is marked, in no particular order of files.
            if any((folder / name).stat().st_size != size for name, size in whole["sizes"].items()):
                raise ValueError("a file is not as it was")
            _ = whole["seconds"]
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder, ignore_errors=True)
            continue
        newest = max(newest or (step, folder), (step, folder))
    if newest is None:
        return None
    best = state_of(newest[1]).best_model_checkpoint
    if best is not None and not (checkpoints / Path(best).name).exists():
        shutil.rmtree(checkpoints)
        return None
    return str(newest[1])


def state_of(checkpoint: str | Path) -> TrainerState:
    """How far the Trainer was."""
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
