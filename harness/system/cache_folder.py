"""The cache of weights and computed features."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from harness.system.files import write_atomically

VARIABLE = "SVP_HARNESS_CACHE"
"""Environment variable with the folder of the cache."""
OnProgress = Callable[[int, int], None]
"""Called with (done, total) as images are computed."""


def cache_dir() -> Path:
    """The root of the cache: $SVP_HARNESS_CACHE, else ~/.cache/svp-harness. It can be deleted at any time."""
    path = os.environ.get(VARIABLE)
    return Path(path).expanduser().resolve() if path else Path.home() / ".cache" / "svp-harness"


def image_key(image: np.ndarray) -> str:
    """Hash of an image's size and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:24]


def cache_folder(kind: str, identity: Mapping[str, object]) -> Path:
    """The folder for results of one computation; `identity.json` in it holds the settings that identify it."""
    text = json.dumps(dict(identity), sort_keys=True, default=str)
    folder = cache_dir() / kind / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (folder / "identity.json").exists():
        write_atomically(folder / "identity.json", text.encode())
    return folder
