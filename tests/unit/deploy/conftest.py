"""What several tests of graphs and engines share."""

from __future__ import annotations

import pytest

import bundle_fakes
from compress.artifact import Artifact


@pytest.fixture(scope="session")
def built_from(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """What a build stage reads."""
    return bundle_fakes.inputs(tmp_path_factory.mktemp("served"))
