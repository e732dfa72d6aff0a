"""Named components of a study: the modules of one folder, and modules that other packages add by entry points."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar

from projectors.errors import ProjectorError

if TYPE_CHECKING:
    from projectors.contract import Projector

T = TypeVar("T")
P = TypeVar("P", bound="type[Projector]")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """Components of one kind by name; the name of a component is the name of its file.

    If a component is a subpackage, its module has the same name. Listing the names imports no component.

    Attributes:
        kind: noun for error messages.
        package: import path of the package whose modules are the built-in components.
        group: entry-point group in which other packages name their modules.
        find: the component that an imported module defines; None if it defines none.
        requirement: what a module must have so that `find` succeeds, for the error message.
        error: type of the errors that are raised.
        shared: modules of the package that define no component.
        hint: a hint for an unknown name that takes the place of near matches; None for no hint.
    """

    kind: str
    package: str
    group: str
    find: Callable[[ModuleType], T | None]
    requirement: str
    error: type[Exception]
    shared: frozenset[str] = frozenset()
    hint: Callable[[str], str | None] = lambda _: None

    def names(self) -> list[str]:
        """All names, sorted.

        Raises:
            self.error: an entry point has the name of another component, or not the name of its module.
        """
        return sorted(self._modules)

    def get(self, name: str) -> T:
        """The component of that name.

        Raises:
            self.error: the name is unknown, or its module defines no component or cannot be imported.
        """
        if name not in self._modules:
            raise self.error(f"no {self.kind} {name!r:.80}; {self.hint(name) or self._suggestion(name)}")
        module = self._modules[name]()
        component = self.find(module)
        if component is None:
            raise self.error(f"the module {module.__name__} defines no {self.kind}; {self.requirement}")
        return component

    @cached_property
    def _modules(self) -> dict[str, Callable[[], ModuleType]]:
        """Name -> a function that imports the module."""
        modules: dict[str, Callable[[], ModuleType]] = {}
        for found in pkgutil.iter_modules(import_module(self.package).__path__):
            if found.name not in self.shared and not found.name.startswith("_"):
                path = f"{self.package}.{found.name}" + (f".{found.name}" if found.ispkg else "")
                modules[found.name] = partial(import_module, path)
        for entry in entry_points(group=self.group):
            if entry.name in modules:
                raise self.error(f"{_origin(entry)} has the name of another {self.kind}; rename the entry and its file")
            if entry.name != entry.value.rpartition(".")[2]:
                raise self.error(
                    f"{_origin(entry)} names {entry.value}; the entry point must have the name of its module, "
                    "as `name = package.name`; rename one of them"
                )
            modules[entry.name] = partial(self._load, entry)
        return modules

    def _load(self, entry: EntryPoint) -> ModuleType:
        try:
            return import_module(entry.value)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise self.error(
                f"{_origin(entry)} names {entry.value}, which cannot be imported ({reason}); "
                "repair or uninstall that package"
            ) from error

    def _suggestion(self, name: str) -> str:
        near = get_close_matches(name[:80], self.names(), n=3)
        return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(self.names())}"


def _origin(entry: EntryPoint) -> str:
    """The entry point and the package that installed it."""
    package = f" of the package {entry.dist.name}" if entry.dist else ""
    return f"the entry point {entry.name!r}{package} in {entry.group}"


_classes: dict[str, "type[Projector]"] = {}
"""The registered projector of each module."""


def register(projector: P) -> P:
    """Class decorator: registers a projector under the name of its file.

    Raises:
        ProjectorError: the file has already registered another class.
    """
    other = _classes.setdefault(projector.__module__, projector)
    if other.__qualname__ != projector.__qualname__:
        raise ProjectorError(
            f"{projector.__module__}.py registers two projectors, {other.__name__} and {projector.__name__}; "
            "move one to a file of its own, because the file name is the projector's name"
        )
    _classes[projector.__module__] = projector
    return projector


PROJECTORS: "Registry[type[Projector]]" = Registry(
    kind="projector",
    package="projectors",
    group="svp_harness.projectors",
    find=lambda module: _classes.get(module.__name__),
    requirement="decorate its class with @register",
    error=ProjectorError,
    shared=frozenset({"contract", "errors", "layers", "registry"}),
)
names, get = PROJECTORS.names, PROJECTORS.get
