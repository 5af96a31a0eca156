"""What must hold between a recipe's stages: each function raises ValueError, one line that says where."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from compress.recipe.adoption import AdoptSection, AnyCheckpoint
from compress.recipe.base import Section, StageSection
from compress.recipe.features import FeaturesSection
from compress.recipe.judging import GateSection, MeasureSection
from compress.recipe.losses import BY_LAYER, ByLayer, DistillLoss, LabelLoss, Stack
from compress.recipe.model import AnyModel, HybridModel
from compress.recipe.pruning import ProfileSection, PruneSection
from compress.recipe.serving import BuildSection, ExportSection, QuantizeSection, RefreshSection
from compress.recipe.texts import RetrieveSection, TokenizeSection
from compress.recipe.training import DistillSection, FinetuneSection, TeacherCacheSection

Stages = Mapping[str, StageSection]

NO_MODEL = (TokenizeSection, FeaturesSection, RetrieveSection, ProfileSection)
"""Stages that leave none."""

MEASURED_BESIDE = ("popularity", "markov", "tfidf", "first-stage", "head", "targets", "history_length")
"""What `measure` stores beside the exported models, under names of their own."""


def check_inputs(name: str, stage: StageSection, stages: Stages) -> None:
    """The stages that one reads have what it reads."""
    for source in stage.inputs():
        made = stages[source]
        if isinstance(made, BuildSection):
            raise ValueError(f"stages.{name}: {source!r} is a build stage, which leaves engines; name its input's")
        if isinstance(stage, BuildSection):
            _check_build(name, stage, made, stages)
        elif isinstance(made, ExportSection):
            raise ValueError(f"stages.{name}: {source!r} is an export stage; name one that has weights")
        if isinstance(made, RefreshSection) and not isinstance(stage, ExportSection):
            raise ValueError(
                f"stages.{name}: {source!r} is a refresh stage, which only export reads; "
                f"name its input, {made.inputs()[0]!r}"
            )
        if isinstance(made, NO_MODEL) and isinstance(stage, ExportSection | QuantizeSection | RefreshSection):
            raise ValueError(f"stages.{name}: {source!r} is a {made.kind} stage; name one that has weights")
    if isinstance(stage, ProfileSection | PruneSection):
        model = _model_of(stage.input, stages, f"stages.{name}.input")
        if not model.is_cut:
            raise ValueError(f"stages.{name}: a {model.family} is not cut; prune the encoder that it begins as")
        if isinstance(stage, ProfileSection) and not model.is_uniform:
            raise ValueError(
                f"stages.{name}: {stage.input!r} reads attention: one_way, so that its layers compute users once, not "
                "per candidate, and a table of layers cannot tell; prune it by parameters, bytes or flops"
            )
    if isinstance(stage, PruneSection):
        _check_prune(name, stage, stages)
    if isinstance(stage, RetrieveSection) and stage.by != "markov":
        _model_of(stage.by, stages, f"stages.{name}.by")
    if isinstance(stage, RefreshSection):
        source = stage.input
        while isinstance(rounded := stages[source], QuantizeSection):
            source = rounded.input
        model = _model_of(source, stages, f"stages.{name}.input")
        if not model.tokens_are_items:
            raise ValueError(f"stages.{name}: refresh adds rows of items, which a {model.family} does not have")


def _check_prune(name: str, stage: PruneSection, stages: Stages) -> None:
    """The model has what is cut, losses have gradients, and a budget of latency is one that its profile can tell."""
    model, where = _model_of(stage.input, stages, f"stages.{name}.input"), f"stages.{name}.importance"
    if stage.vocabulary and model.tokens_are_items:
        raise ValueError(
            f"stages.{name}.vocabulary: a {model.family}'s tokens are its items; data.min_interactions cuts rare ones"
        )
    widest, width = max(stage.hidden_sizes, default=0), model.stack.width
    if width and widest > width:
        raise ValueError(f"stages.{name}.hidden_sizes: {widest} is wider than the model, {width}")
    _check_losses(where, stage, model)
    same = _stack_of(stage.input, stages)
    _check_layers(where, stage.losses, same, same)
    _check_batch(where, stage.importance, model)
    if stage.budget is None or stage.budget.profile is None:
        return
    profile = stages[stage.budget.profile]
    if not isinstance(profile, ProfileSection):
        raise ValueError(f"stages.{name}.budget.profile: {stage.budget.profile!r} is no profile stage")
    timed = _model_of(profile.input, stages, f"stages.{stage.budget.profile}.input")
    if timed.family != model.family:
        raise ValueError(
            f"stages.{name}.budget.profile: has timed a {timed.family}; {stage.input!r} is a {model.family}"
        )
    size = stage.budget.batch_size
    if size is not None and size not in profile.batch_sizes:
        raise ValueError(f"stages.{name}.budget.batch_size: {size} is not profiled; {list(profile.batch_sizes)} are")
    missing = sorted(set(stage.hidden_sizes) - set(profile.hidden_sizes))
    if missing:
        raise ValueError(
            f"stages.{name}.hidden_sizes: {missing[0]} is not among stages.{stage.budget.profile}.hidden_sizes; add it"
        )


ROUNDED = ("int8", "fp8")
"""Precisions of engines that are made from static scales."""


def _check_build(name: str, stage: BuildSection, made: StageSection, stages: Stages) -> None:
    if not isinstance(made, ExportSection):
        raise ValueError(f"stages.{name}.input: {stage.input!r} is a {made.kind} stage; name an export stage")
    for model in stage.models or ():
        if model not in made.inputs_:
            raise ValueError(
                f"stages.{name}.models: {model!r} is not exported; stages.{stage.input}.inputs: {list(made.inputs_)}"
            )
    rounded = [precision for precision in ROUNDED if precision in stage.precisions]
    for model in (stage.models or made.inputs_) if rounded else ():
        if not _is_rounded(model, stages):
            raise ValueError(
                f"stages.{name}.precisions: {rounded[0]} needs static scales, which {model!r} has none of; name models "
                "from a quantize stage with linear: static, or trained from one (start:)"
            )


def check_model(
    name: str, stages: Stages, *, retrieved: bool, rehearsed: frozenset[str], lists_given: bool, labelled: bool
) -> None:
    """What a model reads besides the interactions is there before it, and it can be trained as the stage says.

    Args:
        retrieved: whether an earlier stage gives candidates.
        rehearsed: stages that come after one which gives lists for training as well.
        lists_given: whether the data does.
        labelled: whether it has labels, so that an example is one pair.

    """
    stage = stages[name]
    model = _model_of(name, stages, f"stages.{name}")
    for field, source, kind in model.reads():
        made = stages[source]
        if made.kind != kind and (isinstance(made, NO_MODEL) or _model_of(source, stages, field).family != kind):
            raise ValueError(f"stages.{name}.model.{field}: {source!r} is no {kind} stage")
        if model.learns_from_rehearsals and kind == "features" and source not in rehearsed and name in rehearsed:
            raise ValueError(f"stages.{source}: would count what is rehearsed; move it behind the retrieve stage")
    if model.learns_from_rehearsals and name not in rehearsed:
        raise ValueError(
            f"stages.{name}: a {model.family} learns from rehearsals: set them in the retrieve stage that "
            "`candidates:` names"
        )
    if getattr(model, "drawn", None) == "retrieved" and not retrieved:
        raise ValueError(f"stages.{name}.model.drawn: retrieved: `candidates:` names no retrieve stage before it")
    if model.ranks_candidates and not retrieved and not lists_given:
        raise ValueError(
            f"stages.{name}: a {model.family} ranks candidates: name an earlier retrieve stage in `candidates:`, "
            "or give lists in data.candidates"
        )
    _check_losses(f"stages.{name}", stage, model)
    _check_batch(f"stages.{name}", stage, model)
    if isinstance(stage, DistillSection):
        _check_cache(name, stage, model, labelled=labelled)
        for each in stage.teachers:
            teacher = _model_of(each, stages, f"stages.{name}.teacher")
            why = model.misfit(teacher)
            if why:
                raise ValueError(f"stages.{name}.model.{why}")
            _check_layers(f"stages.{name}.losses", stage.losses, _stack_of(name, stages), _stack_of(each, stages))
            ours, theirs = _reads(name, stages), _reads(each, stages)
            if ours != theirs:
                told = f"reads {', '.join(ours)}, its teacher {', '.join(theirs)}"
                raise ValueError(
                    f"stages.{name}.model: {told}: it would be taught about other inputs; start from a model that was "
                    "cut from its teacher, or cut the vocabulary after teaching"
                )
            length, limit = _max_length(model, stages), _max_length(teacher, stages)
            if length and limit and length > limit:
                raise ValueError(f"stages.{name}.model: reads {length} tokens; its teacher's encoder {limit} at most")
        _check_seeding(name, stage, stages)
        for loss in stage.losses:
            if loss.reads_heads and _is_rounded(name, stages):
                raise ValueError(
                    f"stages.{name}.losses: {loss.kind} compares keys and values, which {stage.start!r} has absorbed "
                    "into its last layer's integers; use kl or hidden"
                )
            if loss.reads_layers and len(stage.teachers) > 1:
                raise ValueError(f"stages.{name}.losses: {loss.kind} compares layers with one teacher's, not several")


def _reads(name: str, stages: Stages) -> frozenset[str]:
    """The stages that say what a stage's model is told: those that tokenised, or the one that cut their vocabulary."""
    stage = stages[name]
    if isinstance(stage, PruneSection):
        return frozenset([name]) if stage.vocabulary else _reads(stage.input, stages)
    if isinstance(stage, QuantizeSection):
        return _reads(stage.input, stages)
    if isinstance(stage, FinetuneSection | DistillSection) and stage.start:
        return _reads(stage.start, stages)
    return _texts_of(_model_of(name, stages, name), stages)


