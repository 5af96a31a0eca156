"""Which candidate is served, and why not the others: the fastest of those that rank well enough on validation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

EQUALLY_FAST = 1.05
"""Medians closer than this change places from run to run; the smaller file decides between them."""

EQUALLY_SMALL = 1.05
"""File sizes closer than this do not matter; the recipe's order of candidates decides between them."""


def choose(
    ndcg: Mapping[str, float], latency_ms: Mapping[str, float], size_bytes: Mapping[str, float], min_ratio: float
) -> str:
    """The fastest candidate that ranks well enough; among equally fast ones the smallest file, then the first listed.

    Args:
        ndcg: of validation users.
        latency_ms: one number for all batch sizes.
        min_ratio: of the best candidate's NDCG.

    """
    good = [name for name in ndcg if ndcg[name] >= min_ratio * max(ndcg.values())]
    fastest = min(latency_ms[name] for name in good)
    tied = [name for name in good if latency_ms[name] <= EQUALLY_FAST * fastest]
    smallest = min(size_bytes[name] for name in tied)
    return next(name for name in tied if size_bytes[name] <= EQUALLY_SMALL * smallest)


@dataclass(frozen=True)
class Choice:
    """The numbers that `choose` decided by, as it is called, and what it said."""

    ndcg: Mapping[str, float]
    latency_ms: Mapping[str, float]
    size_bytes: Mapping[str, float]
    min_ratio: float
    int8: Collection[str]
    """Candidates that are."""

    @property
    def chosen(self) -> str:
        return choose(self.ndcg, self.latency_ms, self.size_bytes, self.min_ratio)

    def describe(self) -> dict[str, Any]:
        """As the report has it: every candidate's numbers and why it lost, and whether int8 pays."""
        chosen, best = self.chosen, max(self.ndcg.values())
        return {
            "candidates": [
                {
                    "name": name,
                    "validation_ratio": ndcg / best if best else None,
                    "latency_ms": self.latency_ms[name],
                    "times_chosen": self.latency_ms[name] / self.latency_ms[chosen],
                    "size_bytes": round(self.size_bytes[name]),
                    "why": self._why(name, chosen),
                }
                for name, ndcg in self.ndcg.items()
            ],
            "int8": self._int8(chosen),
        }

    def _ranks(self, name: str) -> bool:
        return self.ndcg[name] >= self.min_ratio * max(self.ndcg.values())

    def _why(self, name: str, chosen: str) -> str:
        if name == chosen:
            return "chosen"
        if not self._ranks(name):
            return f"ranks too low: {self.min_ratio:g} of the best, at least"
        if self.latency_ms[name] > EQUALLY_FAST * min(self.latency_ms[each] for each in self.ndcg if self._ranks(each)):
            return "slower"
        larger = self.size_bytes[name] > EQUALLY_SMALL * self.size_bytes[chosen]
        return "as fast, a larger file" if larger else "as fast and as small, listed later"

    def _int8(self, chosen: str) -> str | None:
        """A line if floating point was chosen though there was int8."""
        if chosen in self.int8 or not self.int8:
            return None
        good = [name for name in self.ndcg if name in self.int8 and self._ranks(name)]
        if not good:
            return (
                f"int8 does not pay here: none of {', '.join(self.int8)} keeps {self.min_ratio:g} of the best "
                f"validation NDCG@10; {chosen} stays in floating point"
            )
        times = {name: self.latency_ms[name] / self.latency_ms[chosen] for name in good}
        each = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in times.items())
        return f"int8 does not pay here: time over that of {chosen}, in floating point: {each}"
