"""A report of a GPU, made up by hand, on its pages; and the documents' table is that of the results."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import pages
from benchmarks.gpu.run import RESULTS
from conftest import ROOT


def timing(batch: int, length: int | None, p50: float, ratio: float) -> dict[str, Any]:
    return {
        "batch": batch,
        "length": length,
        "p50_ms": p50,
        "p95_ms": 2 * p50,
        "samples": 100,
        "users_per_second": batch / p50 * 1e3,
        "speedup": {"ratio": ratio, "ci95": [0.9 * ratio, 1.1 * ratio]},
        "flops": 10**6,
        "peak_bytes": 3 * 2**20,
        "device_ms": p50 / 2,
        "peak_share": 0.125,
        "copy_share": None,
        "replayed": None,
    }


def row(model: str, runtime: str, precision: str, how: str, *timings: dict[str, Any], ratio: float) -> dict[str, Any]:
    return {
        "name": f"{model} · {runtime} {precision} · {how}",
        "model": model,
        "weights_of": model,
        "runtime": runtime,
        "precision": precision,
        "how": how,
        "prepare_ms": 0.0,
        "load_ms": 20.0,
        "first_request_ms": 1500.0,
        "weights_bytes": 2**20,
        "memory_bytes": 5 * 2**20,
        "ndcg@10": {"mean": 0.12 * ratio, "ci95": [0.1, 0.14]},
        "vs_reference": {"ndcg@10": {"ratio": ratio, "ci95": [ratio - 0.05, ratio + 0.05]}, "overlap@10": 0.85},
        "timings": list(timings),
    }


EAGER, FAST = "teacher · torch fp32 · plain, eager", "student · tensorrt fp16 · CUDA graphs"


@pytest.fixture
def report() -> dict[str, Any]:
    rows = [
        row("teacher", "torch", "fp32", "plain, eager", timing(1, None, 1, 1), timing(512, None, 40, 1), ratio=1),
        row("teacher", "torch", "fp16", "plain, eager", timing(1, None, 1, 1), timing(512, None, 20, 2), ratio=1),
        row("student", "torch", "fp16", "served", timing(1, None, 0.2, 5), timing(512, None, 2, 20), ratio=0.98),
        row("student", "tensorrt", "fp16", "CUDA graphs", timing(1, None, 0.05, 20), timing(512, None, 1, 40), ratio=1),
    ]
    bar = {"row": FAST, "required": 10.0, "ratio": 20.0, "ci95": [18.0, 22.0], "passed": True}
    int8 = {"row": "student|int8", "over": FAST, "batch": 1, "length": None, "ratio": 1.0, "ci95": [0.9, 1.1]}
    return {
        "recipe": "mine",
        "commit": "abc",
        "command": "python -m benchmarks.gpu mine.yaml",
        "machine": {"device": "cuda", "gpu": "NVIDIA Tiny 42", "driver": "600", "versions": {"torch": "2.13.0"}},
        "states": [{"after": "peaks", "SM clock MHz": "1980"}],
        "peaks": {"tflops": {"fp16": 700.0}, "copy_gb_per_s": 3000.0},
        "users": 943,
        "reference": EAGER,
        "rows": rows,
        "left_out": [{"row": "teacher · onnxruntime fp32 · IO binding", "why": "no CUDA <here>"}],
        "bars": [bar | {"name": "p50, batch 1"}, bar | {"name": "users a second, batch 512"}],
        "beside": [{"row": FAST, "over": rows[1]["name"], "batch": 1, "ratio": 20.0, "ci95": [18.0, 22.0]}],
        "int8": [int8 | {"pays": None, "bytes_ratio": 2.0}],
        "seconds": 321.4,
    }


def test_the_page_has_every_number(report: dict[str, Any]) -> None:
    page = pages.markdown(report)
    assert page.startswith(
        "# mine on NVIDIA Tiny 42\n\n943 test users · `python -m benchmarks.gpu mine.yaml` · commit abc"
    )
    assert "**PASSED: 2 of 2 bars**" in page
    for line in (
        f"| p50, batch 1 | {FAST} | 10x | 20.0x [18.0, 22.0] | passed | 1.000 [0.950, 1.050] | 0.850 |",
        f"| {FAST} | 0.1200 [0.1000, 0.1400] | 1.000 [0.950, 1.050] | 0.850 |",
        f"| {EAGER} | 0.1200 [0.1000, 0.1400] |  |  |",
        f"| {EAGER} | 1.00 | 2.00 | 0.500 | 1,000 |  | 12.50% |  | 3.00 |",
        f"| {FAST} | 1.00 | 2.00 | 0.500 | 512,000 | 40.0x [36.0, 44.0] | 12.50% |  | 3.00 |",
        f"| student\\|int8 | {FAST} | 1 | any | 1.00x [0.900, 1.10] | 2.00x | not clear |",
        f"| {FAST} | 0 | 20 | 1,500 | 1.00 | 5.00 |",
        "| product, fp16 | 700 TFLOP/s |",
        "| teacher · onnxruntime fp32 · IO binding | no CUDA <here> |",
        "| after peaks | SM clock MHz 1980 |",
    ):
        assert line in page


def test_a_row_whose_engine_could_not_be_recorded_says_so(report: dict[str, Any]) -> None:
    report["rows"][3]["timings"][0]["replayed"], report["rows"][3]["timings"][1]["replayed"] = False, True
    page = pages.markdown(report)
    assert f"| {FAST}, not recorded | 0.0500 |" in page
    assert f"| {FAST} | 1.00 |" in page


def test_a_row_that_was_not_timed_for_a_shape_is_not_in_its_table(report: dict[str, Any]) -> None:
    del report["rows"][3]["timings"][1]
    tables = {table.title: table for table in pages.tables(report)}
    assert [len(tables[f"Batch {batch}, histories as they are"].rows) for batch in (1, 512)] == [4, 3]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "PASSED: 2 of 2 bars"),
        ({"passed": False}, "FAILED: 1 of 2 bars"),
        ({"passed": False, "ratio": None, "ci95": None}, "FAILED: 1 of 2 bars"),
        (None, "NO VERDICT: no student that keeps 90% of NDCG@10 was timed beside the teacher"),
    ],
)
def test_the_verdict_is_the_bars(report: dict[str, Any], change: dict[str, Any] | None, verdict: str) -> None:
    report["bars"] = [] if change is None else [report["bars"][0], report["bars"][1] | change]
    assert pages.verdict(report) == verdict
    assert verdict in pages.html(report)
    assert ("not timed" in pages.markdown(report)) == bool(change and "ratio" in change)


class Tags(HTMLParser):
    """Which tags are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_html_page_is_whole_and_escaped(report: dict[str, Any]) -> None:
    page = pages.html(report)
    reader = Tags()
    reader.feed(page)
    assert not reader.open
    assert "no CUDA <here>" in reader.text
    assert "PASSED: 2 of 2 bars" in reader.text
    assert page.count('class="gate good"') == 2
    assert page.count('class="chosen"') >= 3


