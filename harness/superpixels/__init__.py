"""Superpixel sources: one file, one source, one name in YAML.

A file of this folder that has a `Config` and a `segment` is a source; nothing else needs to know of it.
"""

import pkgutil
from functools import cache
from importlib import import_module

from harness.errors import HarnessError, suggest
from harness.superpixels.source import Source, SourceConfig

__all__ = ["Source", "SourceConfig", "get", "names"]

_MACHINERY = {"partition", "source"}


@cache
def names() -> list[str]:
    """All source names, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _MACHINERY)


@cache
def get(name: str) -> Source:
    """The source of that name.

    Raises:
        HarnessError: no such source.
    """
    if name not in names():
        raise HarnessError(f"no superpixel source {name!r}; {suggest(name, names())}")
    module = import_module(f"{__name__}.{name}")
    return Source(name, module.Config, module.segment)
