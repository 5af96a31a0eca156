"""The recipes that ship, the schema that editors complete from, and a check that takes a blink."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compress.recipe import __main__ as command
from compress.recipe import load

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SCHEMA = ROOT / "recipes" / "schema.json"


def say(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["compress.recipe", *map(str, arguments)])
    return command.main()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load(path).stages


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_recipe_leads_editors_to_the_schema(path: Path) -> None:
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert named
    assert (path.parent / named[1]).resolve() == SCHEMA


def test_names_of_shipped_recipes_differ() -> None:
    names = [load(path).name for path in RECIPES]
    assert len(set(names)) == len(names)  # a name is the folder of its runs


def test_the_schema_is_up_to_date(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert say(monkeypatch, "--schema") == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["properties"]["stages"]
    assert printed == SCHEMA.read_text(), "python -m compress.recipe --schema > recipes/schema.json"


def test_valid_recipes_end_with_0_and_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(monkeypatch, *RECIPES) == 0
    assert len(re.findall(r"^\S+\.yaml: .+: valid$", capsys.readouterr().out, re.MULTILINE)) == len(RECIPES)


def test_one_bad_recipe_ends_with_2_and_the_others_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert say(monkeypatch, tmp_path / "none.yaml", RECIPES[0]) == 2
    said = capsys.readouterr()
    assert said.err == f"{tmp_path / 'none.yaml'}: no such recipe\n"
    assert said.out.endswith("valid\n")


def test_a_recipe_is_checked_in_a_blink_and_without_what_trains() -> None:
    line = [sys.executable, "-X", "importtime", "-m", "compress.recipe", *map(str, RECIPES)]
    seconds = []
    for _ in range(5):  # the machine may be busy; one quick run shows that it can be
        started = time.perf_counter()
        ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
        if seconds[-1] < 1:
            break
    imported = {row.rpartition("|")[2].strip().partition(".")[0] for row in ended.stderr.splitlines()}
    assert "yaml" in imported
    assert not imported & {"torch", "transformers", "polars", "numpy", "onnx", "onnxruntime"}
    assert min(seconds) < 1
