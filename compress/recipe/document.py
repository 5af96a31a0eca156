"""Reads a recipe file: YAML with line numbers, overrides, and errors that name the line and the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from compress.errors import RecipeError
from compress.recipe.recipe import Recipe

Key = tuple[str, ...]


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `overrides` (`stages.student.epochs=3`) applied.

    Raises: RecipeError with file, line, what came and what is allowed.
    """
    content, lines = _parse(path)
    for override in overrides:
        _override(content, override)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(_explain(error, path, lines)) from None
    data_path = getattr(recipe.data, "path", None)
    if data_path and not data_path.is_absolute():
        located = recipe.data.model_copy(update={"path": (path.parent / data_path).resolve()})
        recipe = recipe.model_copy(update={"data": located})
    return recipe


def _parse(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The document as plain data, and the line of every key path in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Key, int] = {}
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"{path}:1: a recipe is a mapping that starts with name:")
        _index(root, (), lines, path)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{path}:{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}:1: not a recipe: {error}") from None
    return content, lines


def _index(node: yaml.Node, at: Key, lines: dict[Key, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            where = (*at, str(key.value))
            if where in lines:
                raise RecipeError(f"{path}:{key.start_mark.line + 1}: {'.'.join(where)}: the key is there twice")
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
    node: Any = content
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise RecipeError(f"--set {override}: {'.'.join(parents)} is no mapping in this recipe")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {override}: {text!r} is no YAML value") from None


def _explain(error: ValidationError, path: Path, lines: dict[Key, int]) -> str:
    """One line for the first of the errors: file, line, key, what is wrong."""
    errors = error.errors()
    first = errors[0]
    where = _as_written(first["loc"], lines)
    dotted = ".".join(where)
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"])
        near = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
        message = "unknown key; " + (f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}")
    elif first["type"] == "missing":
        message = "the key is missing"
    elif first["type"].startswith("union_tag"):
        context = first.get("ctx", {})
        selector = str(context.get("discriminator", "kind")).strip("'")
        allowed = context.get("expected_tags", "")
        message = (
            f"{selector}: {context['tag']!r} is none of {allowed}" if "tag" in context else f"{selector} is missing"
        )
    else:
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            message += f"; got {_shorten(first['input'])}"
    if not where:  # a check between sections: its message starts with the key it is about
        where = tuple(message.partition(": ")[0].split("."))
    line = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), 1)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{path}:{line}: {dotted + ': ' if dotted else ''}{message}{more}"


def _shorten(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."


def _as_written(location: tuple[int | str, ...], lines: dict[Key, int]) -> Key:
    """The location without the union tags that pydantic puts between the keys (`stages.student.distill.epochs`)."""
    where: Key = ()
    for position, part in enumerate(location):
        longer = (*where, str(part))
        if longer in lines or position == len(location) - 1 or not any(key[: len(where)] == where for key in lines):
            where = longer
    return where


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the schema knows at the place of an unknown one."""
    schema = Recipe.model_json_schema(by_alias=True)

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        return node

    node = schema
    for part in location[:-1]:
        node = resolve(node)
        if "anyOf" in node:  # Optional[X]
            node = resolve(next(option for option in node["anyOf"] if option.get("type") != "null"))
        if "discriminator" in node and part in node["discriminator"]["mapping"]:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        elif "items" in node:
            node = node["items"]
        elif "patternProperties" in node:
            (node,) = node["patternProperties"].values()
        elif isinstance(node.get("additionalProperties"), dict):
            node = node["additionalProperties"]
    node = resolve(node)
    if "anyOf" in node:
        node = resolve(next(option for option in node["anyOf"] if option.get("type") != "null"))
    return sorted(node.get("properties", {}))
