"""`linear: auto`, one word for a quantize stage of each way to be int8 that can win, exported and measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WAYS = ("weights", "dynamic", "static")
"""On a CPU any of them may be the fastest, by the model's size and the processor; which one is, `measure` finds out."""

STATIC_ALONE = ("calibration", "smooth", "keep", "weight_bits", "per_channel", "bias_correction")
"""Keys of a quantize stage that no other way reads."""


STATIC_DEFAULTS = {"smooth": 0.5}
"""What the static way has here unless it is said: less is lost so (docs/quantization.md)."""


def names(stage: str) -> list[str]:
    """Of the stages that one of `linear: auto` stands for."""
    return [f"{stage}-{way}" for way in WAYS]


def expand(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A recipe's plain data with such stages written out, and for each stage so made the one that stood for it.

    What exports or measures such a stage does so with all of them, and with the model in floating point that they are
    made of. Anything that is no recipe is left for validation to refuse.

    Raises: ValueError, one line that starts with where, if a name is taken.
    """
    listed = content.get("stages")
    stages: dict[str, Any] = listed if isinstance(listed, dict) else {}
    automatic = {
        name: stage
        for name, stage in stages.items()
        if isinstance(stage, dict) and stage.get("kind") == "quantize" and stage.get("linear") == "auto"
    }
    if not automatic:
        return dict(content), {}
    written: dict[str, Any] = {}
    for name, stage in stages.items():
        if name in automatic:
            for own, way in zip(names(name), WAYS, strict=True):
                if own in stages:
                    raise ValueError(f"stages.{own}: the name is taken by a stage of {name}'s linear: auto")
                said = {key: value for key, value in stage.items() if key not in STATIC_ALONE}
                if way == "static":
                    said = {**STATIC_DEFAULTS, **stage}
                written[own] = {**said, "linear": way}
        elif isinstance(stage, dict) and stage.get("kind") == "export":
            written[name] = _written_out(stage, "inputs", automatic)
        else:
            written[name] = stage
    measure = content.get("measure")
    measured = {"measure": _written_out(measure, "candidates", automatic)} if isinstance(measure, dict) else {}
    origins = {own: name for name in automatic for own in names(name)}
    return {**content, "stages": written, **measured}, origins


def _written_out(section: Mapping[str, Any], key: str, automatic: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The section with each such stage of a list replaced; what stands there twice by that, there once."""
    listed = section.get(key)
    if not isinstance(listed, list) or not any(isinstance(name, str) and name in automatic for name in listed):
        return dict(section)
    found: list[Any] = []
    for name in listed:
        made = [automatic[name].get("input"), *names(name)] if isinstance(name, str) and name in automatic else [name]
        found += [each for each in made if each not in found and (each == name or each not in listed)]
    return {**section, key: found}
