"""Reads a recipe file: YAML with line numbers, overrides, and errors that name the line and the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from compress.errors import RecipeError
from compress.recipe import wording
from compress.recipe.automatic import expand
from compress.recipe.base import Section
from compress.recipe.recipe import Recipe

Key = tuple[str, ...]

MOST_KEYS = 10_000
"""A hundred times the largest recipe: a few lines of aliases of aliases can spell billions."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, whose errors in a value (`2020-13-45`, `!!int ""`) have a line too."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):
            what = f"{wording.shorten(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `overrides` (`stages.student.epochs=3`) applied.

    Raises: RecipeError with file, line, what came and what is allowed.
    """
    content, lines = _parse(path)
    for override in overrides:
        _override(content, override)
    said = {tuple(override.partition("=")[0].split(".")): override for override in overrides}
    try:
        content, origins = expand(content)
    except ValueError as error:
        line = lines.get(tuple(str(error).partition(":")[0].split(".")), 1)
        raise RecipeError(f"{path}:{line}: {error}") from None
    for made, origin in origins.items():
        lines |= {("stages", made, *key[2:]): line for key, line in lines.items() if key[:2] == ("stages", origin)}
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(_explain(error, path, content, lines, said)) from None
    stages = {name: _located(stage, ("stages", name), path, lines) for name, stage in recipe.stages.items()}
    return recipe.model_copy(update={"data": _located(recipe.data, ("data",), path, lines), "stages": stages})


def _located(section: Section, at: Key, path: Path, lines: dict[Key, int]) -> Section:
    """The section with its paths, which are relative to the recipe's folder, made absolute."""
    for keys, written in list(section.paths()):
        try:
            section = section.with_path(keys, (path.parent / written).resolve())
        except ValueError as error:  # a NUL, or half a surrogate pair
            where = (*at, *keys)
            line = lines.get(where, 1)
            raise RecipeError(f"{path}:{line}: {_dotted(where)}: {str(written)!r} is no path: {error}") from None
    return section


def _parse(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The document as plain data, and the line of every key path in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        root = yaml.compose(text, Loader=_Loader)
        lines: dict[Key, int] = {}
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{path}:1: a recipe is a mapping that starts with name:")
        _index(root, (), lines, path)
        content = yaml.load(text, _Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{path}:{line}: not YAML: {text[error.position]!r} is no printable character") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not YAML: {error.problem}") from None
    except RecursionError:
        raise RecipeError(f"{path}:1: not a recipe: nested too deep; does an alias stand inside its anchor?") from None
    return content, lines


def _index(node: yaml.Node, at: Key, lines: dict[Key, int], path: Path) -> None:
    if len(lines) > MOST_KEYS:
        raise RecipeError(f"{path}:{node.start_mark.line + 1}: not a recipe: it has more than {MOST_KEYS} keys")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*at, str(key.value))
            if where in lines:
                raise RecipeError(f"{path}:{key.start_mark.line + 1}: {_dotted(where)}: the key is there twice")
            lines[where] = key.start_mark.line + 1
            _index(value, where, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            where = (*at, str(position))
            lines[where] = value.start_mark.line + 1
            _index(value, where, lines, path)


def _override(content: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise RecipeError(f"--set {override}: write it as path.to.key=value")
    *parents, last = dotted.split(".")
    node = content
    for depth, parent in enumerate(parents, start=1):
        child = node.get(parent, {})
        if not isinstance(child, dict):
            here, text = ".".join(parents[:depth]), "a list: set it whole" if isinstance(child, list) else "no mapping"
            raise RecipeError(f"--set {override}: {here} is {text} in this recipe")
        node[parent] = child.copy()  # an alias of it elsewhere stays as it is
        node = node[parent]
    try:
        node[last] = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError):
        raise RecipeError(f"--set {override}: {text!r} is no YAML value") from None


def _explain(
    error: ValidationError, path: Path, content: dict[str, Any], lines: dict[Key, int], said: dict[Key, str]
) -> str:
    """One line for one of the errors: file, line, key, what is wrong. A misspelt key is told before a missing one.

    Args: said: overrides by key, which are named instead of a line if the fault is theirs.
    """
    errors = error.errors()
    # Of what may be one of several types, a check of the right one says more than what the others are.
    telling = [each for kind in ("extra_forbidden", "value_error") for each in errors if each["type"] == kind]
    first = telling[0] if telling else errors[0]
    where = _as_written(first["loc"], content)
    if first["type"] == "missing":
        where, message = (*where, str(first["loc"][-1])), "the key is missing"
    elif first["type"] == "extra_forbidden":
        message = wording.unknown_key(first["loc"])
    elif first["type"].startswith("union_tag"):
        misspelt, message = wording.bad_choice(first)
        where = (*where, misspelt) if misspelt else where
    else:
        message = wording.worded(first)
    if where:
        message = f"{_dotted(where)}: {message}"
    at = message.partition(": ")[0]  # a check between sections starts its message with the key it is about
    named = {_dotted(key): line for key, line in lines.items()}
    while at and at not in named:
        at = at.rpartition(".")[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    blamed = next((override for key, override in said.items() if _is_about(where, key, lines)), None)
    if not blamed:
        beside = [override for key, override in said.items() if where and key[: len(where)] == where]
        return f"{path}:{named.get(at, 1)}: {message}{more}" + "".join(f" (with --set {each})" for each in beside)
    new = where[0] == "stages" and where[:2] not in lines
    near = difflib.get_close_matches(where[1], [key[1] for key in lines if len(key) == 2], n=1) if new else []
    if near:
        return f"--set {blamed}: {message.partition('; one of ')[0]}{more}; did you mean stages.{near[0]}?"
    return f"--set {blamed}: {message}{more}"


def _is_about(where: Key, key: Key, lines: dict[Key, int]) -> bool:
    """Whether a fault is in what an override has set, or in something that is there by it alone."""
    return bool(where) and (where[: len(key)] == key or (where not in lines and key[: len(where)] == where))


def _dotted(where: Key) -> str:
    return ".".join(part if part.isprintable() else repr(part) for part in where)


def _as_written(location: tuple[int | str, ...], content: Any) -> Key:
    """The location without the union tags that pydantic puts between the keys (`stages.student.distill.epochs`)."""
    where: Key = ()
    node = content
    for part in map(str, location):
        inside = dict(enumerate(node)) if isinstance(node, list) else node if isinstance(node, dict) else {}
        for key, value in inside.items():
            if str(key) == part:
                where, node = (*where, part), value
                break
    return where