def _check_losses(where: str, stage: StageSection, model: AnyModel | AnyCheckpoint) -> None:
    for loss in _losses_of(stage):
        if loss.kind in model.refused_losses:
            raise ValueError(f"{where}: {loss.kind} is no loss for a {model.family}; softmax and kl are")


def _check_batch(where: str, section: Section, model: AnyModel | AnyCheckpoint) -> None:
    """An example has something that its item is told from."""
    alone = getattr(model, "in_batch", False) and not getattr(model, "negatives", 0)
    if alone and getattr(section, "batch_size", None) == 1:
        raise ValueError(
            f"{where}.batch_size: 1: with in_batch and no negatives an item is told from those of other examples; "
            "name 2 or more"
        )


def _losses_of(stage: StageSection) -> tuple[LabelLoss | DistillLoss, ...]:
    """What a stage's gradients come from."""
    if isinstance(stage, DistillSection | PruneSection):
        return stage.losses
    return (stage.loss,) if isinstance(stage, FinetuneSection) else ()


def _max_length(model: AnyModel | AnyCheckpoint, stages: Stages) -> int | None:
    """What a model reads at most, by its own section or that of the encoder it begins as; None if a folder says it."""
    if isinstance(model, HybridModel):
        return _max_length(_model_of(model.encoder, stages, model.encoder), stages)
    return getattr(model, "max_length", None)


