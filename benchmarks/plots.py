"""The report's charts, as SVG that takes its colours and its font from the page it stands in."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.tables import model_rows

Json = dict[str, Any]

INKS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--teacher)",
    "#050505": "var(--reference)",
    "#060606": "var(--control)",
    "#070707": "var(--candidate)",
    "#080808": "var(--chosen)",
    "#090909": "var(--card)",
}
"""Stand-ins that matplotlib draws with -> the page's colours, which differ by day and by night."""

INK, SOFT, LINE, CARD = "#010101", "#020202", "#030303", "#090909"
ROLES = {
    "teacher": "#040404",
    "reference": "#050505",
    "control": "#060606",
    "candidate": "#070707",
    "other": "#060606",
    "chosen": "#080808",
}
MARKERS = "oDs^vPX<>p"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "recpress",
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.color": LINE,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}

WIDTH = 4.4
"""Inches at 72 dots each: the width of a chart's place on a wide screen, so that text keeps its size."""


def quality_against_latency(report: Json) -> str:
    """NDCG@10 over p50 model latency at the smallest batch, both with 95% intervals."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        batch = batches(report)[0]
        for variant, marker in zip(report["variants"], MARKERS * len(report["variants"]), strict=False):
            row = next(row for row in model_rows(variant) if row["batch"] == batch)
            quality = variant["quality"]["ndcg@10"]
            layer = 4 if variant["chosen"] else 2
            axes.errorbar(
                row["p50"],
                quality["mean"],
                xerr=_reach(row["p50"], row["p50_ci95"]),
                yerr=_reach(quality["mean"], quality["ci95"]),
                fmt="none",
                ecolor=colour(variant),
                alpha=0.75,
                capsize=2.5,
                zorder=layer,
            )
            axes.plot(
                row["p50"],
                quality["mean"],
                "*" if variant["chosen"] else marker,
                color=colour(variant),
                markeredgecolor=CARD,
                markersize=15 if variant["chosen"] else 8,
                label=label(variant),
                zorder=layer + 1,
            )
        markov = report["baselines"]["markov"]["quality"]["ndcg@10"]["mean"]
        axes.axhline(markov, color=SOFT, linestyle=(0, (4, 3)), zorder=1, label="Markov chain")
        axes.margins(x=0.12)
        _log(axes)
        axes.set_xlabel(f"p50 model latency at batch {batch}, ms (log)")
        axes.set_ylabel("NDCG@10")
        _legend(figure, axes, columns=2)

    return _svg(draw, height=_tall(len(report["variants"]) // 2, beside=2.9))


def latency_percentiles(report: Json) -> str:
    """p50, p95 and p99 model latency of every variant, a panel for each batch size."""
    shades = {"p50": 1.0, "p95": 0.6, "p99": 0.3}

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(batches(report)), 1, sharex=True, squeeze=False)[:, 0]
        for axes, batch in zip(panels, batches(report), strict=True):
            rows = [
                (variant, row) for variant in report["variants"] for row in model_rows(variant) if row["batch"] == batch
            ]
            for place, (variant, row) in enumerate(rows):
                for offset, (percentile, shade) in enumerate(shades.items()):
                    width = row[percentile] or 0  # too few samples for a p99: no bar
                    axes.barh(place + 0.26 * (offset - 1), width, 0.24, color=colour(variant), alpha=shade)
            _name_rows(axes, [variant for variant, _ in rows])
            axes.set_title(f"batch {batch}", loc="left", color=SOFT)
            axes.grid(visible=False, axis="y")
            axes.set_xscale("log")
        low = min(row["p50"] for variant in report["variants"] for row in model_rows(variant))
        panels[-1].set_xlim(left=low / 2)
        _log(panels[-1])
        panels[-1].set_xlabel("model latency, ms (log)")
        for percentile, shade in shades.items():
            panels[-1].barh([0], [0], color=SOFT, alpha=shade, label=percentile)
        _legend(figure, panels[-1], columns=3)

    return _svg(draw, height=_tall(len(report["variants"]) * len(batches(report))))


def file_sizes(report: Json) -> str:
    """What each variant takes on disk."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        sizes = [variant["size_bytes"] / 1e6 for variant in report["variants"]]
        bars = axes.barh(range(len(sizes)), sizes, 0.6, color=[colour(variant) for variant in report["variants"]])
        axes.bar_label(bars, [f"{size:#.3g}" for size in sizes], padding=4, color=INK)
        axes.margins(x=0.14)
        _name_rows(axes, report["variants"])
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("file size, MB")

    return _svg(draw, height=_tall(len(report["variants"])))


def is_followed(report: Json) -> bool:
    """Whether any variant was judged while it learned."""
    return any(variant["training"] and variant["training"]["curve"] for variant in report["variants"])


