"""A catalogue refreshed from the tiny run's int8 student: what the stage leaves, states and refuses, and its bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import text_fakes
from compress import artifact, models, refresh
from compress.artifact import Artifact
from compress.data.interactions import Interactions
from compress.errors import DataError
from compress.methods import cutting
from compress.methods.cutting import Kept, KeptLayer
from compress.recipe.serving import ExportSection, RefreshSection
from compress.stage import Workspace
from deploy import export
from deploy.recommender import Recommender

Refresh = Callable[..., Artifact]


@pytest.fixture(scope="module")
def inputs(tiny_run: Path) -> dict[str, Artifact]:
    home = tiny_run / "tiny"
    return {"data": artifact.read(home / "data"), "weights8": artifact.read(home / "seed-0" / "weights8")}


@pytest.fixture(scope="module")
def items(inputs: dict[str, Artifact]) -> pl.DataFrame:
    """The tiny run's: `cluster c item i` is the text of each."""
    return pl.read_parquet(inputs["data"].path("items.parquet"))


@pytest.fixture(scope="module")
def interactions(inputs: dict[str, Artifact]) -> Interactions:
    return Interactions.load(inputs["data"].folder)


def refreshed(
    folder: Path,
    inputs: dict[str, Artifact],
    add: Sequence[tuple[str, str]] = (),
    remove: Sequence[str] = (),
    **options: Any,
) -> Artifact:
    """The stage run on files that say so."""
    folder.mkdir(exist_ok=True)
    made = folder / "tonight"
    made.mkdir()
    if add:
        second = "neighbour_id" if options.get("rows") == "neighbours" else "text"
        pl.DataFrame(add, schema=["item_id", second], orient="row").write_csv(folder / "new.csv")
        options["add"] = folder / "new.csv"
    if remove:
        pl.DataFrame({"item_id": remove}).write_csv(folder / "gone.csv")
        options["remove"] = folder / "gone.csv"
    section = RefreshSection(kind="refresh", input="weights8", **options)
    metrics = refresh.run(section, inputs, Workspace(made, seed=0))
    described = {"name": "tonight", "kind": "refresh", "fingerprint": "", "ingredients": {}, "environment": {}}
    return artifact.write(made, seed=0, seconds=0.0, metrics=metrics, **described)


@pytest.fixture(scope="module")
def tonight(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Artifact], items: pl.DataFrame) -> Artifact:
    """Two new items and the three most popular ones removed."""
    gone = items.sort("popularity", descending=True)["item_id"].head(3).to_list()
    new = [("new-1", str(items["text"][0])), ("new-2", "cluster 3 item x")]
    return refreshed(tmp_path_factory.mktemp("refresh"), inputs, new, gone)


@pytest.fixture(scope="module")
def recommender(
    tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Artifact], tonight: Artifact
) -> Recommender:
    folder = tmp_path_factory.mktemp("served")
    section = ExportSection(kind="export", inputs=("tonight",))
    export.run(section, {"data": inputs["data"], "tonight": tonight}, Workspace(folder, seed=0))
    return Recommender.load(folder / "tonight")


def removed_ids(tonight: Artifact) -> list[str]:
    table = pl.read_parquet(tonight.path("items.parquet"))
    return table.filter(~pl.col("recommendable"))["item_id"].to_list()


def test_the_artifact_has_a_model_and_a_map_of_one_size(tonight: Artifact, items: pl.DataFrame) -> None:
    table = pl.read_parquet(tonight.path("items.parquet"))
    _, model = models.load(tonight.path("model"))
    assert table["item_id"].to_list() == [*items["item_id"], "new-1", "new-2"]
    assert model.config.pad_token_id == table.height == items.height + 2
    assert len(removed_ids(tonight)) == 3


def test_what_export_lowers_is_carried_on(tonight: Artifact, inputs: dict[str, Artifact]) -> None:
    assert tonight.metrics["rounding"] == inputs["weights8"].metrics["rounding"]
    assert tonight.metrics["rounding"]["item_table"] == "int8-per-row"


def test_quality_is_stated_for_the_same_users(
    tonight: Artifact, inputs: dict[str, Artifact], items: pl.DataFrame, interactions: Interactions
) -> None:
    metrics = tonight.metrics
    gone = items.filter(pl.col("item_id").is_in(removed_ids(tonight)))["item"].to_list()
    assert metrics["removed_targets"] == int(np.isin(interactions.targets("validation"), gone).sum()) > 0
    assert metrics["ndcg@10_before"] == pytest.approx(inputs["weights8"].metrics["ndcg@10"], abs=0.01)
    assert metrics["ndcg@10"] < metrics["ndcg@10_before"]
    assert 0 <= metrics["new_items_share@10"] <= 0.2, "two of ten items at most are new"
    assert 0.5 < metrics["ratio_without_removed_targets"]["low"] <= metrics["ratio_without_removed_targets"]["high"]


