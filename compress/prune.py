"""Cuts heads, FFN neurons, layers, width, and what is never used, out of a model, to a budget.

`python -m compress.prune recipe.yaml`; with `--sweep 0.8,0.6,0.4,0.2` the quality that each share of the budget keeps
before any recovery.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact, write_json
from compress.command import Option, main
from compress.errors import RecipeError
from compress.recipe.pruning import FromGradients, Learned, Magnitude, PruneSection, Taylor
from compress.stage import Stage, Workspace

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from compress.data.interactions import Interactions
    from compress.methods.costs import Costs
    from compress.methods.cutting import Kept
    from compress.methods.importance import Importance
    from compress.models.family import Family

TABLE = "latency.json"
"""Of a profile stage."""

IN_BATCH = 8
"""Examples of a backward pass, where each tells its item from the others': as a stage trains if nothing is said."""


def run(section: PruneSection, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
    """Writes `model/`. Returns validation metrics before any recovery, what stays, and what that is to cost."""
    from compress.data.interactions import Interactions
    from compress.evaluation import plain, validate
    from compress.methods import shapes

    started = time.monotonic()
    interactions = Interactions.of(inputs)
    family, model, facts = _trimmed(section, inputs, interactions, workspace)
    if section.budget is not None:
        plan = Plan(section, inputs, family, model, interactions, workspace)
        kept, cost = plan.kept(section.budget.share)
        model = plan.cut(kept)
        facts |= cost | plan.facts
    family.save(model, workspace.folder / "model")
    cut_seconds = round(time.monotonic() - started, 2)
    return {
        **validate(plain(family, model, interactions.judged_items), interactions, workspace.folder),
        **facts,
        "parameters": model.num_parameters(),
        "cut_seconds": cut_seconds,
        "layers": [[each.heads, each.neurons] for each in map(shapes.shape, shapes.layers(model))],
    }


def _trimmed(
    section: PruneSection, inputs: Mapping[str, Artifact], interactions: Interactions, workspace: Workspace
) -> tuple[Family, PreTrainedModel, dict[str, Any]]:
    """The input's model without what is never used, and facts about what that was."""
    from compress import models

    family, model = models.load(inputs[section.input].path("model"))
    if not (section.vocabulary or section.positions):
        return family, model, {}
    said = {"vocabulary": section.vocabulary, "positions": section.positions}
    return family, model, family.trim(model, interactions, workspace.resume, **said)


class Plan:
    """What a budget leaves of a model; importance is computed once, whatever the share."""

    def __init__(
        self,
        section: PruneSection,
        inputs: Mapping[str, Artifact],
        family: Family,
        model: PreTrainedModel,
        interactions: Interactions,
        workspace: Workspace,
    ) -> None:
        self.section = section
        self.family = family
        self.model = model
        self.interactions = interactions
        self.seed = workspace.seed
        self.facts: dict[str, Any] = {}
        self.whole, self.costs = self._costs(inputs)
        self.importance = self._learned(workspace) if isinstance(section.importance, Learned) else self._importance()

    def kept(self, share: float) -> tuple[Kept, dict[str, Any]]:
        """What stays, and what that costs in words of the budget. Raises: RecipeError if nothing is small enough."""
        from compress.methods import costs, shapes

        depths = [len(encoder.encoder.layer) for encoder in shapes.encoders(self.model)]
        step = self.section.neurons_multiple
        counts = [
            sorted({*range(0, most + 1, step), most})
            for most in (shapes.shape(layer).neurons for layer in shapes.layers(self.model))
        ]
        best = None
        for hidden, table in self.costs.items():
            narrowed = self.importance.narrowing_loss(hidden)
            found = costs.cheapest_loss(
                self.importance, table, share * self.whole, depths, counts, whole_layers=self.section.whole_layers
            )
            if found is not None and (best is None or found[0] + narrowed < best[0]):
                best = found[0] + narrowed, found[1], hidden
        if best is None:
            least = min(table.rest for table in self.costs.values()) / self.whole
            raise RecipeError(
                f"budget: {share:g} cannot be met: what lies outside the layers is {least:.2f} of it; raise it, or "
                "name hidden_sizes"
            )
        lost, wanted, hidden = best
        kept = self.importance.keep(wanted, None if hidden == self.model.config.hidden_size else hidden)
        towers = shapes.by_encoder(self.model, kept.layers)
        predicted = max(self.costs[hidden].of([each.shape for each in tower if each is not None]) for tower in towers)
        unit = "predicted_ms" if self._budget.latency else f"predicted_{self._budget.kind}"
        return kept, {
            unit: round(predicted, 4),
            "predicted_share": round(predicted / self.whole, 4),
            "importance_lost": round(lost / max(self.importance.total, 1e-30), 4),
            "hidden_size": hidden,
        }

    def cut(self, kept: Kept) -> PreTrainedModel:
        """A copy of the model with that alone, refitted if the section says so."""
        from compress.methods import cutting
        from compress.methods.refitting import refit

        left = copy.deepcopy(self.model)
        cutting.cut(left, kept)
        if self.section.rescale and not isinstance(self.section.importance, Learned):  # whose weights are fitted
            batches = self._batches(self.section.rescale.examples, "refitting", offset=1)
            refit(self.model, left, kept, batches, self.family.supervise, self.section.rescale.ridge)
        return left.eval()

    @property
    def _budget(self) -> Any:
        assert self.section.budget is not None, "the section has one"
        return self.section.budget

    def _costs(self, inputs: Mapping[str, Artifact]) -> tuple[float, dict[int, Costs]]:
        """What shares are of, and costs at every width that may be chosen."""
        from compress.methods import costs, shapes

        own = self.model.config.hidden_size
        widths = sorted({own, *self.section.hidden_sizes}, reverse=True)
        if widths[0] > own:
            raise RecipeError(f"hidden_sizes: {widths[0]} is wider than the model, {own}")
        if self._budget.profile is not None:
            table = json.loads(inputs[self._budget.profile].path(TABLE).read_text(encoding="utf-8"))
            batch = str(self._budget.batch_size or next(iter(table["batches"])))
            if batch not in table["batches"]:
                raise RecipeError(f"budget.batch_size: {batch} was not profiled; {', '.join(table['batches'])} were")
            here = table["batches"][batch]
            self._check_profiled(table)
            return here["total"], {width: costs.measured(here, width) for width in widths}
        now = [shapes.shape(layer) for layer in shapes.layers(self.model)]
        most = shapes.LayerShape(max(each.heads for each in now), max(each.neurons for each in now))
        length = self._length() if self._budget.kind == "flops" else 0.0
        size = shapes.head_size(self.model)
        found = {
            width: costs.counted(self._budget.kind, width, size, most, length, self._outside(width)) for width in widths
        }
        return max(found[own].of(tower) for tower in shapes.by_encoder(self.model, now)), found

    def _check_profiled(self, table: Mapping[str, Any]) -> None:
        """Raises: RecipeError if the table is of other heads or widths, or of a smaller model."""
        from compress.methods import shapes

        now = [shapes.shape(layer) for layer in shapes.layers(self.model)]
        larger = any(
            getattr(each, unit) > max(layer[place] for layer in table["layers"])
            for each in now
            for place, unit in enumerate(("heads", "neurons"))
        )
        if larger or table["head_size"] != shapes.head_size(self.model):
            raise RecipeError(
                f"budget.profile: {self._budget.profile} has timed smaller layers, or heads of another width, than "
                f"{self.section.input} has; profile that stage, or the one that it was cut from"
            )
        own, timed = self.model.config.hidden_size, next(iter(table["batches"].values()))["hidden"]
        if str(own) not in timed:
            raise RecipeError(
                f"budget.profile: {self._budget.profile} has timed a width of {', '.join(timed)}; {self.section.input} "
                f"is {own} wide: add it to stages.{self._budget.profile}.hidden_sizes"
            )

    def _outside(self, width: int) -> int:
        """Parameters that are in no layer once the model is so wide, an encoder's share of them."""
        from compress.methods import cutting, shapes

        model = copy.deepcopy(self.model)
        if width < model.config.hidden_size:
            cutting.cut(model, replace(cutting.everything(model), hidden=tuple(range(width))))
        inside = sum(parameter.numel() for layer in shapes.layers(model) for parameter in layer.parameters())
        return int(model.num_parameters() - inside) // len(shapes.encoders(model))

    def _learned(self, workspace: Workspace) -> Importance:
        """Gates are trained, and from here on the model is the one that was trained with them."""
        from compress.gating import learn_gates

        how = self.section.importance
        assert isinstance(how, Learned), "asked for no other"
        costs = self.costs[self.model.config.hidden_size]
        self.model, found, self.facts = learn_gates(
            how,
            self.family,
            self.model,
            costs,
            self._budget.share * self.whole,
            self.interactions,
            workspace,
            whole_layers=self.section.whole_layers,
        )
        return found

    def _importance(self) -> Importance:
        from compress.learner import Learner
        from compress.methods import importance

        how = self.section.importance
        if not isinstance(how, FromGradients):
            return (
                importance.magnitude(self.model)
                if isinstance(how, Magnitude)
                else importance.chance(self.model, self.seed)
            )
        learner = Learner(self.family, self.model, [how.loss], self.interactions.catalogue_size).eval()

        def loss(batch: Mapping[str, Tensor]) -> Tensor:
            found: Tensor = learner(**batch)["loss"]
            return found

        find = importance.taylor if isinstance(how, Taylor) else importance.fisher
        size = how.batch_size or (IN_BATCH if self.model.config.recommender.get("in_batch") else 1)
        found = find(self.model, self._batches(how.examples, "importance", size), loss)
        if not found.total > 0:
            raise RecipeError("importance: all gradients are zero; raise importance.examples")
        return found

    def _batches(self, count: int, label: str, size: int = 1, offset: int = 0) -> Iterator[Any]:
        """Batches of training examples, drawn at random; another offset, others."""
        import numpy as np
        from tqdm import tqdm

        examples = self.family.examples(self.model, self.interactions, self.seed)
        order = np.random.default_rng((self.seed, offset)).permutation(len(examples))[:count].tolist()
        for start in tqdm(range(0, len(order), size), desc=label, leave=False, disable=None):
            batch = examples.collate([examples[index] for index in order[start : start + size]])
            yield {name: value.to(self.model.device) for name, value in batch.items()}

    def _length(self) -> float:
        """Positions of a text, in the mean."""
        import torch

        with torch.no_grad():
            said = [self.family.supervise(self.model, batch).real_BL for batch in self._batches(32, "lengths")]
        return float(torch.cat([real_BL.sum(dim=1).float() for real_BL in said]).mean())


def sweep(stage: Stage, shares: str) -> None:
    """Prints, and writes beside the stage's folder, what each share of its budget keeps before any recovery.

    Raises: RecipeError if the shares are no numbers above 0 and up to 1.
    """
    from compress.data.interactions import Interactions
    from compress.evaluation import evaluate, plain

    section = stage.section
    assert isinstance(section, PruneSection), "the command is of this kind"
    wanted = _shares(shares)
    if section.budget is None:
        print(f"{stage.label}: no budget whose shares could be swept; name a stage that has one with --stage")
        return
    inputs = stage.finished_inputs()
    interactions = Interactions.of(inputs)

    def quality(model: PreTrainedModel) -> float:
        return float(evaluate(plain(family, model, interactions.judged_items), interactions, "validation")["ndcg@10"])

    with tempfile.TemporaryDirectory() as scratch:  # the stage's own folder is its own
        workspace = Workspace(Path(scratch), stage.seed or 0)
        family, model, _ = _trimmed(section, inputs, interactions, workspace)
        rows: list[dict[str, Any]] = [{"share": 1.0, "ndcg@10": quality(model)}]
        print(f"{stage.label}: {section.budget.kind} by {section.importance.kind}, validation ndcg@10 without recovery")
        print(_line(rows[0], rows[0]), flush=True)
        plan = Plan(section, inputs, family, model, interactions, workspace)
        for share in wanted:
            kept, facts = plan.kept(share)
            rows.append({"share": share, **facts, "ndcg@10": quality(plan.cut(kept))})
            print(_line(rows[-1], rows[0]), flush=True)
    path = stage.folder.with_name(f"{stage.name}.sweep.json")
    write_json(path, rows)
    print(path)
    print(_draw(rows, section.budget.kind, path.with_suffix(".svg")))


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = [0.0]
    if not all(0 < share <= 1 for share in shares):
        raise RecipeError(f"--sweep {text}: write shares above 0 and up to 1 with commas between, like 0.8,0.6,0.4")
    return shares


def _line(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """A share, what it leaves of the quality as a bar, and the shape's cost."""
    ratio = row["ndcg@10"] / max(first["ndcg@10"], 1e-12)
    bar = "#" * round(40 * min(ratio, 1.0))
    cost = f"  {row['predicted_ms']:.3g} ms" if "predicted_ms" in row else ""
    return f"  {row['share']:>5.2f}  {row['ndcg@10']:.4f}  {ratio:>5.2f}  {bar:<40}{cost}"


def _draw(rows: Sequence[Mapping[str, Any]], budget: str, path: Path) -> Path:
    """The sweep as a curve: quality without recovery over what the cut model is to cost."""
    from matplotlib.figure import Figure

    cut = rows[1:]
    unit = "predicted_ms" if budget == "latency" else f"predicted_{budget}"
    whole = cut[0][unit] / cut[0]["predicted_share"]
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([whole, *(row[unit] for row in cut)], [row["ndcg@10"] for row in rows], "o-", color="#2a6fbb")
    for row in cut:
        axes.annotate(f"{row['share']:g}", (row[unit], row["ndcg@10"]), (4, -10), textcoords="offset points", size=8)
    axes.axhline(rows[0]["ndcg@10"], color="#999", linewidth=0.8, linestyle="--")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("foretold latency, ms" if budget == "latency" else f"{budget} left")
    axes.set_ylabel("validation NDCG@10, no recovery")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


if __name__ == "__main__":
    raise SystemExit(
        main("prune", Option("--sweep", "0.8,0.6,0.4", "quality at these shares of the budget, nothing else", sweep))
    )
