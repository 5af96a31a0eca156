"""What a stage's fingerprint takes from source files and packages: all that shapes its result, nothing else."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from compress import provenance
from compress.stage import MODULES

Edit = Callable[[str, str], None]

HOUSE: Mapping[str, str] = {
    "ours/__init__.py": "",
    "ours/train.py": "import json\nfrom ours import losses\nfrom ours.models.bert import build\nimport numpy as np\n",
    "ours/losses.py": "def loss():\n    from ours.late import later\n    import yaml\n",
    "ours/late.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ours.train import run\n",
    "ours/models/__init__.py": "FAMILIES = ['bert']\n",
    "ours/models/bert.py": "import pydantic.fields\nimport ours.plumbing\nfrom ours.plumbing.deep import x\n",
    "ours/plumbing/__init__.py": "import ours.behind\nimport pytest\n",
    "ours/plumbing/deep.py": "",
    "ours/plumbings.py": "",
    "ours/behind.py": "",
    "ours/elsewhere.py": "import hypothesis\nfrom ours import train\n",
    "ours/report.py": "from ours import plumbings\nTEMPLATE = 'page.html'\n",
    "ours/page.html": "<p>",
    "ours/other.html": "<p>",
}


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Rewrites a file of a small source tree of its own, as between two runs of the program."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "OURS", ("ours",))
    monkeypatch.setattr(provenance, "PLUMBING", ("ours.plumbing.",))

    def write(name: str, content: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        forget()

    for name, content in HOUSE.items():
        write(name, content)
    return write


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    for cached in (provenance.sources_digest, provenance.package_versions, provenance._reach):
        cached.cache_clear()


@pytest.mark.parametrize("name", ["train", "losses", "late", "__init__", "models/__init__", "models/bert"])
def test_a_file_that_is_reached_counts(edit: Edit, name: str) -> None:
    before = provenance.sources_digest("ours.train")
    edit(f"ours/{name}.py", HOUSE[f"ours/{name}.py"] + "# changed\n")
    assert provenance.sources_digest("ours.train") != before


@pytest.mark.parametrize("name", ["elsewhere.py", "plumbing/__init__.py", "plumbing/deep.py", "behind.py", "page.html"])
def test_a_file_that_is_not_reached_or_only_carries_results_does_not(edit: Edit, name: str) -> None:
    before = provenance.sources_digest("ours.train")
    edit(f"ours/{name}", HOUSE[f"ours/{name}"] + "# changed\n")
    assert provenance.sources_digest("ours.train") == before


def test_an_edit_taken_back_gives_the_old_digest(edit: Edit) -> None:
    before = provenance.sources_digest("ours.train")
    edit("ours/losses.py", "")
    edit("ours/losses.py", HOUSE["ours/losses.py"])
    assert provenance.sources_digest("ours.train") == before


def test_where_the_sources_lie_does_not_count(edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = provenance.sources_digest("ours.train")
    (tmp_path / "ours").rename(tmp_path / "new")
    (tmp_path / "moved").mkdir()
    (tmp_path / "new").rename(tmp_path / "moved" / "ours")
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "moved")
    forget()
    assert provenance.sources_digest("ours.train") == before


def test_a_new_file_counts_once_it_is_imported(edit: Edit) -> None:
    before = provenance.sources_digest("ours.train")
    edit("ours/new.py", "")
    assert provenance.sources_digest("ours.train") == before
    edit("ours/late.py", "import ours.new\n")
    imported = provenance.sources_digest("ours.train")
    edit("ours/new.py", "pass\n")
    assert len({before, imported, provenance.sources_digest("ours.train")}) == 3


def test_a_name_that_only_starts_like_plumbing_counts(edit: Edit) -> None:
    before = provenance.sources_digest("ours.report")
    edit("ours/plumbings.py", "pass\n")
    assert provenance.sources_digest("ours.report") != before


def test_a_template_counts_where_a_module_names_it(edit: Edit) -> None:
    before = provenance.sources_digest("ours.report")
    edit("ours/other.html", "<b>")
    assert provenance.sources_digest("ours.report") == before
    edit("ours/page.html", "<b>")
    assert provenance.sources_digest("ours.report") != before


def test_packages_are_those_imported_inside_functions_too_and_never_the_standard_library(edit: Edit) -> None:
    assert provenance.package_versions("ours.train") == {
        "PyYAML": importlib.metadata.version("PyYAML"),
        "numpy": importlib.metadata.version("numpy"),
        "pydantic": importlib.metadata.version("pydantic"),
    }
    assert set(provenance.package_versions("ours.elsewhere")) == {"PyYAML", "hypothesis", "numpy", "pydantic"}
    assert provenance.package_versions("ours.report") == {}


def test_a_package_that_is_not_installed_is_absent(edit: Edit) -> None:
    edit("ours/late.py", "import no_such_package.inside\n")
    assert provenance.package_versions("ours.train")["no_such_package"] == "absent"


@pytest.mark.parametrize("kind", MODULES)
def test_every_package_of_a_real_stage_has_a_version(kind: str) -> None:
    versions = provenance.package_versions(MODULES[kind])
    assert {name for name, version in versions.items() if version == "absent"} <= {"tensorrt", "tensorrt_rtx"}


def test_a_real_stage_reaches_what_it_computes_with_and_no_plumbing() -> None:
    ours, foreign = provenance._reach("compress.finetune")
    assert {"compress.finetune", "compress.training", "compress.models.bert4rec", "compress.methods.losses"} <= {*ours}
    assert {"torch", "transformers", "numpy"} <= foreign
    assert not any(f"{name}.".startswith(provenance.PLUMBING) for name in ours)
    assert not any(name.startswith(("deploy", "benchmarks", "recipes")) for name in ours)


def test_the_hardware_is_the_same_each_time_and_made_of_text() -> None:
    facts = provenance.hardware()
    provenance.hardware.cache_clear()
    assert provenance.hardware() == facts
    assert {"machine", "cpus"} <= {*facts}
    assert all(isinstance(value, str) for value in facts.values())


def test_what_shapes_every_step_counts() -> None:
    """Weights and temperatures on their way, and what processes add up."""
    reached, _ = provenance._reach("compress.distill")
    assert {"compress.methods.schedules", "compress.processes", "compress.learner"} <= reached.keys()