def test_a_new_row_is_judged_on_every_known_item_in_turn(
    tonight: Artifact, items: pl.DataFrame, interactions: Interactions
) -> None:
    worth = tonight.metrics["new_rows"]
    assert (worth["items"], worth["users"]) == (items.height, interactions.user_count)
    assert worth["ndcg@10_trained"] == tonight.metrics["ndcg@10_before"]
    ratio = worth["ratio"]
    assert ratio["mean"] == pytest.approx(worth["ndcg@10"] / worth["ndcg@10_trained"], abs=1e-3)
    assert 0 < ratio["low"] <= ratio["mean"] <= ratio["high"]


def test_removing_alone_changes_no_order(tmp_path: Path, inputs: dict[str, Artifact], items: pl.DataFrame) -> None:
    unused = items.sort("popularity")["item_id"].head(2).to_list()
    made = refreshed(tmp_path, inputs, remove=[*unused, "never-known"])
    metrics = made.metrics
    assert (metrics["added"], metrics["removed"], metrics["new_rows"]) == (0, 2, None)
    assert "new_row_ratio" not in metrics
    assert metrics["ratio_without_removed_targets"]["mean"] >= 1


def test_given_neighbours_make_a_row(tmp_path: Path, inputs: dict[str, Artifact], items: pl.DataFrame) -> None:
    twin = str(items["item_id"][4])
    made = refreshed(tmp_path, inputs, [("twin", twin)], rows="neighbours")
    _, model = models.load(made.path("model"))
    table = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(table[items.height], table[4], rtol=1e-5)
    assert made.metrics["new_rows"] is None


def test_a_pruned_model_is_refreshed(tmp_path: Path, inputs: dict[str, Artifact], items: pl.DataFrame) -> None:
    """Layers stay as they were cut, and so does what is said of the items that it knows."""
    family, model = models.load(inputs["weights8"].path("model"))
    whole = cutting.everything(model).layers
    cutting.cut(model, Kept(tuple(each and KeptLayer(each.heads[:1], each.neurons[::2]) for each in whole)))
    (tmp_path / "cut").mkdir()
    family.save(model, tmp_path / "cut" / "model")
    metrics = inputs["weights8"].metrics
    source = text_fakes.stored(tmp_path / "cut", "quantize", "weights8", {"rounding": metrics["rounding"]})
    twin = str(items["item_id"][4])
    made = refreshed(tmp_path / "run", {**inputs, "weights8": source}, [("twin", twin)], rows="neighbours")
    _, grown = models.load(made.path("model"))
    assert grown.config.pruned == model.config.pruned
    history = torch.arange(6)[None]
    with torch.no_grad():
        ours, theirs = grown(history).logits[..., : items.height], model.eval()(history).logits[..., : items.height]
    torch.testing.assert_close(ours, theirs)


def test_new_items_are_read_and_recommended(recommender: Recommender, tonight: Artifact, items: pl.DataFrame) -> None:
    twin = str(items["item_id"][0])
    answered = {item for first in items["item_id"] for item, _ in recommender.top_k([first])}
    assert "new-1" in answered
    with_twin, with_new = recommender.top_k([twin], deny=["new-1"]), recommender.top_k(["new-1"], deny=[twin])
    assert len({item for item, _ in with_twin} & {item for item, _ in with_new}) >= 7, (
        "it has nearly the text of its twin"
    )
    assert "new-1" not in {item for item, _ in recommender.top_k(["new-1"])}


def test_removed_items_are_read_and_never_recommended(
    recommender: Recommender, tonight: Artifact, items: pl.DataFrame
) -> None:
    gone = removed_ids(tonight)
    requests = [[], *([item] for item in items["item_id"])]
    assert not {item for answer in recommender.top_k_batch(requests) for item, _ in answer} & set(gone)
    assert recommender.top_k([], allow=gone) == recommender.top_k([str(items["item_id"][0])], allow=gone) == []
    assert recommender.top_k(gone[:1]) != recommender.top_k([]), "it still says something about taste"


def test_nothing_known_of_a_user_never_ends_in_what_is_gone(recommender: Recommender, tonight: Artifact) -> None:
    everything = set(recommender.item_ids) - set(removed_ids(tonight))
    few = sorted(everything)[:4]
    assert {item for item, _ in recommender.top_k([], deny=everything - set(few))} == set(few)


@pytest.mark.parametrize(
    ("add", "remove", "said"),
    [
        ([("new", "qqq zzz")], [], r"item 'new': its text 'qqq zzz' shares nothing .*\(1 of 1 rows\)"),
        ([("new", "cluster 1")], ["new"], "item 'new' is to be added as well; one of them"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, inputs: dict[str, Artifact], add: list[tuple[str, str]], remove: list[str], said: str
) -> None:
    with pytest.raises(DataError, match=f"^[^\n]*{said}[^\n]*$"):
        refreshed(tmp_path, inputs, add, remove)


def test_a_catalogue_keeps_more_items_than_are_answered(
    tmp_path: Path, inputs: dict[str, Artifact], items: pl.DataFrame
) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: 10 items would be left; a top 10 needs more than that"):
        refreshed(tmp_path, inputs, remove=items["item_id"].to_list()[10:])
