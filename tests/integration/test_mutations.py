"""Thousands of accidents to recipes and tables: each is a success, or exit code 2 and one line, never a traceback."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress import artifact
from compress.recipe import Recipe, load
from conftest import ROOT, TINY
from recipes.__main__ import main

SETTINGS = settings(
    max_examples=2000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPRESS_QUIET", "1")  # no progress: what is left on stderr is the error


def outcome(*arguments: str | Path) -> int:
    """The exit code of a command, once it has said as much as it may."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        status = main([*map(str, arguments)])
    assert status in (0, 2)
    assert [bool(line.strip()) for line in said.getvalue().splitlines()] == [True] * (status == 2)
    return status


# --- recipes ---

OWN = """\
name: small
seed: [0, 1]
data: {source: csv, path: ratings.csv, columns: {user: who, rating: stars}, min_rating: 3.5, separator: "\\t"}
stages:
  teacher:
    kind: finetune
    model: {family: bert4rec, hidden_size: 8, num_hidden_layers: 2}
    early_stopping: {patience: 3}
    loss: {kind: gbce, negatives: 8}
  student:
    kind: distill
    teacher: teacher
    model: &student {family: bert4rec, hidden_size: 4, num_hidden_layers: 1}
    losses:
      - {kind: kl, temperature: 2}
      - {kind: hidden, layers: {1: 2}}
  control: {kind: finetune, model: *student, epochs: 3}
  int8: {kind: quantize, input: student}
  served: {kind: export, inputs: [teacher, student, control, int8]}
measure: {export: served, teacher: teacher, control: control, candidates: [student, int8]}
gate:
  quality: {min_low: 0.9}
  latency: {min_speedup: {1: 2}}
"""
RECIPES = [OWN, *(path.read_text() for path in sorted((ROOT / "recipes").rglob("*.yaml")))]

ODD_VALUES = [
    *("", "~", "yes", "-1", "0", "1.5", "1e999", "1e5", ".nan", "-.inf", "9" * 30, "9" * 5000, "0x", "0o9", "1_0"),
    *("1:30", "2020-13-45", "2020-01-01", "=", "<<", "a/b", ".", "a" * 300, "é", "\u202e", "\U0001f642"),
    *("\uff54eacher", "[]", "{}", "[1, 2]", "{a: 1}", "[[[]]]", "{1: 2, one: 3}", "[~]", "*student", "*nobody"),
    *("&x [*x]", "&student 1", "[" * 50, "- a", "? b", "| c", "> c", "# d", "%e", "@f", "`g", "'h", '"i', "!!int x"),
    *("!!timestamp x", "!!binary x", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!float x", "!!null x"),
    *("!!python/name:os.system", "!a b", "!", '"\\0"', '"\\ud800"', '"a\\nb"', '"\\x85"', '"\\u2028"', "\x07"),
    *("\u2028", "\x85", "\ufeff", "\t", "teacher", "student", "served", "measure", "data", "finetune", "distill"),
    *("export", "kl", "hidden", "synthetic", "csv", "parquet", "ml-100k", "online-retail-ii", "true", "null", "-0"),
    *("+1", "1.0", "1e-320"),
]


@st.composite
def mutated_recipes(draw: st.DrawFn) -> bytes:
    """A recipe after one to three accidents."""
    text = draw(st.sampled_from(RECIPES))
    for _ in range(draw(st.integers(1, 3))):
        lines = text.split("\n")
        at, other = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        words = list(re.finditer(r"[^\s:,{}\[\]]+", text))
        match draw(st.sampled_from(["word", "word", "exchange", "delete", "double", "swap", "indent", "cut"])):
            case "word" if words:
                word = draw(st.sampled_from(words))
                text = text[: word.start()] + draw(st.sampled_from(ODD_VALUES)) + text[word.end() :]
                continue
            case "exchange" if words:
                one, two = sorted((draw(st.sampled_from(words)) for _ in range(2)), key=re.Match.start)
                if one != two:
                    between = text[one.end() : two.start()]
                    text = text[: one.start()] + two.group() + between + one.group() + text[two.end() :]
                continue
            case "delete":
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "swap":
                lines[at], lines[other] = lines[other], lines[at]
            case "indent":
                lines[at] = " " * draw(st.integers(0, 6)) + lines[at].lstrip()
            case _:
                lines[at:] = [lines[at][: draw(st.integers(0, len(lines[at])))]]
        text = "\n".join(lines)
    return draw(damaged(text.encode()))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Every third time with some bytes inserted or a bit turned."""
    damage = draw(st.sampled_from(["none", "none", "none", "none", "insert", "turn"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if damage == "insert":
        return content[:at] + draw(st.binary(max_size=4)) + content[at:]
    if damage == "turn" and content:
        return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
    return content


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """Now and then a `--set`."""
    keys = ["seed", "name", "data", "data.path", "stages", "stages.student.epochs", "stages.teacher.model", "measure.x"]
    if draw(st.integers(0, 4)):
        return []
    return [
        "--set",
        draw(st.sampled_from(keys))
        + draw(st.sampled_from(["=", "=", "=", ".a=", ""]))
        + draw(st.sampled_from(ODD_VALUES)),
    ]


@SETTINGS
@given(content=mutated_recipes(), more=overrides())
def test_a_mutated_recipe_is_a_plan_or_one_line(tmp_path: Path, content: bytes, more: list[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    (tmp_path / "ratings.csv").touch()
    if outcome(path, *more, "--plan", "--runs", tmp_path / "runs") == 0:
        recipe = load(path, more[1:])
        assert Recipe.model_validate(recipe.model_dump(by_alias=True)) == recipe


# --- tables ---

HEADER = ["user_id", "item_id", "timestamp", "stars", "title"]
ROWS = [
    [f"u{user}", str(item), str(1_700_000_000 + 60 * item), str(1 + (user + item) % 5), f'"No. {item}, the ""best"""']
    for user in range(14)
    for item in range(13)
    if (user + item) % 4
]
ODD_CELLS = [
    *("", " ", '"', '""', '"""', '"a', 'a"b', "'", ",", ";", "\t", "\n", "\r", "\r\n", "\0", "\\", "\x1a", "\x85"),
    *("\u2028", "nan", "NaN", "inf", "-inf", "null", "None", "NULL", "-", "1e999", "1e18", "1e19", "-1e-320"),
    *("0x10", "1_000", "٣", "9" * 19, "9" * 40, "9" * 400, "9223372036854775807", "-9223372036854775808"),
    *("9007199254740993", "1.5", "-0.0", "2024-01-31", "2024-02-30", "2024-01-31T24:00", "2024-W05-3", "0001-01-01"),
    *("9999-12-31T23:59:59.999999+00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-23:59", "31.01.2024"),
    *("20240131", "2024-01-31T10:00+99:00", "now", "2024-01-31T10:00:00Z", "2024-01-31 10:00:00.123456789", "é"),
    *("\U0001f642", "\ud7ff", "x" * 5000, "=1+1", "#", "u1", "3"),
]
ODD_NAMES = [
    *("", "user_id", "userid", "USER_ID", " user_id", "item_id", "timestamp", '"timestamp"', "\ufeffuser_id", "é"),
    *("a\nb",),
]