def _texts_of(model: AnyModel | AnyCheckpoint, stages: Stages) -> frozenset[str]:
    """The tokenize stages behind a model."""
    found: set[str] = set()
    for _, source, _ in model.reads():
        if isinstance(stages[source], TokenizeSection):
            found.add(source)
        elif not isinstance(stages[source], NO_MODEL):
            found |= _reads(source, stages)
    return frozenset(found)


def _check_layers(where: str, losses: Sequence[LabelLoss | DistillLoss], student: Stack, teacher: Stack) -> None:
    """Layers that losses name are there, and can be compared."""
    for loss in losses:
        why = loss.misfit(student, teacher) if isinstance(loss, ByLayer) else None
        if why:
            raise ValueError(f"{where}: {why}")


def _stack_of(name: str, stages: Stages) -> Stack:
    """The layers of the model that a stage leaves, as far as the recipe says."""
    model = _model_of(name, stages, f"stages.{name}")
    if isinstance(model, HybridModel):
        return _stack_of(model.encoder, stages)
    return Stack(model.stack.depth, pruned=True) if _is_pruned(name, stages) else model.stack


def _check_cache(name: str, stage: DistillSection, model: AnyModel | AnyCheckpoint, *, labelled: bool) -> None:
    """Losses ask for what a cache keeps."""
    cache, where = stage.cache, f"stages.{name}.cache"
    if not isinstance(cache, TeacherCacheSection):
        return
    if getattr(model, "in_batch", False):
        raise ValueError(f"{where}: with in_batch an example's scores depend on the batch it is in; set it to false")
    if labelled:  # an example is one pair, with one score
        return
    if stage.kept_layers and model.ranks_candidates:
        raise ValueError(
            f"{where}: keeps hidden states of examples, and a {model.family} reads several pairs of each; leave cache "
            "or hidden out"
        )
    exact = [loss.kind for loss in stage.losses if loss.compares_every_score]
    if exact and getattr(model, "negatives", math.inf) >= cache.top:  # and the label; who has none scores the catalogue
        raise ValueError(
            f"{where}: {exact[0]} compares every score with the teacher's, of which the best {cache.top} are kept; "
            "leave cache out, or use kl"
        )


