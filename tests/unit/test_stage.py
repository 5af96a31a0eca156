"""The stage shell: what runs again after which change and why, what a killed run leaves, and who may write where.

The stages are fakes that leave a line of text; everything around them is real.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from compress import artifact, provenance, stage
from compress.artifact import Artifact
from compress.errors import ArtifactError, DataError
from compress.recipe import load
from compress.recipe.base import Section
from compress.recipe.data import MovieLens100K
from compress.stage import Stage, Workspace, graph, lineage

RECIPE = """\
name: small
data: {source: csv, path: ratings.csv}
stages:
  teacher: {kind: finetune, epochs: 2, model: {family: bert4rec, dropout: 0.1}}
  student: {kind: distill, epochs: 2, teacher: teacher, model: {family: bert4rec}, losses: [{kind: kl}]}
  control: {kind: finetune, epochs: 2, model: {family: bert4rec}}
  int8: {kind: quantize, input: student}
  served: {kind: export, inputs: [teacher, student, control, int8]}
measure: {export: served, teacher: teacher, control: control, candidates: [student, int8]}
gate: {latency: {min_speedup: {1: 2}}}
"""
SOURCES = {
    "prepare": "",
    "shared": "def train():\n    import numpy\n",
    "finetune": "from fake import shared\n",
    "distill": "from fake import shared\n",
    "quantize": "",
    "refresh": "",
    "export": "import onnx\n",
    "measure": "",
    "report": "",
    "unused": "",
}
EVERYTHING = ["data", "teacher", "student", "control", "int8", "served", "measure", "report"]

Hook = Callable[[Workspace], object]


class House:
    """A recipe with its data, sources, packages and processor, each of which a test can change."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.runs = home / "runs"
        self.ran: list[str] = []
        self.hooks: dict[str, Hook] = {}
        """What a stage does before it writes its result: fail, look around."""
        self.versions = {"numpy": "2.0", "onnx": "1.0"}
        self.hardware = {"cpu": "fast"}
        (home / "fake").mkdir()
        for name, source in SOURCES.items():
            self.edit(name, source)
        self.write(RECIPE)
        (home / "ratings.csv").write_text("a,b,1\n")

    def write(self, recipe: str) -> None:
        (self.home / "recipe.yaml").write_text(recipe)

    def edit(self, module: str, source: str) -> None:
        (self.home / "fake" / f"{module}.py").write_text(source)

    def graph(self, *overrides: str, seeds: Sequence[int] | None = None) -> list[Stage]:
        """As a new process would see it."""
        for cached in (provenance.sources_digest, provenance.package_versions, provenance._reach):
            cached.cache_clear()
        return graph(load(self.home / "recipe.yaml", overrides), self.runs, seeds)

    def stage(self, name: str, *overrides: str) -> Stage:
        return next(each for each in self.graph(*overrides) if each.name == name)

    def make(self, *overrides: str, seeds: Sequence[int] | None = None) -> list[str]:
        """Runs the whole recipe. Returns the names of the stages that had anything to do."""
        self.ran.clear()
        for each in self.graph(*overrides, seeds=seeds):
            each.run()
        return list(self.ran)

    def run(self, section: Section, inputs: Mapping[str, Artifact], workspace: Workspace) -> dict[str, Any]:
        """The `run` of every fake stage: a line that depends on all that the result may depend on."""
        name = workspace.folder.name
        self.ran.append(name)
        if name in self.hooks:
            self.hooks[name](workspace)
        made = {source: (made.folder / "result.txt").read_text() for source, made in inputs.items()}
        content = f"{section.model_dump(exclude={'path'})} {workspace.seed} {made}"
        (workspace.folder / "result.txt").write_text(hashlib.sha256(content.encode()).hexdigest())
        return {"inputs": len(inputs)}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    house = House(tmp_path)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "OURS", ("fake",))
    monkeypatch.setattr(provenance, "version", lambda name: house.versions[name])
    monkeypatch.setattr(provenance, "hardware", lambda: dict(house.hardware))
    for kind in stage.MODULES:
        module = ModuleType(f"fake.{kind}")
        monkeypatch.setattr(module, "run", house.run, raising=False)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(stage.MODULES, kind, module.__name__)
    yield house
    for cached in (provenance.sources_digest, provenance.package_versions, provenance._reach):
        cached.cache_clear()