@st.composite
def mutated_tables(draw: st.DrawFn) -> bytes:
    """A CSV file after one to four accidents."""
    header = list(HEADER)
    rows = [list(row) for row in ROWS]
    separator, line_break, encoding, start = ",", "\n", "utf-8", ""
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.integers(0, len(rows) - 1)) if rows else 0
        column = draw(st.integers(0, len(HEADER) - 1))
        accidents = [
            "cell",
            "cell",
            "cell",
            "column",
            "short",
            "long",
            "name",
            "drop",
            "double",
            "few",
            "none",
            "format",
        ]
        match draw(st.sampled_from(accidents)):
            case "cell" if rows and column < len(rows[row]):
                rows[row][column] = draw(st.sampled_from(ODD_CELLS))
            case "column":
                cell = draw(st.sampled_from(ODD_CELLS))
                rows = [[*each[:column], cell, *each[column + 1 :]] for each in rows]
            case "short" if rows:
                del rows[row][column:]
            case "long" if rows:
                rows[row] += draw(st.lists(st.sampled_from(ODD_CELLS), min_size=1, max_size=3))
            case "name" if column < len(header):
                header[column] = draw(st.sampled_from(ODD_NAMES))
            case "drop" if column < len(header):
                del header[column]
                rows = [each[:column] + each[column + 1 :] for each in rows]
            case "double" if rows:
                rows.insert(row, list(rows[row]))
            case "few":
                rows = rows[:row]
            case "none":
                header = draw(st.sampled_from([[], header]))
            case _:
                separator = draw(st.sampled_from([",", ",", ";", "\t", " ", ",,"]))
                line_break = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n", " \n"]))
                encoding = draw(st.sampled_from(["utf-8", "utf-8", "latin-1", "utf-16", "utf-32"]))
                start = draw(st.sampled_from(["", "\ufeff", "\n", "# exported\n", "\0", "sep=,\n"]))
    lines = [separator.join(each) for each in ([header] if header else []) + rows]
    text = start + line_break.join(lines) + draw(st.sampled_from([line_break, ""]))
    content = draw(damaged(text.encode(encoding, errors="replace")))
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


DATA = (
    "data={{source: csv, path: {path}, columns: {{rating: stars, text: title}}, min_rating: {rating}, "
    "min_interactions: 3}}"
)


@SETTINGS
@given(content=mutated_tables(), rating=st.sampled_from(["null", "0", "2"]))
def test_a_mutated_table_is_prepared_or_one_line(tmp_path: Path, content: bytes, rating: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    override = DATA.format(path=path, rating=rating)
    if outcome(TINY, "--set", override, "--runs", tmp_path / "runs", "--only", "data", "--one-process", "--force") == 0:
        assert artifact.read(tmp_path / "runs" / "tiny" / "data").metrics["users"] > 0


def test_an_undamaged_table_is_prepared(tmp_path: Path) -> None:
    """Else the test above would only see errors."""
    path = tmp_path / "table.csv"
    path.write_text("\n".join(map(",".join, [HEADER, *ROWS])))
    override = DATA.format(path=path, rating="null")
    assert outcome(TINY, "--set", override, "--runs", tmp_path / "runs", "--only", "data", "--one-process") == 0