def _check_seeding(name: str, stage: DistillSection, stages: Stages) -> None:
    """Layers of the first teacher that seed a student are there, and go over."""
    if stage.seeding is None or stage.seeding.layers == "spread":  # which nobody need have asked for
        return
    which, student, teacher = stage.seeding.layers, _stack_of(name, stages), _stack_of(stage.teachers[0], stages)
    where = f"stages.{name}.initialize.layers"
    if not isinstance(which, str) and teacher.depth and not all(0 <= layer < teacher.depth for layer in which):
        raise ValueError(f"{where}: {list(which)}; the teacher has 0 to {teacher.depth - 1}")
    ours, theirs = student.width or 0, teacher.width or 0
    if ours and theirs and (ours > theirs or (ours < theirs and stage.seeding.width != "important-units")):
        raise ValueError(
            f"{where}: the student is {ours} wide, its teacher {theirs}: layers seed a student as wide, or a narrower "
            "one with width: important-units; leave layers out"
        )


def _model_of(name: str, stages: Stages, where: str) -> AnyModel | AnyCheckpoint:
    """What a stage says of the model it leaves."""
    stage = stages[name]
    if isinstance(stage, AdoptSection):
        return stage.model
    if isinstance(stage, PruneSection):
        return _model_of(stage.input, stages, f"stages.{name}.input")
    if not isinstance(stage, FinetuneSection | DistillSection):
        raise ValueError(f"{where}: {name!r} is a {stage.kind} stage; name one that trains, prunes or adopts")
    return stage.model or _model_of(_trained(name, stages), stages, f"stages.{name}.start")


def _trained(name: str, stages: Stages) -> str:
    """What training starts from; of calibrated products, the stage whose model was calibrated."""
    stage = stages[name]
    assert isinstance(stage, FinetuneSection | DistillSection), "only these train"
    start = str(stage.start)
    made = stages[start]
    if not isinstance(made, QuantizeSection):
        return start
    if made.linear != "static":
        raise ValueError(
            f"stages.{name}.start: {start!r} has linear: {made.linear}; training learns to live with integers of "
            "linear: static alone"
        )
    return made.input


def _is_rounded(name: str, stages: Stages) -> bool:
    """Whether a stage leaves calibrated products."""
    stage = stages[name]
    if isinstance(stage, QuantizeSection):
        return stage.linear == "static"
    if isinstance(stage, RefreshSection):
        return _is_rounded(stage.input, stages)
    start = getattr(stage, "start", None)
    return start is not None and _is_rounded(start, stages)


POINTWISE = frozenset({"bce", "mse"}) | BY_LAYER
"""Losses that learn from one item at a time."""


