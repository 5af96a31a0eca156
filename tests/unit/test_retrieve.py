"""The retrieve stage: a few unseen items of each user, best first, and how often the target is among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import fakes
import text_fakes
from compress import retrieve
from compress.artifact import Artifact
from compress.baselines import Markov, MarkovChain, tune_markov
from compress.data.histories import Asked, Recommend
from compress.data.interactions import CANDIDATES, PARTS, REHEARSALS, TRAIN, Interactions
from compress.errors import DataError
from compress.evaluation import plain, recommend_all
from compress.models.bert4rec import Bert4Rec
from compress.recipe.texts import RetrieveSection
from compress.stage import Workspace

ITEMS, LISTED = 40, 12
Inputs = Mapping[str, Artifact]


@pytest.fixture(scope="module")
def people() -> Interactions:
    """Everybody goes round the catalogue, each from another item on and now and then leaving one out."""
    random = np.random.default_rng(0)
    steps = [np.cumsum(random.choice([1, 1, 1, 2], size=random.integers(4, 15))) for _ in range(30)]
    return fakes.interactions_of([((user + path) % ITEMS).tolist() for user, path in enumerate(steps)], ITEMS)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, people: Interactions) -> Inputs:
    """The data, and a model that ranks the catalogue."""
    folder = tmp_path_factory.mktemp("inputs")
    ranker = folder / "ranker"
    ranker.mkdir()
    Bert4Rec().save(fakes.tiny_model(items=ITEMS), ranker / "model")
    data = text_fakes.data(folder / "data", text_fakes.table(ITEMS), people)
    return {"data": data, "ranker": text_fakes.stored(ranker, "finetune", "ranker")}


def run(folder: Path, inputs: Inputs, by: str, candidates: int = LISTED) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The stage's table and what it says."""
    folder.mkdir(exist_ok=True)
    section = RetrieveSection(kind="retrieve", by=by, candidates=candidates)
    metrics = retrieve.run(section, inputs, Workspace(folder, seed=0))
    return pl.read_parquet(folder / CANDIDATES), metrics


def listed(table: pl.DataFrame, part: str | int, user: int) -> list[int]:
    """A user's list, of a split or of the training part."""
    number = part if isinstance(part, int) else PARTS[part]  # type: ignore[index]
    return table.filter((pl.col("part") == number) & (pl.col("user") == user))["item"].to_list()


def retriever(by: str, people: Interactions) -> Recommend:
    """What the stage asks."""
    if by == "markov":
        return tune_markov(people, LISTED)[1]
    return plain(Bert4Rec(), fakes.tiny_model(items=ITEMS), LISTED)


BY = pytest.mark.parametrize("by", ["markov", "ranker"])


@BY
def test_lists_are_the_best_unseen_items_best_first(
    tmp_path: Path, inputs: Inputs, people: Interactions, by: str
) -> None:
    table, _ = run(tmp_path, inputs, by)
    for split in PARTS:
        top = recommend_all(retriever(by, people), people, split)
        for user in range(people.user_count):
            found = listed(table, split, user)
            assert found == top[user].tolist()
            assert len(set(found)) == LISTED
            assert not set(found) & set(people.history(split, user).tolist())


@BY
def test_what_is_stated_is_a_recount(tmp_path: Path, inputs: Inputs, people: Interactions, by: str) -> None:
    table, metrics = run(tmp_path, inputs, by)
    for split in PARTS:
        lists = [listed(table, split, user) for user in range(people.user_count)]
        targets = people.targets(split).tolist()
        among = [target in few for few, target in zip(lists, targets, strict=True)]
        ranks = [few.index(target) for few, target in zip(lists, targets, strict=True) if target in few[:10]]
        ndcg = sum(1 / np.log2(rank + 2) for rank in ranks) / len(targets)
        assert metrics[split] == {
            "recall": pytest.approx(np.mean(among), abs=1e-6),
            "ndcg@10": pytest.approx(ndcg, abs=1e-6),
        }
        assert 0 < np.mean(among) < 1, "some are found and some are not"


