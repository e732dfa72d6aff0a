"""Values of a study file together with the file, line and key where each was written; merging keeps these locations.

Nodes exist only while a study is loaded and checked. A `Study` holds plain values and pydantic models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Where a value was written, printed as `studies/x.yaml:12: base.training.steps` or `study: base.training.steps`.

    Args:
        source: the file as the user named it, the whole `--set` argument, or the name of a study made from a mapping.
        line: counted from 1; None outside files.
        key: dotted path of the value; empty for the whole document.
    """

    source: str
    line: int | None = None
    key: str = ""

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{place}: {self.key}" if self.key else place

    def under(self, key: str | int, line: int | None = None) -> "SourceLocation":
        """The location of a key of this mapping, or of an item of this list."""
        return SourceLocation(self.source, line or self.line, f"{self.key}.{key}" if self.key else str(key))


@dataclass(frozen=True, slots=True)
class YamlNode:
    """A value and its location.

    Args:
        value: a dict of nodes, a list of nodes, or a scalar.
    """

    value: Any
    location: SourceLocation

    @classmethod
    def of(cls, value: Any, location: SourceLocation) -> "YamlNode":
        """A plain value as nodes; each nested value is located at its key under `location`."""
        if isinstance(value, dict):
            return cls({key: cls.of(inner, location.under(key)) for key, inner in value.items()}, location)
        if isinstance(value, list):
            return cls([cls.of(inner, location.under(i)) for i, inner in enumerate(value)], location)
        return cls(value, location)

    @classmethod
    def nest(cls, path: Sequence[str], leaf: "YamlNode") -> "YamlNode":
        """{a: {b: leaf}} for the path (a, b); the mappings around the leaf have the leaf's location."""
        node = leaf
        for key in reversed(path):
            node = cls({key: node}, leaf.location)
        return node

    @property
    def is_mapping(self) -> bool:
        """Whether the value is a mapping."""
        return isinstance(self.value, dict)

    def get(self, key: str) -> "YamlNode | None":
        """The value under a key; None if the key is missing or this is not a mapping."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def items(self) -> Iterator[tuple[str, "YamlNode"]]:
        """Keys and values of a mapping; empty for anything else."""
        return iter(self.value.items()) if isinstance(self.value, dict) else iter(())

    def keys(self) -> list[str]:
        """Keys of a mapping; empty for anything else."""
        return [key for key, _ in self.items()]

    def entries(self) -> list["YamlNode"]:
        """Items of a list; empty for anything else."""
        return self.value if isinstance(self.value, list) else []

    def without(self, *keys: str) -> "YamlNode":
        """This mapping without some keys."""
        return replace(self, value={key: value for key, value in self.items() if key not in keys})

    def plain(self) -> Any:
        """The value without locations."""
        if isinstance(self.value, dict):
            return {key: value.plain() for key, value in self.value.items()}
        if isinstance(self.value, list):
            return [value.plain() for value in self.value]
        return self.value


def merge(base: YamlNode | None, over: YamlNode) -> YamlNode:
    """Merges `over` into `base`, key by key; values of `over` win.

    If both have a `name` (`name: svp`, or the bare string as shorthand) and the names differ, `over` replaces `base`:
    a projector never inherits another projector's settings.
    """
    if base is None:
        return over
    old, new = _long_form(base, over), _long_form(over, base)
    if not (old.is_mapping and new.is_mapping):
        return over
    names = old.get("name"), new.get("name")
    if names[0] and names[1] and names[0].value != names[1].value:
        return over
    merged = dict(old.items())
    for key, value in new.items():
        merged[key] = merge(merged.get(key), value)
    return YamlNode(merged, new.location)


def _long_form(node: YamlNode, other: YamlNode) -> YamlNode:
    """Expands the shorthand `sspe` to {name: sspe} if the other value is a mapping."""
    if isinstance(node.value, str) and other.is_mapping:
        return YamlNode({"name": node}, node.location)
    return node
