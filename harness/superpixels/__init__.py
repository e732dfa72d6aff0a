"""Superpixel sources: one file, one source, one name in YAML.

A source is a module of the folder `methods`, or of another package that names it in the entry-point group
`svp_harness.superpixels`. It has a `Config` and a function `segment`; a source with a pretrained model also has
`weights(config)`, and a source that selects from the masks of a SAM has `request(config)`. A source is a pure function
of the image and these masks; `harness.cache` stores its results.
"""

from types import ModuleType

from harness.errors import HarnessError
from harness.superpixels.source import Source, SourceConfig
from projectors.registry import Registry

__all__ = ["SOURCES", "Source", "SourceConfig", "get", "names"]


def _source(module: ModuleType) -> Source | None:
    """The source that a module defines; None if it defines none."""
    if not hasattr(module, "Config") or not hasattr(module, "segment"):
        return None
    name = module.__name__.rpartition(".")[2]
    weights, request = getattr(module, "weights", lambda _: ()), getattr(module, "request", lambda _: None)
    return Source(name, module.Config, module.segment, weights, request)


SOURCES: Registry[Source] = Registry(
    kind="superpixel source",
    package="harness.superpixels.methods",
    group="svp_harness.superpixels",
    find=_source,
    requirement="it must have `Config` and `segment`",
    error=HarnessError,
)
names, get = SOURCES.names, SOURCES.get