@BY
def test_training_has_lists_of_what_would_be_guessed_instead_of_its_last_item(
    tmp_path: Path, inputs: Inputs, people: Interactions, by: str
) -> None:
    table, _ = run(tmp_path, inputs, by)
    recommend = retriever(by, people)
    for user in range(people.user_count):
        train, found = people.train(user), listed(table, TRAIN, user)
        if len(train) < 2:
            assert found == []
            continue
        assert found == recommend(Asked([train[:-1]], [train]))[0].tolist()
        assert not set(found) & set(train.tolist())
        assert len(set(found)) == LISTED


def test_what_is_found_for_training_depends_on_no_held_out_item(tmp_path: Path, people: Interactions) -> None:
    other = replace(people, items=people.items.copy())
    other.items[people.parts != TRAIN] = (other.items[people.parts != TRAIN] + 17) % ITEMS
    ranker = tmp_path / "ranker"
    ranker.mkdir()
    Bert4Rec().save(fakes.tiny_model(items=ITEMS), ranker / "model")
    model = text_fakes.stored(ranker, "finetune", "ranker")
    tables = []
    for name, those in (("one", people), ("other", other)):
        data = text_fakes.data(tmp_path / name, text_fakes.table(ITEMS), those)
        tables.append(run(tmp_path / f"{name}-lists", {"data": data, "ranker": model}, "ranker")[0])
    one, another = (table.filter(pl.col("part") == TRAIN) for table in tables)
    assert one.equals(another)
    assert not tables[0].equals(tables[1])


def test_the_chains_parameters_are_stated(tmp_path: Path, inputs: Inputs, people: Interactions) -> None:
    _, metrics = run(tmp_path, inputs, "markov")
    assert metrics["candidates"] == LISTED
    assert metrics["markov"] == tune_markov(people, LISTED)[0].as_dict()


@BY
def test_later_stages_are_judged_on_the_lists(tmp_path: Path, inputs: Inputs, people: Interactions, by: str) -> None:
    table, metrics = run(tmp_path / "lists", inputs, by)
    lists = text_fakes.stored(tmp_path / "lists", "retrieve", "lists")
    judged = Interactions.of({"data": inputs["data"], "lists": lists})
    assert judged.candidates
    assert judged.retrieved is not None
    for user in range(people.user_count):
        assert judged.retrieved[user].tolist() == listed(table, TRAIN, user)
    for split in ("validation", "test"):
        for user in range(people.user_count):
            few = listed(table, split, user)
            assert judged.candidates[split][user].tolist() == few
            assert np.setdiff1d(np.arange(ITEMS), judged.excluded(split, user)).tolist() == sorted(few)
        assert judged.within_reach(split).mean() == pytest.approx(metrics[split]["recall"], abs=1e-6)


def test_who_has_seen_nearly_everything_is_listed_no_seen_item(tmp_path: Path) -> None:
    people = fakes.interactions(users=8, items=20, shortest=14, longest=18)  # 2 to 8 are left, and 11 are asked for
    data = text_fakes.data(tmp_path / "data", text_fakes.table(20), people)
    table, _ = run(tmp_path / "lists", {"data": data}, "markov", candidates=11)
    for split in ("validation", "test"):
        for user in range(people.user_count):
            assert not set(listed(table, split, user)) & set(people.history(split, user).tolist())
    for user in range(people.user_count):
        assert not set(listed(table, TRAIN, user)) & set(people.train(user).tolist())


def test_lists_that_the_data_gives_already_are_one_line(tmp_path: Path, inputs: Inputs, people: Interactions) -> None:
    source = text_fakes.data(tmp_path / "data", text_fakes.table(ITEMS), people)
    given = pl.DataFrame({"user": np.repeat(np.arange(30), 20), "item": np.tile(np.arange(20), 30)})
    given.cast(pl.Int32).write_parquet(source.folder / CANDIDATES)
    with pytest.raises(DataError, match=r"^data.candidates: [^\n]*$"):
        run(tmp_path / "lists", {"data": source}, "markov")


