"""Where weights and computed features are kept between runs."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from harness.system.files import write_atomically

VARIABLE = "SVP_HARNESS_CACHE"
"""Environment variable that moves the cache."""
OnProgress = Callable[[int, int], None]
"""Told (done, total) as images are computed."""


def cache_dir() -> Path:
    """The cache's root: $SVP_HARNESS_CACHE, else ~/.cache/svp-harness. Safe to delete: all of it can be made again."""
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser().resolve() if given else Path.home() / ".cache" / "svp-harness"


def image_key(image: np.ndarray) -> str:
    """Hash of an image's size and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:24]


def cache_folder(kind: str, identity: Mapping[str, object]) -> Path:
    """The folder of one way of computing, with its identity written in it for people who look."""
    text = json.dumps(dict(identity), sort_keys=True, default=str)
    folder = cache_dir() / kind / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (folder / "identity.json").exists():
        write_atomically(folder / "identity.json", text.encode())
    return folder
