"""Superpixel sources: one file, one source, one name in YAML.

A file of the folder `methods` that has a `Config` and a `segment` is a source; nothing else needs to know of it. One
that uses a pretrained model names it by `weights(config)`, and one that chooses from a SAM's masks names the SAM by
`request(config)`. A source is a pure function of an image and of these masks; `harness.cache` keeps its results.
"""

import pkgutil
from functools import cache
from importlib import import_module

from harness.errors import HarnessError, suggest
from harness.model.weights.resolution import WeightsRecord
from harness.superpixels import methods
from harness.superpixels.source import Source, SourceConfig

__all__ = ["Source", "SourceConfig", "get", "names"]


@cache
def names() -> list[str]:
    """All source names, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


@cache
def get(name: str) -> Source:
    """The source of that name.

    Raises:
        HarnessError: no such source.
    """
    if name not in names():
        raise HarnessError(f"no superpixel source {name!r}; {suggest(name, names())}")
    module = import_module(f"{methods.__name__}.{name}")
    weights, request = getattr(module, "weights", _no_weights), getattr(module, "request", _no_request)
    return Source(name, module.Config, module.segment, weights, request)


def _no_weights(_: SourceConfig) -> tuple[WeightsRecord, ...]:
    return ()


def _no_request(_: SourceConfig) -> None:
    return None