@pytest.mark.parametrize("candidates", [40, 100])
def test_no_more_candidates_than_there_are_items_is_one_line(tmp_path: Path, inputs: Inputs, candidates: int) -> None:
    with pytest.raises(DataError, match=rf"^candidates: {candidates} of a catalogue of 40 items$"):
        run(tmp_path, inputs, "markov", candidates)


@BY
def test_scores_are_the_rankers_own_and_fall(tmp_path: Path, inputs: Inputs, people: Interactions, by: str) -> None:
    table, metrics = run(tmp_path, inputs, by)
    for split, part in PARTS.items():
        for user in range(people.user_count):
            scores = table.filter((pl.col("part") == part) & (pl.col("user") == user))["score"].to_list()
            assert scores == sorted(scores, reverse=True)
        users = people.users(split)
        asked = people.judged_on(tmp_path).asked(split, users)
        assert asked.first_stage is not None
        if by == "markov":
            every = np.log(np.maximum(MarkovChain(people).score(Markov(**metrics["markov"]))(asked), 1e-30))
        else:
            with torch.no_grad():
                every = Bert4Rec().score(fakes.tiny_model(items=ITEMS), asked).numpy()
        for row, found in enumerate(asked.first_stage):
            assert len(found) == LISTED
            assert [every[row, item] for item in found] == pytest.approx(list(found.values()), abs=1e-4)


def rehearse(folder: Path, people: Interactions, count: int) -> tuple[pl.DataFrame, dict[str, Any]]:
    data = text_fakes.data(folder / "data", text_fakes.table(ITEMS), people)
    section = RetrieveSection(kind="retrieve", by="markov", candidates=LISTED, rehearsals=count)
    metrics = retrieve.run(section, {"data": data}, Workspace(folder, seed=0))
    return pl.read_parquet(folder / REHEARSALS), metrics


def test_rehearsals_are_what_a_chain_finds_that_has_not_seen_what_it_is_asked_about(
    tmp_path: Path, people: Interactions
) -> None:
    table, metrics = rehearse(tmp_path, people, 3)
    chain = MarkovChain(people.without_latest(3)).recommend(Markov(**metrics["markov"]), LISTED)
    found = {key: own["item"].to_list() for key, own in table.group_by("user", "place", maintain_order=True)}
    assert metrics["rehearsals"] == len(found) > people.user_count
    for user in range(people.user_count):
        train = people.train(user)
        for place in range(max(1, len(train) - 3), len(train)):
            others = train[train != train[place]]
            expected = chain(Asked([train[:place]], [others]))[0].tolist()
            assert found.get((user, place)) == (expected if train[place] in expected else None)
    assert {place for _, place in found} <= set(range(1, people.user_count))


def test_rehearsals_do_not_change_with_what_others_rehearse(tmp_path: Path, people: Interactions) -> None:
    """Nor with what is held out: a chain that had seen either would find it first."""
    late = np.flatnonzero(people.without_latest(2).parts != TRAIN)
    other = replace(people, items=people.items.copy())
    kept = people.offsets[1]  # user 0 stays as it is
    other.items[late[late >= kept]] = (other.items[late[late >= kept]] + 19) % ITEMS
    parameters = {"window": 3, "items": 3, "smoothing": 20.0, "decay": 0.7}
    section = RetrieveSection(kind="retrieve", by="markov", candidates=LISTED, rehearsals=2)
    one, another = (retrieve._rehearsals(section, each, parameters) for each in (people, other))
    assert one.filter(pl.col("user") == 0).equals(another.filter(pl.col("user") == 0))
    assert one.filter(pl.col("user") == 0).height


def test_rehearsals_come_back_as_they_were_found(tmp_path: Path, people: Interactions) -> None:
    table, _ = rehearse(tmp_path, people, 2)
    loaded = people.judged_on(tmp_path).rehearsals
    assert loaded is not None
    rows = [
        (user, place, item, score)
        for user, place, found in zip(loaded.users.tolist(), loaded.places.tolist(), loaded.found, strict=True)
        for item, score in found.items()
    ]
    assert rows == table.rows()
    assert people.judged_on(tmp_path).asked("test", np.array([0])).of([0]).first_stage is not None
