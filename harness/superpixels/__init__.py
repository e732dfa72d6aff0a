"""Superpixel sources: one file, one source, one name in YAML.

A file of this folder that has a `Config` and a `segment` is a source; nothing else needs to know of it. One that asks a
pretrained model says which, by `weights(config)`, and where it keeps what it asked, by `pool(config)`.
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
    weights, pool = getattr(module, "weights", _no_weights), getattr(module, "pool", _no_pool)
    return Source(name, module.Config, module.segment, weights, pool)


def _no_weights(_: SourceConfig) -> tuple[WeightsRecord, ...]:
    return ()


def _no_pool(_: SourceConfig) -> None:
    return None
