"""Labelled data through whole recipes: the plain CSV of clicks, search and advertising, by one family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data.texts import Texts
from conftest import ROOT, recpress
from deploy.recommender import Recommender, Request

COLORS, THINGS = ("red", "blue"), ("mug", "lamp", "chair", "clock", "shirt", "book")

RECIPE = """\
name: clicks
seed: 0
data:
  source: csv
  path: clicks.csv
  columns: {timestamp: null, rating: label}
  positive_rating: 1
  split: time
  held_out: 0.15
  min_interactions: 1
TABLES
stages:
  texts: {kind: tokenize, tokenizer: {vocab_size: 120}, TEMPLATES}
  teacher:
    kind: finetune
    model: {family: cross_encoder, texts: texts, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
      max_length: 32, dropout: 0.0}
    epochs: 12
    batch_size: 16
    learning_rate: 4.0e-3
    loss: {kind: bce}
  served: {kind: export, inputs: [teacher], top_k: 24}
measure:
  {export: served, teacher: teacher, candidates: [teacher], batch_sizes: [1], rounds: 20, seconds: 0.2, threads: 1}
"""


def ran(folder: Path, tables: str, templates: str) -> tuple[dict[str, Any], Recommender]:
    """The report of a recipe that ran to its end, and what it would serve."""
    (folder / "recipe.yaml").write_text(RECIPE.replace("TABLES", tables).replace("TEMPLATES", templates))
    ended = recpress(folder / "recipe.yaml", "--runs", folder / "runs", "--one-process")
    assert ended.returncode == 0, ended.stderr[-3000:]
    report = json.loads((folder / "runs" / "clicks" / "report" / "report.json").read_text())
    return report, Recommender.load(folder / "runs" / "clicks" / "seed-0" / "served" / "teacher")


def write_clicks(folder: Path, wants: Any, rows: int = 900) -> None:
    """Users 0 to 59 are asked about any of 24 things, each at most once; `wants(user, item)` says what they say."""
    random = np.random.default_rng(0)
    pairs = random.permutation([(user, item) for user in range(60) for item in range(24)])[:rows]
    lines = [f"{user},{item},{int(wants(user, item))}" for user, item in pairs.tolist()]
    (folder / "clicks.csv").write_text("\n".join(["user_id,item_id,label", *lines]))


def write_items(folder: Path) -> None:
    lines = [f"{item},{COLORS[item % 2]} {THINGS[item // 4]}" for item in range(24)]
    (folder / "items.csv").write_text("\n".join(["item_id,text", *lines]))


def test_search_ranks_items_by_a_query_it_was_never_asked_by_this_user(tmp_path: Path) -> None:
    """A search is a user of its own, whose query is what is known of it."""
    write_items(tmp_path)
    queries = "\n".join(f"{user},{COLORS[user % 2]} please" for user in range(60))
    (tmp_path / "users.csv").write_text(f"user_id,query\n{queries}\n")
    write_clicks(tmp_path, lambda user, item: user % 2 == item % 2)
    report, recommender = ran(tmp_path, "  items: items.csv\n  users: users.csv", 'user: "{query}", history: {last: 0}')
    (eager, served) = report["variants"]
    assert served["prediction"]["auc"] > 0.9
    assert served["quality"]["auc"]["mean"] > 0.9
    assert served["prediction"]["log_loss"] == pytest.approx(eager["prediction"]["log_loss"], abs=1e-4)
    for place, color in enumerate(COLORS):
        answer = recommender.answer([Request([], 6, attributes={"query": f"{color} please", "unknown": "x"})])[0]
        assert {int(item) % 2 for item, _ in answer} == {place}
    popular = recommender.top_k([], k=3)
    assert recommender.answer([Request([], 3, attributes={"query": ""})])[0] == popular  # nothing is known
    assert all(0 <= score <= 1 for _, score in popular)


def test_advertising_is_for_people_of_whom_attributes_are_known_beside_what_they_liked(tmp_path: Path) -> None:
    write_items(tmp_path)
    ages = "\n".join(f"{user},{('young', 'old')[user % 2]}" for user in range(60))
    (tmp_path / "users.csv").write_text(f"user_id,age\n{ages}\n")
    write_clicks(tmp_path, lambda user, item: user % 2 or item < 12)  # the old want all of it
    report, recommender = ran(tmp_path, "  items: items.csv\n  users: users.csv", 'user: "{age}", history: {last: 2}')
    assert report["variants"][1]["prediction"]["auc"] > 0.9
    young, old = recommender.answer([Request([], 24, attributes={"age": age}) for age in ("young", "old")])
    assert {int(item) for item, _ in young[:12]} == set(range(12))
    scores = [np.array([score for item, score in sorted(answer)]) for answer in (young, old)]
    assert (scores[1] > 0).all()  # log odds
    assert ((scores[0] > 0) == (scores[1] > 0)).sum() == 12
    texts = Texts.load(tmp_path / "runs" / "clicks" / "seed-0" / "served" / "teacher")
    (known,) = texts.attributes([{"age": "young"}])
    assert len(known) == 1  # thirty are


def test_words_of_few_users_are_in_no_vocabulary(tmp_path: Path) -> None:
    write_items(tmp_path)
    names = "\n".join(f"{user},{('rome', 'oslo')[user % 2]} {chr(97 + user % 20)}smith" for user in range(60))
    (tmp_path / "users.csv").write_text(f"user_id,who\n{names}\n")
    write_clicks(tmp_path, lambda user, item: item < 12)
    (tmp_path / "recipe.yaml").write_text(
        RECIPE.replace("TABLES", "  items: items.csv\n  users: users.csv").replace("TEMPLATES", 'user: "{who}"')
    )
    ended = recpress(tmp_path / "recipe.yaml", "--runs", tmp_path / "runs", module="compress.tokenize")
    assert ended.returncode == 0, ended.stderr
    words = (tmp_path / "runs" / "clicks" / "seed-0" / "texts" / "tokenizer.json").read_text()
    assert "rome" in words
    assert "smith" not in words


def test_ids_are_the_texts_where_there_are_no_others(tmp_path: Path) -> None:
    write_clicks(tmp_path, lambda user, item: user % 2 == item % 2, rows=1_200)
    report, recommender = ran(tmp_path, "", 'item: "item{item_id}", history: {item: "item{item_id}", last: 3}')
    served = report["variants"][1]
    assert served["prediction"]["auc"] > 0.8
    eager = report["variants"][0]["prediction"]  # equal pairs tie in one and not in the other: AUC may differ
    assert served["prediction"]["log_loss"] == pytest.approx(eager["log_loss"], abs=1e-4)
    answer = recommender.top_k(["3", "5", "7"], k=5)
    assert sum(int(item) % 2 for item, _ in answer) >= 4


def test_the_tiny_recipe_ends_with_a_report(tmp_path: Path) -> None:
    changes = {"data.users": "80", "measure.batch_sizes": "[1]", "measure.seconds": "0.2", "measure.threads": "1"}
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    ended = recpress(ROOT / "recipes" / "tiny_ctr.yaml", "--runs", tmp_path, "--one-process", *sets)
    assert ended.returncode in (0, 3), ended.stderr[-3000:]
    page = Path(ended.stdout.split()[-1])
    assert "Prediction of labels" in page.read_text()
    report = json.loads((page.parent / "report.json").read_text())
    assert {"auc", "log_loss", "calibration_error", "f1-score"} < set(report["variants"][0]["prediction"])
    assert set(report["baselines"]["tfidf"]["quality"]) == {"ndcg@10", "recall@10", "mrr@10", "recall@100", "auc"}