def result(house: House, name: str) -> str:
    return (house.stage(name).folder / "result.txt").read_text()


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_inputs_run_first_and_a_second_run_has_nothing_to_do(house: House) -> None:
    assert house.make() == EVERYTHING
    assert house.make() == []


def test_what_is_made_can_be_read_and_repeated(house: House) -> None:
    house.make()
    student = house.stage("student")
    made = artifact.read(student.folder)
    assert (made.manifest.name, made.manifest.kind, made.manifest.seed) == ("student", "distill", 0)
    assert made.metrics == {"inputs": 2}
    assert made.manifest.ingredients == student.ingredients
    assert {*made.manifest.files} == {"result.txt"}
    assert student.run() == made


def test_every_fingerprint_is_the_hash_of_the_ingredients_on_disk(house: House) -> None:
    house.make()
    for each in house.graph():
        made = artifact.read(each.folder)
        text = json.dumps(made.manifest.ingredients, sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest() == made.fingerprint == each.fingerprint


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("data.min_interactions=4", EVERYTHING),
        ("stages.teacher.model.dropout=0.2", ["teacher", "student", "int8", "served", "measure", "report"]),
        ("stages.student.epochs=3", ["student", "int8", "served", "measure", "report"]),
        ("stages.control.epochs=3", ["control", "served", "measure", "report"]),
        ("stages.int8.linear=none", ["int8", "served", "measure", "report"]),
        ("stages.served.top_k=20", ["served", "measure", "report"]),
        ("measure.rounds=50", ["measure", "report"]),
        ("gate.latency.min_speedup.1=3", ["report"]),
    ],
)
def test_a_changed_field_runs_its_stage_and_what_depends_on_it(house: House, override: str, again: list[str]) -> None:
    house.make()
    assert house.make(override) == again
    assert house.make(override) == []


@pytest.mark.parametrize("override", ["checkpoint_seconds=5", "report_to=[tensorboard]"])
def test_how_training_is_watched_makes_nothing_out_of_date(house: House, override: str) -> None:
    house.make()
    assert house.make(f"stages.teacher.{override}") == []


@pytest.mark.parametrize(
    ("module", "again"),
    [
        ("prepare", EVERYTHING),
        ("shared", EVERYTHING[1:]),
        ("distill", ["student", "int8", "served", "measure", "report"]),
        ("quantize", ["int8", "served", "measure", "report"]),
        ("report", ["report"]),
        ("unused", []),
    ],
)
def test_changed_source_runs_what_reaches_it(house: House, module: str, again: list[str]) -> None:
    house.make()
    house.edit(module, SOURCES[module] + "# changed\n")
    assert house.make() == again


@pytest.mark.parametrize(("package", "again"), [("numpy", EVERYTHING[1:]), ("onnx", ["served", "measure", "report"])])
def test_another_version_runs_what_imports_it(house: House, package: str, again: list[str]) -> None:
    house.make()
    house.versions[package] = "3.0"
    assert house.make() == again


def test_another_processor_times_again_and_trains_nothing(house: House) -> None:
    house.make()
    house.hardware["cpu"] = "slow"
    assert house.make() == ["served", "measure", "report"]


def test_other_data_in_the_same_file_runs_everything(house: House) -> None:
    house.make()
    (house.home / "ratings.csv").write_text("a,b,2\n")
    assert house.make() == EVERYTHING


def test_the_same_data_in_another_file_runs_nothing(house: House) -> None:
    house.make()
    (house.home / "elsewhere").mkdir()
    (house.home / "ratings.csv").rename(house.home / "elsewhere" / "renamed.csv")
    assert house.make("data.path=elsewhere/renamed.csv") == []