def check_labels(stages: Stages) -> None:
    """Models that predict labels score pairs, and learn from one at a time."""
    for name, stage in stages.items():
        if isinstance(stage, RetrieveSection):
            raise ValueError(
                f"stages.{name}: with data.positive_rating, models are judged on what users were asked about"
            )
        if not isinstance(stage, FinetuneSection | DistillSection | AdoptSection | PruneSection):
            continue
        model = _model_of(name, stages, f"stages.{name}")
        if not model.ranks_candidates:
            raise ValueError(
                f"stages.{name}: a {model.family} ranks a catalogue and predicts no labels: a cross_encoder does; or "
                "name min_rating instead of positive_rating"
            )
        if isinstance(stage, DistillSection) and len(stage.teachers) > 1 and stage.combine == "by_loss":
            raise ValueError(f"stages.{name}.combine: by_loss compares what teachers give one label of several items")
        for loss in _losses_of(stage):
            if loss.kind not in POINTWISE:
                where = "importance: " if isinstance(stage, PruneSection) else ""
                raise ValueError(
                    f"stages.{name}: {where}{loss.kind} compares items; labels are learned by bce, and mse"
                )


def _is_pruned(name: str, stages: Stages) -> bool:
    """Whether layers of a stage's model differ from what its config can say."""
    stage = stages[name]
    if isinstance(stage, PruneSection):
        return stage.budget is not None or _is_pruned(stage.input, stages)
    if isinstance(stage, QuantizeSection):
        return _is_pruned(stage.input, stages)
    if not isinstance(stage, FinetuneSection | DistillSection):
        return False
    begun = [stage.start] if stage.start else stage.model.inputs() if stage.model else []
    return any(_is_pruned(source, stages) for source in begun)


def profiles_behind(name: str, stages: Stages) -> frozenset[str]:
    """Profile stages by whose tables a stage's model was cut to its latency."""
    stage = stages[name]
    source = getattr(stage, "start", None) or getattr(stage, "input", None)
    before = profiles_behind(source, stages) if source else frozenset()
    budget = stage.budget if isinstance(stage, PruneSection) else None
    return before | {budget.profile} if budget and budget.profile else before


def check_measure(measure: MeasureSection, gate: GateSection | None, stages: Stages) -> None:
    """Everything measured is exported by the named stage, and what the gate asks for is measured."""
    export = stages.get(measure.export)
    if not isinstance(export, ExportSection):
        made = [name for name, stage in stages.items() if isinstance(stage, ExportSection)]
        raise ValueError(f"measure.export: {measure.export!r} is no export stage; export stages: {made}")
    if export.top_k < 10:
        raise ValueError(
            f"measure.export: stages.{measure.export}.top_k is {export.top_k}; metrics at 10 need at least 10"
        )
    for key, names in (
        ("teacher", [measure.teacher]),
        ("candidates", measure.candidates),
        ("control", measure.controls),
    ):
        for name in names:
            if name not in export.inputs_:
                raise ValueError(
                    f"measure.{key}: {name!r} is not exported; stages.{measure.export}.inputs: {list(export.inputs_)}"
                )
    for name in export.inputs_:
        if name in (*MEASURED_BESIDE, f"{measure.teacher}-eager", *measure.peers):
            raise ValueError(f"stages.{name}: the name is taken by a row that every report has; choose another")
    if measure.profile is not None and not isinstance(stages.get(measure.profile), ProfileSection):
        raise ValueError(f"measure.profile: {measure.profile!r} is no profile stage")
    family = _model_of(measure.teacher, stages, "measure.teacher").family
    if measure.peers and family != "cross_encoder":
        raise ValueError(f"measure.peers: they run cross-encoders; {measure.teacher!r} is a {family}")
    if measure.peers and _is_pruned(measure.teacher, stages):
        raise ValueError(f"measure.peers: no other tool reads {measure.teacher!r}, which was pruned; leave them out")
    if gate and gate.peers and not measure.peers:
        raise ValueError("gate.peers: measure.peers names none")
    untimed = sorted(set(gate.latency.min_speedup) - set(measure.batch_sizes)) if gate and gate.latency else []
    if untimed:
        raise ValueError(
            f"gate.latency: batch {untimed[0]} is not timed; measure.batch_sizes: {list(measure.batch_sizes)}"
        )
    if gate and gate.quality and gate.quality.metric == "recall@100" and export.top_k < 100:
        raise ValueError(f"gate.quality: recall@100 needs stages.{measure.export}.top_k of 100 or more")
