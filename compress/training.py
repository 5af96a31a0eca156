"""Training with transformers' Trainer: what is minimised, and checkpoints that survive a kill."""

from __future__ import annotations

import copy
import importlib.util
import math
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from compress import models, processes
from compress.artifact import Artifact
from compress.callbacks import (
    Clock,
    Epochs,
    Finite,
    Memory,
    Progress,
    Schedules,
    WholeCheckpoints,
    last_whole,
    refuse_unless_finite,
    state_of,
)
from compress.data.histories import Recommend
from compress.data.interactions import Interactions
from compress.errors import DataError, RecipeError
from compress.evaluation import plain, served, validate
from compress.learner import Learner, Taught
from compress.methods import linear_rounding
from compress.methods.rounding import Rounding, round_rows
from compress.models import attention
from compress.models.family import Drawn, Examples, Family
from compress.models.quantization_aware import QuantizationAware
from compress.recipe.losses import Loss
from compress.recipe.training import TrainingSection
from compress.stage import Workspace

TENSORBOARD = "tensorboard"
"""Folder of its logs, in the resume state while training and then in the artifact."""

Validate = Callable[[], Mapping[str, float]]

Remember = Callable[[Examples, Any], tuple[Examples, dict[str, Any]]]
"""From examples, and who answers a batch, to the same with answers beside them, and what that took."""


def begin(
    section: TrainingSection, inputs: Mapping[str, Artifact], interactions: Interactions
) -> tuple[Family, PreTrainedModel]:
    """What training starts from: a fresh model of the section's architecture, or that of the stage it names."""
    if section.start is not None:
        return models.load(inputs[section.start].path("model"))
    assert section.model is not None, "the section has one of the two"
    return models.build(section.model, interactions.catalogue_size, inputs)


def rounding_of_start(section: TrainingSection, inputs: Mapping[str, Artifact]) -> Rounding:
    """How the products of what training starts from are rounded: in floating point unless it was calibrated."""
    return Rounding() if section.start is None else Rounding.of(inputs[section.start])


def learn(
    section: TrainingSection,
    family: Family,
    model: PreTrainedModel,
    terms: Sequence[Loss],
    interactions: Interactions,
    workspace: Workspace,
    taught: Taught | None = None,
    remember: Remember | None = None,
    rounding: Rounding | None = None,
) -> dict[str, Any]:
    """Trains `model`, saves it as the Hugging Face folder `model/`, and says how well it ranks for validation users.

    A model that starts from calibrated products learns with these rounded, and leaves their description with the same
    scales of inputs and those of the weights it has now. Its item table is back on its grid at the end alone: eight
    bits a row change little.

    Of several processes the first one does so; the others train along and return early.

    Args:
        taught: by whom, if the losses look at teachers.
        remember: puts what the teachers say beside the examples, so that they are not asked again.
        rounding: of what training starts from.

    """
    aware = QuantizationAware(family, model.eval(), rounding) if rounding and rounding.maps else None

    def recommend() -> Recommend:
        if aware is None:
            return plain(family, model, interactions.judged_items)
        here = (model if model.device.type == "cpu" else copy.deepcopy(model).cpu()).eval()
        return served(family, here, aware.rounding(), interactions.judged_items)

    def quality() -> dict[str, float]:
        return validate(recommend(), interactions, workspace.folder)

    running = {"running": aware.running} if aware else {}
    learner = Learner(family, model, terms, interactions.catalogue_size, taught, **running)
    examples = drawn(section, family, model, interactions, workspace.seed)
    facts: dict[str, Any] = {}
    with attention.suited(
        [model, *(teacher for _, teacher in taught.teachers)] if taught else [model], section.precision
    ):
        if remember:
            examples, facts = remember(examples, learner.ask)
        facts |= train(learner, examples, section, workspace, quality)
    if processes.rank():
        return facts
    if (workspace.resume / TENSORBOARD).exists():
        shutil.copytree(workspace.resume / TENSORBOARD, workspace.folder / TENSORBOARD)  # a killed run needs it again
    if aware:
        if aware.item_table != "none":
            round_rows(model.get_input_embeddings().weight)
        linear_rounding.write(aware.rounding().maps, workspace.folder)
        facts |= {
            "rounding": {"linear": "static", "item_table": aware.item_table},
            "rounded_from": rounding and rounding.rounded_from,
        }
    family.save(model, workspace.folder / "model")
    return {**quality(), **facts, "parameters": model.num_parameters(), "peak_memory_bytes": peak_memory_bytes()}


