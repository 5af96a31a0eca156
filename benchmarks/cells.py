"""Tables of words, and how a report's numbers are written in them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    cells: Sequence[str]
    style: str = ""
    """A role, or "chosen": which colour the page gives it."""


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    words: int = 1
    """Leading columns that hold words; the others hold numbers."""


def gate(gate: Json) -> tuple[str, str]:
    """Measured and required, with digits enough to tell them apart."""
    if gate["measured"] is None:
        return "not measured", f"{gate['required']:.4g}"
    return f"{gate['measured']:.4g}", f"{gate['required']:.4g}"


def digits(value: float) -> str:
    """Three significant digits with their zeros, and never an exponent."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(places, 0)}f}"


def name(variant: Json) -> str:
    return f"{variant['name']} (chosen)" if variant["chosen"] else str(variant["name"])


def row(variant: Json, *words: str) -> Row:
    """A variant's: its name, what is said of it, its colour."""
    return Row([name(variant), *words], style(variant))


def style(variant: Json) -> str:
    return "chosen" if variant["chosen"] else str(variant["role"])


def median(latency: Mapping[str, Any]) -> str:
    low, high = map(digits, latency["p50_ci95"])
    return f"{digits(latency['p50'])} [{low}, {high}]"


def interval(value: Mapping[str, Any]) -> str:
    low, high = value["ci95"]
    return f"{value['mean']:.4f} [{low:.4f}, {high:.4f}]"


def ratio(compared: Mapping[str, Any] | None) -> str:
    if not compared:
        return ""
    low, high = compared["ci95"]
    return f"{compared['ratio']:.3f} [{low:.3f}, {high:.3f}]"


def difference(compared: Mapping[str, Any] | None) -> str:
    if not compared:
        return ""
    low, high = compared["difference_ci95"]
    return f"{compared['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"


def speedup(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    low, high = map(digits, found["ci95"])
    return f"{digits(found['ratio'])}x [{low}, {high}]"
