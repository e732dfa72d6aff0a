"""Where weights and computed features are kept between runs."""

import os
from pathlib import Path

VARIABLE = "SVP_HARNESS_CACHE"
"""Environment variable that moves the cache."""


def cache_dir() -> Path:
    """The cache's root: $SVP_HARNESS_CACHE, else ~/.cache/svp-harness. Safe to delete: all of it can be made again."""
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser().resolve() if given else Path.home() / ".cache" / "svp-harness"