def drawn(
    section: TrainingSection, family: Family, model: PreTrainedModel, interactions: Interactions, seed: int
) -> Examples:
    """What an epoch learns from. Raises: DataError if that is nothing."""
    examples = family.examples(model, interactions, seed)
    if not len(examples):
        raise DataError(
            "data: no user has enough interactions besides the two held out to learn from; bring longer ones"
        )
    if section.examples is not None and section.examples < len(examples):
        return Drawn(examples, section.examples, seed)
    return examples


def train(
    learner: Learner, examples: Examples, section: TrainingSection, workspace: Workspace, validate: Validate
) -> dict[str, Any]:
    """Trains in place; a run killed at any moment goes on from its last whole checkpoint to the same weights.

    Args:
        validate: metrics on validation users; called once an epoch, by the first process, if the section stops early
            or asks for a learning curve.
    Returns: steps, mean loss of the batches that made the weights, seconds without those of validation, and the curve:
        pairs of a step and NDCG@10 of validation users.
    Raises: RecPressError if the loss is no number any more.

    """
    checkpoints = workspace.resume / "checkpoints"
    judged = section.learning_curve or section.early_stopping is not None
    steps_per_epoch = math.ceil(math.ceil(len(examples) / section.batch_size) / section.gradient_accumulation_steps)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=section.epochs,
        per_device_train_batch_size=section.batch_size,  # of all processes together: see _Shares
        gradient_accumulation_steps=section.gradient_accumulation_steps,
        optim=_optimizer(section),
        learning_rate=section.learning_rate,
        weight_decay=section.weight_decay,
        adam_beta1=section.adam_betas[0],
        adam_beta2=section.adam_betas[1],
        warmup_steps=min(section.warmup_steps, section.epochs * steps_per_epoch // 2),
        lr_scheduler_type=section.schedule,
        max_grad_norm=section.max_grad_norm,
        seed=workspace.seed + processes.rank(),  # dropout and negatives are each process's own, the batches are not
        data_seed=workspace.seed,
        logging_steps=max(1, steps_per_epoch // 4),
        logging_nan_inf_filter=False,  # see Finite
        save_strategy="epoch" if section.early_stopping else "no",  # else the callback below says when
        eval_strategy="epoch" if judged else "no",
        load_best_model_at_end=section.early_stopping is not None,
        metric_for_best_model="ndcg@10" if section.early_stopping else None,
        save_total_limit=2,
        report_to=[  # see _trackers
            tracker for tracker in section.report_to if tracker != "tensorboard" and not processes.rank()
        ],
        restore_callback_states_from_checkpoint=True,  # how long early stopping has waited
        remove_unused_columns=False,
        disable_tqdm=True,  # the bar below has one line, not one per log entry
        dataloader_pin_memory=False,
        log_level_replica="passive",  # as ours is: see models
        use_cpu=not torch.cuda.is_available(),  # left to itself, accelerate sees no siblings, and no bf16
        bf16=section.precision == "bf16",
        ddp_find_unused_parameters=all(term.reads_layers for term in learner.terms)  # they reach no scores
        or learner.runs_inside,  # absorbed, a key's bias drops out of the softmax
        ddp_broadcast_buffers=False,  # the mean loss is each process's own
    )
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # one process, one device: the Trainer would lay each batch over them all
    newest = processes.first_says(None if processes.rank() else last_whole(checkpoints))
    clock = Clock(newest)
    callbacks: list[TrainerCallback] = [
        Epochs(examples, steps_per_epoch),
        WholeCheckpoints(section.checkpoint_seconds, steps_per_epoch, clock),
        Memory(),
        Schedules(learner),
        Finite(),
    ]
    if not processes.rank():
        callbacks += [Progress(), *_trackers(section, workspace)]
    if section.early_stopping:
        callbacks.append(transformers.EarlyStoppingCallback(section.early_stopping.patience))
    trainer = _Trainer(
        model=learner,
        args=arguments,
        train_dataset=examples,
        eval_dataset=examples if judged else None,
        data_collator=examples.collate,
        callbacks=callbacks,
    )
    trainer.validate, trainer.clock = validate, clock
    trainer.remove_callback(transformers.PrinterCallback)
    if newest and stopped_early(newest, section):
        trainer.take_up(newest)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # transformers has no newer name
            trainer.train(resume_from_checkpoint=newest)
    learner.agree_on_mean_loss()
    refuse_unless_finite(float(learner.mean_loss), trainer.state.global_step)
    curve = [(entry["step"], entry["eval_ndcg@10"]) for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
    return {
        "steps": trainer.state.global_step,
        "loss": round(float(learner.mean_loss), 6),
        "train_seconds": round(clock.seconds, 2),
        **({"curve": curve} if curve else {}),
    }


def stopped_early(checkpoint: str, section: TrainingSection) -> bool:
    """Whether the run that left a checkpoint had lost its patience: the Trainer would forget that, and go on."""
    if section.early_stopping is None:
        return False
    state = state_of(checkpoint)
    waited = state.stateful_callbacks["EarlyStoppingCallback"]["attributes"]["early_stopping_patience_counter"]
    return bool(waited >= section.early_stopping.patience)


def peak_memory_bytes() -> int:
    """The most that this process has held: of the GPU's memory if there is one, else of the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _optimizer(section: TrainingSection) -> str:
    """By transformers' name. Raises: RecipeError if its package is not installed."""
    if section.optimizer == "adamw":
        return "adamw_torch_fused"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError("optimizer: bitsandbytes is not installed; pip install 'recpress[bitsandbytes]'")
    return section.optimizer


def _trackers(section: TrainingSection, workspace: Workspace) -> list[TrainerCallback]:
    """TensorBoard's logs belong to the artifact; left to itself the Trainer writes them among the checkpoints.

    Raises: RecipeError if a tracker is not installed.
    """
    for tracker in section.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise RecipeError(f"report_to: {tracker} is not installed; pip install 'recpress[tracking]'")
    if "tensorboard" not in section.report_to:
        return []
    from torch.utils.tensorboard import SummaryWriter

    return [TensorBoardCallback(SummaryWriter(log_dir=str(workspace.resume / TENSORBOARD)))]  # survives a kill


class _Trainer(transformers.Trainer):
    """Saves a learner whose student ties weights, and validates by ranking instead of by loss."""

    validate: Validate
    clock: Clock

    def take_up(self, checkpoint: str) -> None:
        """The state of a run that had ended, and the weights that it chose."""
        self.state = state_of(checkpoint)
        self._load_best_model()

    def get_train_dataloader(self) -> DataLoader[Any]:
        batches = _Shares(self._get_train_sampler(), self.args.per_device_train_batch_size, drop_last=False)
        loader = DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator)
        prepared: DataLoader[Any] = prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,  # else it cuts the shares again
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,
            data_seed=self.args.data_seed,
        )
        return prepared

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.clock.paused():
            found = processes.first_says({} if processes.rank() else self.validate())
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.model.agree_on_mean_loss()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)  # each process looks for it to know whether it is the best, and waits
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(self.model, str(folder / "model.safetensors"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        safetensors.torch.load_model(model or self.model, str(Path(resume_from_checkpoint) / "model.safetensors"))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            self._load_from_checkpoint(self.state.best_model_checkpoint)


class _Shares(BatchSampler):
    """This process's part of every batch: a step learns from the same sequences however many processes there are.

    accelerate's own sampler fills the last batch of an epoch with sequences of the first.
    """

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            mine = batch[processes.rank() :: processes.count()]
            yield mine if len(batch) >= processes.count() else batch  # too few: all take all, and each weighs the same
