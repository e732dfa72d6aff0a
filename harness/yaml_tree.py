"""YAML with a memory: every value knows the file, the line and the key it was written at, through merges too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode


@dataclass(frozen=True, slots=True)
class Spot:
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

    def under(self, key: str | int, line: int | None = None) -> "Spot":
        """The place of a key inside this one."""
        return Spot(self.source, line or self.line, f"{self.key}.{key}" if self.key else str(key))


@dataclass(frozen=True, slots=True)
class Tree:
    """A YAML value with its place.

    Args:
        value: a dict or a list of trees, or a scalar.
    """

    value: Any
    spot: Spot

    @classmethod
    def of(cls, value: Any, spot: Spot) -> "Tree":
        """A plain value, all of it with one place."""
        if isinstance(value, dict):
            return cls({key: cls.of(inner, spot) for key, inner in value.items()}, spot)
        if isinstance(value, list):
            return cls([cls.of(inner, spot) for inner in value], spot)
        return cls(value, spot)

    @classmethod
    def nest(cls, path: Sequence[str], leaf: "Tree") -> "Tree":
        """{a: {b: leaf}} for the path a, b; the mappings around the leaf have the leaf's place."""
        tree = leaf
        for key in reversed(path):
            tree = cls({key: tree}, leaf.spot)
        return tree

    @property
    def is_mapping(self) -> bool:
        """Whether this is a mapping."""
        return isinstance(self.value, dict)

    def get(self, key: str) -> "Tree | None":
        """The value under a key; None where this is no mapping or has no such key."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def items(self) -> Iterator[tuple[str, "Tree"]]:
        """Keys and values of a mapping; nothing for anything else."""
        return iter(self.value.items()) if isinstance(self.value, dict) else iter(())

    def without(self, *keys: str) -> "Tree":
        """This mapping without some of its keys."""
        return replace(self, value={key: value for key, value in self.items() if key not in keys})

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {key: value.plain() for key, value in self.value.items()}
        if isinstance(self.value, list):
            return [value.plain() for value in self.value]
        return self.value


def merge(base: Tree | None, over: Tree) -> Tree:
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
    return Tree(merged, new.spot)


def _long_form(tree: Tree, other: Tree) -> Tree:
    """`sspe` as {name: sspe} where it meets a mapping."""
    if isinstance(tree.value, str) and other.is_mapping:
        return Tree({"name": tree}, tree.spot)
    return tree


def read(path: Path, problems: list[str]) -> Tree | None:
    """The mapping in a file; None where there is none, with the reason appended to `problems`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file")
        return None
    except UnicodeDecodeError as error:
        problems.append(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8")
        return None
    tree = parse(text, Spot(str(path), 1), problems)
    if tree is not None and not tree.is_mapping:
        problems.append(f"{path}: holds {_kind(tree.value)}; it must be a mapping of keys to values")
        return None
    return tree


def parse(text: str, spot: Spot, problems: list[str]) -> Tree | None:
    """YAML text as a tree; a syntax error or a key given twice is appended to `problems`.

    Args:
        spot: of the text's first line; without a line, the text is one argument and has none.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
        return Tree(None, spot) if root is None else _Builder(yaml, spot, problems).build(root, "", root)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = replace(spot, line=spot.line + mark.line) if mark and spot.line else spot
        problems.append(f"{place}: not valid YAML: {error.problem or error.context}")
    except YAMLError as error:
        problems.append(f"{spot}: not valid YAML: {error}")
    return None


class _Builder:
    """Turns composed YAML nodes into trees, so that lines survive and duplicate keys are seen."""

    def __init__(self, yaml: YAML, spot: Spot, problems: list[str]) -> None:
        self.yaml = yaml
        self.spot = spot
        self.problems = problems

    def build(self, node: YamlNode, key: str, at: YamlNode) -> Tree:
        """The tree of a node that is written under `key`, on the line of `at`."""
        line = self.spot.line and self.spot.line + at.start_mark.line
        spot = Spot(self.spot.source, line, ".".join(filter(None, (self.spot.key, key))))
        if isinstance(node, MappingNode):
            return Tree(self._mapping(node, key), spot)
        if isinstance(node, SequenceNode):
            inside = (self.build(item, f"{key}.{i}" if key else str(i), item) for i, item in enumerate(node.value))
            return Tree(list(inside), spot)
        return Tree(self.yaml.constructor.construct_object(node), spot)

    def _mapping(self, node: MappingNode, key: str) -> dict[str, Tree]:
        built: dict[str, Tree] = {}
        for name_node, value_node in node.value:
            name = name_node.value if isinstance(name_node, ScalarNode) else "?"
            tree = self.build(value_node, f"{key}.{name}" if key else name, name_node)
            if name in built:
                first = built[name].spot.line
                self.problems.append(f"{tree.spot}: the key is given twice, first on line {first}; keep one")
            built[name] = tree
        return built


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else f"the single value {value!r}"
