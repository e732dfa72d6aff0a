"""Where weights and computed features are kept between runs, and how a file gets there whole."""

import io
import os
import uuid
from pathlib import Path

import numpy as np

VARIABLE = "SVP_HARNESS_CACHE"
"""Environment variable that moves the cache."""


def cache_dir() -> Path:
    """The cache's root: $SVP_HARNESS_CACHE, else ~/.cache/svp-harness. Safe to delete: all of it can be made again."""
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser().resolve() if given else Path.home() / ".cache" / "svp-harness"


def write_atomically(path: Path, content: bytes | np.ndarray) -> None:
    """Writes bytes, or an array as .npy, so that a reader or a kill never meets half a file."""
    if isinstance(content, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, content, allow_pickle=False)
        content = buffer.getvalue()
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """A name beside `path`, its own to this call, to write under before the file is moved into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
