"""Pages of a report: for a terminal, for people, for a network that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import pages, plots
from compress.recipe.judging import GateSection, LatencyGate
from report_fakes import INVARIANCE, LAYERS, NAMES, Judged, chosen, draw_html, variant


def test_the_pages_say_that_int8_does_not_pay_and_who_lost(judged: Judged) -> None:
    slow = judged({"ms": {"int8": 0.30}, "size_bytes": {"table8": 950_000}})
    line = "int8 does not pay here: time over that of student, in floating point: int8 1.54x"
    assert (chosen(slow), slow["choice"]["int8"]) == ("student", line)
    assert line in pages.terminal(slow)
    assert line in pages.markdown(slow)
    assert line in draw_html(slow)
    assert "| int8 | 0.9825 | 0.714 | 1.54x | 0.300 | slower |" in pages.markdown(slow)
    paying = judged()
    assert chosen(paying) == "int8"
    assert paying["choice"]["int8"] is None
    assert "does not pay" not in pages.terminal(paying) + pages.markdown(paying) + draw_html(paying)


def test_what_company_does_to_int8_answers_is_a_table(judged: Judged) -> None:
    made = judged({}, {})
    assert variant(made, "int8")["invariance"] == INVARIANCE["int8"]
    assert variant(made, "student")["invariance"] is None
    assert "| int8 (chosen) | 9 | 75.0% | 0.980 | 62.5% | 0.970 |" in pages.markdown(made)


def test_pages_say_who_is_served_with_what_and_how_fast(judged: Judged) -> None:
    text = pages.markdown(judged())
    assert re.search(r"\| history 41-80 \| 40 \| 0\.800 \[0\.\d{3}, 0\.\d{3}\] \| 0\.5000 \|", text)
    assert "| history 81-120 | 40 | the teacher hits nothing | 0.0000 |" in text
    assert "| popularity | 0.9% |" in text
    assert "| int8 (chosen) | 1 | 2 | none | 4,321* (48.7 ms) |" in text


def test_the_page_asks_nothing_of_the_network_and_names_every_variant(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = judged()
    folder = tmp_path / "run" / "report"
    monkeypatch.setattr(pages, "html", draw_html)
    pages.write(made, folder)
    page = (folder / "report.html").read_text()
    assert "://" not in page
    assert not re.search(r"<script|<link|<img|@import|src=", page)
    assert page.count("<svg") == 4
    assert "Learning curves" in page
    assert "A &lt;fast&gt; one" in page
    for text in (page, (folder / "report.md").read_text(), (folder / "summary.txt").read_text()):
        assert "secret" not in text
        for name in (*NAMES, "popularity", "markov"):
            assert name in text


def test_pages_are_the_same_every_time(judged: Judged) -> None:
    made = judged()
    assert draw_html(made) == draw_html(made)


def test_the_terminal_table_fits_a_terminal(judged: Judged) -> None:
    made = judged({"test": {"markov": 90}}, gate=GateSection(latency=LatencyGate(min_speedup={1: 2, 64: 2})))
    for row in made["variants"]:
        row["name"] = row["name"] + "-" * 40
    text = pages.terminal(made)
    assert max(map(len, text.splitlines())) <= 100
    assert "* int8---" in text
    assert "FAIL  speedup over teacher-eager, batch 64" in text
    assert "FAILED: 1 of 2 gates" in text
    assert "WARNING: the teacher ranks below the Markov chain" in text


def test_what_is_only_timed_as_a_whole_is_drawn_and_listed_with_that(judged: Judged) -> None:
    made = judged()
    (whole,) = (row for row in made["variants"] if row["name"] == "control")
    whole["latency_ms"] = [row | {"p50": 12.5} for row in whole["latency_ms"] if row["scope"] == "request"]
    assert whole["latency_ms"]
    (line,) = (line for line in pages.terminal(made).splitlines() if line.split()[:1] == ["control"])
    assert "12.5" in line
    assert "control" in plots.quality_against_latency(made)
    assert "control" in plots.latency_percentiles(made)


def test_a_pruned_model_has_a_picture_of_what_stays(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    title = "What stays of each layer"
    made = judged()
    assert title not in draw_html(made)
    monkeypatch.setitem(LAYERS, "student", [[1, 37], [2, 11]])
    pruned = draw_html(judged())
    assert title in pruned
    assert ">37<" in pruned
    assert ">11<" in pruned


@pytest.mark.parametrize("left", [[[2, 64]], [[1, 64], [1, 64]], [[2, 32], [2, 32]]])
def test_so_has_one_that_lost_layers_or_was_cut_evenly(judged: Judged, left: list[list[int]]) -> None:
    made = judged()
    (row,) = (row for row in made["variants"] if row["name"] == "student")
    row["layers"] = left
    assert not plots.is_pruned(made), "a student may be built so"
    row["kind"] = "prune"
    assert plots.is_pruned(made)
    row["layers"] = LAYERS["teacher"]
    assert not plots.is_pruned(made), "its vocabulary alone was cut"