def test_a_recipe_that_says_the_same_in_other_words_runs_nothing(house: House) -> None:
    house.make()
    house.write("# a note\n" + RECIPE.replace("{kind: export", "{top_k: 10, kind: export").replace("0.1}", "1.0e-1}"))
    assert house.make("seed=[0]") == []


def test_seeds_live_side_by_side_and_share_the_data(house: House) -> None:
    house.make()
    assert house.make(seeds=[1]) == EVERYTHING[1:]
    assert house.make(seeds=[0, 1]) == ["report"]
    assert house.make("seed=[0, 1]") == []
    assert house.make(seeds=[0]) == ["report"]


def test_each_seed_reaches_its_stages(house: House) -> None:
    house.make(seeds=[3, 4])
    results = {(house.runs / "small" / f"seed-{seed}" / "teacher" / "result.txt").read_text() for seed in (3, 4)}
    assert len(results) == 2


def test_a_change_taken_back_gives_the_old_result(house: House) -> None:
    house.make()
    before = result(house, "served")
    house.make("stages.student.epochs=3")
    assert result(house, "served") != before
    house.make()
    assert result(house, "served") == before


def test_force_runs_one_stage_and_leaves_what_depends_on_it(house: House) -> None:
    house.make()
    house.stage("teacher").run(force=True)
    assert house.make() == []


def test_data_that_is_not_there_is_an_error(house: House) -> None:
    (house.home / "ratings.csv").unlink()
    with pytest.raises(DataError, match=r"data.path: .*ratings.csv: No such file"):
        house.make()


REFRESH = RECIPE.replace("  served:", "  tonight: {kind: refresh, input: int8, add: new.csv}\n  served:").replace(
    "control, int8]}", "control, int8, tonight]}"
)


def test_the_content_of_a_stages_file_counts_and_not_its_place(house: House) -> None:
    house.write(REFRESH)
    (house.home / "new.csv").write_text("item_id,text\na,b\n")
    house.make()
    (house.home / "new.csv").rename(house.home / "renamed.csv")
    assert house.make("stages.tonight.add=renamed.csv") == []
    (house.home / "new.csv").write_text("item_id,text\na,c\n")
    assert (house.stage("tonight").why_not_done() or "").startswith("add.sha256 changed from ")
    assert house.make() == ["tonight", "served", "measure", "report"]


def test_a_stages_file_that_is_not_there_is_named_by_its_key(house: House) -> None:
    house.write(REFRESH)
    with pytest.raises(DataError, match=r"^stages.tonight.add: .*new.csv: No such file"):
        house.make()
    assert house.ran == ["data", "teacher", "student", "control", "int8"]


