"""Superpixel sources: one file, one source, one name in YAML.

A file of this folder that has a `Config` and a `segment` is a source; nothing else needs to know of it. One that asks a
pretrained model says which, by `weights(config)`.
"""

import pkgutil
from functools import cache
from importlib import import_module

from harness.backbone.weights import WeightsRecord
from harness.errors import HarnessError, suggest
from harness.superpixels.source import Source, SourceConfig

__all__ = ["Source", "SourceConfig", "get", "names"]

_MACHINERY = {"__main__", "candidates", "filter", "granularity", "partition", "source"}


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
    return Source(name, module.Config, module.segment, getattr(module, "weights", _no_weights))


def _no_weights(_: SourceConfig) -> tuple[WeightsRecord, ...]:
    return ()
