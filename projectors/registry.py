"""Which projectors there are: the files of this folder, and the `svp_harness.projectors` entry points of others."""

import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import TypeVar

from projectors.contract import Projector, ProjectorError

ENTRY_POINT_GROUP = "svp_harness.projectors"
_MACHINERY = {"contract", "registry", "layers"}
_registered: dict[str, type[Projector]] = {}

P = TypeVar("P", bound=type[Projector])


def register(projector: P) -> P:
    """Class decorator: the projector's name in YAML is the name of the file it stands in.

    Raises:
        ProjectorError: the file already registered another class, or the name is taken by another file.
    """
    name = projector.__module__.rpartition(".")[2]
    other = _registered.get(name)
    if other is not None and other.__qualname__ != projector.__qualname__:
        raise ProjectorError(
            f"{projector.__module__}.py registers two projectors, {other.__name__} and {projector.__name__}; "
            "give each a file of its own, because the file name is the projector's name"
        )
    if other is not None and other.__module__ != projector.__module__:
        raise ProjectorError(
            f"projector {name!r} is registered by {other.__module__} and by {projector.__module__}; rename one file"
        )
    _registered[name] = projector
    return projector


@cache
def _origins() -> dict[str, Callable[[], object]]:
    """Name -> how to load it; nothing is imported until a projector is asked for."""
    import projectors

    origins: dict[str, Callable[[], object]] = {}
    for module in pkgutil.iter_modules(projectors.__path__):
        if module.name not in _MACHINERY and not module.name.startswith("_"):
            path = f"projectors.{module.name}.{module.name}" if module.ispkg else f"projectors.{module.name}"
            origins[module.name] = partial(import_module, path)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name in origins:
            raise ProjectorError(
                f"entry point {entry.name!r} of {entry.value} has the name of a projector that exists; rename it"
            )
        origins[entry.name] = entry.load
    return origins


def names() -> list[str]:
    """All projector names, sorted."""
    return sorted(_origins())


def get(name: str) -> type[Projector]:
    """The projector class of that name.

    Raises:
        ProjectorError: no such projector, or its file registers nothing.
    """
    origins = _origins()
    if name not in origins:
        near = get_close_matches(name, list(origins), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
        raise ProjectorError(f"no projector {name!r}; {hint}")
    origins[name]()
    if name not in _registered:
        raise ProjectorError(
            f"the file of projector {name!r} registers nothing of that name; decorate its class with @register"
        )
    return _registered[name]