def test_a_folder_of_data_counts_by_names_and_contents(tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        section = MovieLens100K(source="ml-100k", path=folder)
        return Stage("data", "prepare", section, {}, tmp_path / "runs").fingerprint

    (tmp_path / "ml-100k" / "inside").mkdir(parents=True)
    (tmp_path / "ml-100k" / "inside" / "u.data").write_text("1")
    first = fingerprint(tmp_path / "ml-100k")
    moved = (tmp_path / "ml-100k").rename(tmp_path / "moved")
    assert fingerprint(moved) == first
    renamed = (moved / "inside" / "u.data").rename(moved / "inside" / "v.data")
    second = fingerprint(moved)
    renamed.write_text("2")
    assert len({first, second, fingerprint(moved)}) == 3


@pytest.mark.parametrize(
    ("override", "name", "why"),
    [
        ("stages.student.epochs=3", "student", "epochs changed from 2 to 3"),
        ("stages.teacher.model.dropout=0.2", "teacher", "model.dropout changed from 0.1 to 0.2"),
        ("stages.teacher.early_stopping.patience=2", "teacher", "early_stopping changed from None to {'patience': 2}"),
        ("stages.student.epochs=3", "int8", "its input student changed"),
        ("stages.student.epochs=3", "served", "its input int8 changed"),
        ("stages.student.epochs=3", "report", "its input measure-0 changed"),
        ("measure.candidates=[int8]", "measure", "candidates changed from ['student', 'int8'] to ['int8']"),
        ("gate.latency.min_speedup.1=3", "report", "latency.min_speedup.1 changed from 2.0 to 3.0"),
    ],
)
def test_why_says_what_changed(house: House, override: str, name: str, why: str) -> None:
    house.make()
    assert house.stage(name, override).why_not_done() == why


def test_why_names_an_input_that_came_and_the_key_as_it_is_written(house: House) -> None:
    house.make()
    house.write(RECIPE.replace("  served:", "  late: {kind: quantize, input: teacher}\n  served:"))
    assert house.stage("served", "stages.served.inputs=[teacher, student, control, int8, late]").why_not_done() == (
        "its input late changed"
    )
    why = house.stage("served", "stages.served.inputs=[student, teacher, control, int8]").why_not_done()
    assert (why or "").startswith("inputs changed from ['teacher', 'student', ")


def test_why_says_what_changed_outside_the_recipe(house: House) -> None:
    house.make()
    house.versions["numpy"] = "3.0"
    assert house.stage("teacher").why_not_done() == "packages.numpy changed from 2.0 to 3.0"
    house.hardware["cpu"] = "slow"
    assert house.stage("measure").why_not_done() == "hardware.cpu changed from fast to slow"
    house.edit("quantize", "pass\n")
    house.versions["numpy"] = "2.0"
    assert house.stage("int8").why_not_done() == "its source code changed"
    (house.home / "ratings.csv").write_text("a,b,2\n")
    assert (house.stage("data").why_not_done() or "").startswith("path.sha256 changed from ")


def test_why_is_nothing_once_done_and_not_there_yet_before(house: House) -> None:
    assert {each.why_not_done() for each in house.graph()} == {"not there yet"}
    house.make()
    assert {each.why_not_done() for each in house.graph()} == {None}


def fail(workspace: Workspace) -> None:
    (workspace.folder / "half.txt").write_text("half")
    raise RuntimeError("the stage failed")


def test_a_stage_that_fails_leaves_no_artifact_and_runs_again(house: House) -> None:
    house.hooks["student"] = fail
    for wanted in (["data", "teacher", "student"], ["student"]):
        with pytest.raises(RuntimeError, match="the stage failed"):
            house.make()
        assert house.ran == wanted
        with pytest.raises(ArtifactError, match="no finished artifact"):
            artifact.read(house.stage("student").folder)
    del house.hooks["student"]
    assert house.make() == EVERYTHING[2:]
    assert {*artifact.read(house.stage("student").folder).manifest.files} == {"result.txt"}


def test_a_stage_that_fails_takes_its_old_result_with_it(house: House) -> None:
    house.make()
    house.hooks["student"] = fail
    with pytest.raises(RuntimeError):
        house.make("stages.student.epochs=3")
    del house.hooks["student"]
    assert house.stage("student").why_not_done() == "not there yet"
    assert house.make() == ["student"]  # what depends on it still is of this very student


def test_a_run_killed_while_it_clears_the_old_result_leaves_no_artifact(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.make()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            house.stage("student").run(force=True)
    assert house.stage("student").why_not_done() == "not there yet"


def kill(workspace: Workspace) -> None:
    """Ends a stage after its first checkpoint."""
    (workspace.resume / "step").write_text("7")
    raise KeyboardInterrupt


class Look:
    """Notes what a stage finds in its scratch."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def __call__(self, workspace: Workspace) -> None:
        self.found = files(workspace.resume)


def test_a_killed_stage_goes_on_from_its_scratch_to_the_same_result(house: House) -> None:
    house.make()
    uninterrupted = result(house, "student")
    house.hooks["student"] = kill
    with pytest.raises(KeyboardInterrupt):
        house.stage("student").run(force=True)
    assert house.stage("student").why_not_done() == "resumes"
    house.hooks["student"] = look = Look()
    assert house.make() == ["student"]
    assert "step" in look.found
    assert result(house, "student") == uninterrupted


def test_as_many_processes_go_on_or_all_begins_anew(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.hooks["student"] = kill
    with pytest.raises(KeyboardInterrupt):
        house.make()
    assert house.stage("student").why_not_done() == "resumes"
    monkeypatch.setattr("compress.processes.count", lambda: 2)
    assert house.stage("student").why_not_done() == "not there yet"


def test_users_are_numbered_anew_by_another_key(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECPRESS_USER_KEY", "leaked")
    house.make("data.user_map=keyed")
    assert house.make("data.user_map=keyed") == []
    monkeypatch.setenv("RECPRESS_USER_KEY", "another")
    why = house.stage("data", "data.user_map=keyed").why_not_done()
    assert (why or "").startswith("environment.user_key changed from ")
    assert "another" not in (why or "")


def test_a_disk_without_room_for_the_manifest_costs_no_checkpoint(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.hooks["data"] = lambda workspace: (workspace.resume / "step").write_text("7")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: fail_with(errno.ENOSPC))
        with pytest.raises(ArtifactError, match=r"^[^\n]*cannot be written: No space left on device; make room there"):
            house.make()
    assert house.stage("data").why_not_done() == "resumes"
    house.hooks["data"] = look = Look()
    house.make()
    assert "step" in look.found


def fail_with(code: int) -> None:
    raise OSError(code, os.strerror(code))


def test_scratch_of_another_result_is_not_gone_on_from(house: House) -> None:
    house.hooks["student"] = kill
    with pytest.raises(KeyboardInterrupt):
        house.make()
    assert house.stage("student", "stages.student.epochs=3").why_not_done() == "not there yet"
    house.hooks["student"] = look = Look()
    house.make("stages.student.epochs=3")
    assert "step" not in look.found


def test_force_starts_from_nothing(house: House) -> None:
    house.hooks["data"] = kill
    with pytest.raises(KeyboardInterrupt):
        house.make()
    house.hooks["data"] = look = Look()
    house.stage("data").run(force=True)
    assert "step" not in look.found


def test_scratch_and_leftovers_are_gone_on_completion(house: House) -> None:
    house.make()
    (house.stage("data").folder / "leftover").mkdir()
    (house.stage("data").folder / "leftover" / "file").write_text("x")
    house.hooks["data"] = lambda workspace: (workspace.resume / "step").write_text("7")
    house.make("data.min_interactions=4")
    assert files(house.stage("data").folder) == {".lock", "result.txt", "manifest.json"}


def test_a_second_run_on_the_same_folder_is_turned_away(house: House) -> None:
    house.hooks["data"] = lambda _: house.stage("data").run()
    with pytest.raises(ArtifactError, match="is in use by another run; wait for it or use --runs"):
        house.make()
    assert house.ran == ["data"]
    house.hooks.clear()
    assert house.make() == EVERYTHING  # the lock does not outlive the run


def test_an_input_is_not_made_anew_while_it_is_read(house: House) -> None:
    house.hooks["student"] = lambda _: house.stage("teacher").run(force=True)
    with pytest.raises(ArtifactError, match="teacher is in use by another run"):
        house.make()
    house.hooks.clear()
    assert house.make() == EVERYTHING[2:]


def test_two_stages_read_one_input_at_once(house: House) -> None:
    house.hooks["student"] = lambda _: house.stage("control").run()
    house.make()
    assert {"student", "control"} <= set(house.ran)


def test_runs_in_other_folders_do_not_wait_for_each_other(house: House) -> None:
    def beside(workspace: Workspace) -> None:
        house.hooks.clear()
        for each in graph(load(house.home / "recipe.yaml"), house.home / "other"):
            each.run()

    house.hooks["student"] = beside
    house.make()
    assert house.ran == [*EVERYTHING[:3], *EVERYTHING, *EVERYTHING[3:]]


def test_a_runs_folder_that_cannot_be_made_is_an_error(house: House) -> None:
    house.runs.write_text("a file in the way")
    with pytest.raises(ArtifactError, match=r"cannot be written: .*; choose another place with --runs"):
        house.make()


def test_files_that_no_run_has_made_are_not_deleted(house: House) -> None:
    folder = house.stage("data").folder
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("the only copy")
    with pytest.raises(ArtifactError, match="holds files that no run has made"):
        house.make()
    assert files(folder) == {"thesis.txt"}


def test_an_artifact_that_lost_its_private_files_on_the_way_is_still_one(house: House) -> None:
    house.make()
    (house.stage("data").folder / ".lock").unlink()  # as an upload that leaves hidden files out
    assert house.make() == []
    (house.stage("data").folder / ".lock").unlink()
    assert house.make("data.min_interactions=4") == EVERYTHING


def test_an_input_that_is_missing_or_old_is_an_error(house: House) -> None:
    with pytest.raises(ArtifactError, match="the input data is not up to date: not there yet"):
        house.stage("teacher").run()
    house.make()
    with pytest.raises(ArtifactError, match=r"input student \(seed 0\) is not up to date: epochs changed from 2 to 3"):
        house.stage("int8", "stages.student.epochs=3").run()
    assert house.make() == []  # what was there is still there


def test_a_damaged_input_is_an_error_that_names_the_file(house: House) -> None:
    house.make()
    path = house.stage("student").folder / "result.txt"
    path.write_text("x")
    with pytest.raises(ArtifactError, match=f"{path} is damaged"):
        house.stage("int8").run(force=True)


def test_a_damaged_result_is_an_error_until_it_is_made_again(house: House) -> None:
    house.make()
    path = house.stage("student").folder / "result.txt"
    path.write_text("x")
    with pytest.raises(ArtifactError, match=f"{path} is damaged"):
        house.make()
    house.stage("student").run(force=True)
    assert house.make() == []


def test_the_graph_has_the_data_once_and_a_report_of_all_seeds(house: House) -> None:
    stages = house.graph(seeds=[0, 2])
    assert [each.name for each in stages] == [EVERYTHING[0], *EVERYTHING[1:-1], *EVERYTHING[1:-1], EVERYTHING[-1]]
    assert {each.seed for each in stages[1:7]} == {0}
    assert {each.seed for each in stages[7:-1]} == {2}
    data, report = stages[0], stages[-1]
    measures = [each for each in stages if each.name == "measure"]
    assert (data.seed, report.seed) == (None, None)
    assert report.inputs == {"data": data, "measure-0": measures[0], "measure-2": measures[1]}
    assert all(each.inputs["data"] is data for each in stages[1:])
    assert len({each.folder for each in stages}) == len(stages)


def test_the_graph_is_made_of_what_sections_name(house: House) -> None:
    inputs = {each.name: [*each.inputs] for each in house.graph()}
    assert inputs == {
        "data": [],
        "teacher": ["data"],
        "student": ["data", "teacher"],
        "control": ["data"],
        "int8": ["data", "student"],
        "served": ["data", "teacher", "student", "control", "int8"],
        "measure": ["data", "served", "teacher"],
        "report": ["data", "measure-0"],
    }


def test_without_a_gate_there_is_a_report_and_without_a_measure_neither(house: House) -> None:
    assert [each.name for each in house.graph("gate=")] == EVERYTHING
    assert [each.name for each in house.graph("gate=", "measure=")] == EVERYTHING[:-2]


def test_a_lineage_is_all_inputs_each_once_and_inputs_first(house: House) -> None:
    assert [each.name for each in lineage(house.stage("int8"))] == ["data", "teacher", "student"]
    assert [each.name for each in lineage(house.stage("report"))] == EVERYTHING[:-1]
    assert lineage(house.stage("data")) == []


def test_labels_tell_seeds_apart(house: House) -> None:
    assert [each.label for each in house.graph(seeds=[5])][:2] == ["data", "teacher (seed 5)"]
