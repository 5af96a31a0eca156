"""What `python -m recipes` looks at before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

import recipes.__main__ as program
from benchmarks.peers import environment
from conftest import ROOT


def test_other_tools_are_missed_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "PYTHON", tmp_path / "nowhere")
    recipe = str(ROOT / "recipes" / "tiny_cross_encoder.yaml")
    line = [recipe, "--runs", str(tmp_path / "runs"), "--set", "measure.peers=[st-onnx]"]
    assert program.main(line) == 2
    assert capsys.readouterr().err == (
        f"measure.peers: there is no {tmp_path / 'nowhere'}; make it with `make peers`\n"
    )
    assert not (tmp_path / "runs").exists()
    assert program.main([*line, "--plan"]) == 0