def learning_curves(report: Json) -> str:
    """NDCG@10 of validation users over seconds of training; a mark where 98% of the last is reached."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for variant, marker in zip(report["variants"], MARKERS * len(report["variants"]), strict=False):
            trained = variant["training"]
            if not trained or not trained["curve"] or variant["role"] == "reference":
                continue
            steps, ndcg = zip(*trained["curve"], strict=True)
            pace = trained["seconds"] / trained["steps"]
            axes.plot([step * pace for step in steps], ndcg, color=colour(variant), alpha=0.8)
            reached = steps.index(trained["converged"]["steps"])
            axes.plot(steps[reached] * pace, ndcg[reached], marker, color=colour(variant), label=label(variant))
        _log(axes)
        axes.set_xlabel("seconds of training (log)")
        axes.set_ylabel("NDCG@10, validation")
        _legend(figure, axes, columns=2)

    return _svg(draw, height=_tall(len(report["variants"]) // 2, beside=2.9))


def is_pruned(report: Json) -> bool:
    """Whether layers of one variant differ, as no recipe builds them, or it was cut from the teacher's evenly."""
    teacher = next(variant for variant in report["variants"] if variant["role"] == "teacher")
    return any(
        len({tuple(layer) for layer in variant["layers"]}) > 1
        or (variant["kind"] == "prune" and variant["layers"] != teacher["layers"])
        for variant in report["variants"]
    )


def kept_layers(report: Json) -> str:
    """Heads and neurons of every layer, darker the more the teacher's share is left."""
    teacher = next(variant for variant in report["variants"] if variant["role"] == "teacher")
    shown = [variant for variant in report["variants"] if variant["role"] != "reference" and variant["layers"]]
    shown = list({str(variant["layers"]): variant for variant in reversed(shown)}.values())[::-1]
    most = [max(layer[unit] for layer in teacher["layers"]) or 1 for unit in (0, 1)]

    def draw(figure: Figure) -> None:
        for place, (unit, title) in enumerate(((0, "attention heads"), (1, "FFN neurons"))):
            axes = figure.add_subplot(1, 2, place + 1)
            for row, variant in enumerate(shown):
                for column, layer in enumerate(variant["layers"]):
                    share = min(1.0, layer[unit] / most[unit])
                    axes.add_patch(
                        Rectangle((column - 0.46, row - 0.42), 0.92, 0.84, color=colour(variant), alpha=share)
                    )
                    axes.text(column, row, str(layer[unit]), ha="center", va="center", color=INK)
            axes.set_xlim(-0.5, max(len(variant["layers"]) for variant in shown) - 0.5)
            axes.set_ylim(-0.5, len(shown) - 0.5)
            axes.set_title(title)
            axes.set_xlabel("layer")
            axes.set_xticks(range(max(len(variant["layers"]) for variant in shown)))
            axes.grid(visible=False)
            if place:
                axes.set_yticks([])
                axes.invert_yaxis()
            else:
                _name_rows(axes, shown)

    return _svg(draw, height=0.9 + 0.36 * len(shown))


def batches(report: Json) -> list[int]:
    """Batch sizes that model time was measured at, smallest first."""
    return sorted({row["batch"] for variant in report["variants"] for row in model_rows(variant)})


def colour(variant: Json) -> str:
    return ROLES["chosen" if variant["chosen"] else variant["role"]]


def label(variant: Json) -> str:
    return f"{variant['name']} (chosen)" if variant["chosen"] else str(variant["name"])


def _reach(centre: float, ends: Sequence[float]) -> list[list[float]]:
    return [[max(centre - ends[0], 0)], [max(ends[1] - centre, 0)]]


def _log(axes: Axes) -> None:
    """A log axis that says 0.5 rather than 5e-1, numbers as there is room for. Call it when limits are set."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1_000 else (1,), numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name_rows(axes: Axes, variants: Sequence[Json]) -> None:
    axes.set_yticks(range(len(variants)), [label(variant) for variant in variants])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, handletextpad=0.4, columnspacing=1.2)


def _tall(rows: int, beside: float = 1.2) -> float:
    """Inches for so many rows of names, of bars or in a legend, which would run into each other, and what is beside."""
    return max(4.1, beside + 0.19 * rows)


def _svg(draw: Callable[[Figure], None], height: float) -> str:
    """Draws, and takes away everything a page does not need: prolog, metadata, addresses, fixed size, ids of groups."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg) (width|height)="[^"]*"', r"\1", re.sub(r' (?:width|height)="[\d.]+pt"', "", svg))
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every chart, and a page's ids are unique
    for stand_in, ink in INKS.items():
        svg = svg.replace(stand_in, ink)
    return svg.strip()
