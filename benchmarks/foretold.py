"""What a profile foretold of the exported models' latency, beside what they take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compress.artifact import Artifact
from deploy.clock import interleave, undisturbed
from deploy.profile import TABLE, drawn_inputs, positions_in

if TYPE_CHECKING:
    from benchmarks.variants import Variant

TOLERANCE = 0.10
NEGLIGIBLE_MS = 0.02
"""A prediction may be off by a tenth, or by this."""


def foretold(profile: Artifact, variants: Mapping[str, Variant]) -> dict[str, list[dict[str, Any]]]:
    """Of each exported model whose products are rounded as was profiled: a row a batch size, milliseconds.

    Measured here and now, on inputs of the sizes that the profile timed; the rows of a model run in turn.
    """
    from compress.methods import costs
    from compress.methods.shapes import LayerShape

    table = json.loads(profile.path(TABLE).read_text(encoding="utf-8"))
    known = {name: variant.facts for name, variant in variants.items() if _is_told(variant.facts, table)}
    runtimes = {name: variants[name].load(table["threads"]).runtime for name in known}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in known}
    for batch, here in table["batches"].items():
        calls = {}
        for name, facts in known.items():
            inputs = drawn_inputs(
                facts["flops"]["inputs"], facts["layers"]["floats"], table["ids"], table["sizes"], int(batch)
            )
            calls[name] = [lambda runtime=runtimes[name], inputs=inputs: runtime(inputs)]
        samples = interleave(calls, turns=30, seconds=8.0 * len(calls), label=f"as foretold, batch {batch}")
        for name, facts in known.items():
            shapes = [LayerShape(*each) for each in facts["layers"]["shapes"]]
            predicted = costs.measured(here, facts["layers"]["hidden_size"]).of(shapes)
            row = {"batch": int(batch), "predicted_ms": predicted, "measured_ms": undisturbed(samples[name])}
            found[name].append(row)
    return found


def _is_told(facts: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    """Whether the table has a bundle's parts: no more of each than was timed, and inputs that it can read.

    An item table in int8 plays no part: every runtime unfolds it once, at load.
    """
    layers = facts["layers"]
    most = [max(layer[unit] for layer in table["layers"]) for unit in (0, 1)]
    return (
        facts["bundle"] is not None
        and facts["linear"] == table["linear"]
        and (layers["family"], layers["uniform"]) == (table["family"], True)
        and layers["head_size"] == table["head_size"]
        and all(str(layers["hidden_size"]) in here["hidden"] for here in table["batches"].values())
        and all(layer[unit] <= most[unit] for layer in layers["shapes"] for unit in (0, 1))
        and positions_in(table["sizes"]) <= layers["positions"]
    )
