"""YAML with a memory: every value knows the file, the line and the key it was written at, through merges too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Where something was written; reads `studies/x.yaml:12: base.training.steps`.

    Args:
        source: the file as the user named it, or the whole `--set` argument.
        line: counted from 1; None outside files.
        key: dotted path as it stands there; empty for the whole document.
    """

    source: str
    line: int | None = None
    key: str = ""

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{place}: {self.key}" if self.key else place

    def under(self, key: str | int, line: int | None = None) -> "SourceLocation":
        """The place of a key inside this one."""
        return SourceLocation(self.source, line or self.line, f"{self.key}.{key}" if self.key else str(key))


@dataclass(frozen=True, slots=True)
class YamlNode:
    """A YAML value with its place.

    Args:
        value: a dict or a list of trees, or a scalar.
    """

    value: Any
    spot: SourceLocation

    @classmethod
    def of(cls, value: Any, spot: SourceLocation) -> "YamlNode":
        """A plain value, all of it with one place."""
        if isinstance(value, dict):
            return cls({key: cls.of(inner, spot) for key, inner in value.items()}, spot)
        if isinstance(value, list):
            return cls([cls.of(inner, spot) for inner in value], spot)
        return cls(value, spot)

    @classmethod
    def nest(cls, path: Sequence[str], leaf: "YamlNode") -> "YamlNode":
        """{a: {b: leaf}} for the path a, b; the mappings around the leaf have the leaf's place."""
        tree = leaf
        for key in reversed(path):
            tree = cls({key: tree}, leaf.spot)
        return tree

    @property
    def is_mapping(self) -> bool:
        """Whether this is a mapping."""
        return isinstance(self.value, dict)

    def get(self, key: str) -> "YamlNode | None":
        """The value under a key; None where this is no mapping or has no such key."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def items(self) -> Iterator[tuple[str, "YamlNode"]]:
        """Keys and values of a mapping; nothing for anything else."""
        return iter(self.value.items()) if isinstance(self.value, dict) else iter(())

    def keys(self) -> list[str]:
        """Keys of a mapping; none for anything else."""
        return [key for key, _ in self.items()]

    def entries(self) -> list["YamlNode"]:
        """Values of a list; none for anything else."""
        return self.value if isinstance(self.value, list) else []

    def without(self, *keys: str) -> "YamlNode":
        """This mapping without some of its keys."""
        return replace(self, value={key: value for key, value in self.items() if key not in keys})

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: value.plain() for key, value in self.value.items()}
        if isinstance(self.value, list):
            return [value.plain() for value in self.value]
        return self.value


def merge(base: YamlNode | None, over: YamlNode) -> YamlNode:
    """`over` on top of `base`, key by key.

    Where both name something (`name: svp`, or the bare string that is short for it) and the names differ, the old
    siblings are dropped: a new projector never inherits another projector's settings.
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
    return YamlNode(merged, new.spot)


def _long_form(tree: YamlNode, other: YamlNode) -> YamlNode:
    """`sspe` as {name: sspe} where it meets a mapping."""
    if isinstance(tree.value, str) and other.is_mapping:
        return YamlNode({"name": tree}, tree.spot)
    return tree