def stored(results: Path, report: dict[str, Any]) -> None:
    folder = results / pages.slug(report)
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))


def test_the_summary_has_the_first_row_and_the_fastest_of_each_model(tmp_path: Path, report: dict[str, Any]) -> None:
    stored(tmp_path, report)
    summary = pages.summary(tmp_path)
    assert [line.split(" | ")[0] for line in summary.splitlines() if " · " in line and line.startswith("| ")] == [
        f"| {EAGER}",
        f"| {report['rows'][1]['name']}",
        f"| {FAST}",
    ]
    assert f"| {FAST} | 1.000 [0.950, 1.050] | 0.0500 | 20.0x | 1.00 | 40.0x | 512,000 |" in summary
    assert "benchmarks/results/nvidia-tiny-42/mine/report.md" in summary


def test_a_try_out_on_a_cpu_is_no_result(tmp_path: Path, report: dict[str, Any]) -> None:
    tried = copy.deepcopy(report)
    tried["machine"] = {"device": "cpu", "versions": {}}
    stored(tmp_path, tried)
    assert pages.summary(tmp_path) == pages.NOTHING
    assert pages.verdict(tried).startswith("NOT A RESULT")


def test_a_page_keeps_what_stands_around_the_summary(tmp_path: Path, report: dict[str, Any]) -> None:
    page = f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n"
    stored(tmp_path, report)
    once = pages.with_summary(page, tmp_path, "../")
    assert once.startswith(f"before\n{pages.BEGIN}\n### mine on NVIDIA Tiny 42\n")
    assert once.endswith(f"{pages.END}\nafter\n")
    assert "old" not in once
    assert "](../benchmarks/results/" in once
    assert pages.with_summary(once, tmp_path, "../") == once


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_the_documents_table_is_that_of_the_results(page: Path) -> None:
    """Else `python -m benchmarks.gpu.pages` writes it."""
    text = page.read_text(encoding="utf-8")
    assert text.count(pages.BEGIN) == text.count(pages.END) == 1
    base = "../" * (len(page.relative_to(ROOT).parts) - 1)
    assert text == pages.with_summary(text, RESULTS, base)
