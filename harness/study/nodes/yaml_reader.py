"""Loads YAML as nodes, within the limits of `harness.study.nodes.limits`; any file gives a node or a message.

A study needs plain YAML only: mappings with string keys, lists, strings, numbers, true, false and null. Anchors and
aliases are allowed. Dates, merge keys (`<<`) and other tags are refused, because no setting takes them.
"""

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, MaxDepthExceededError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as RuamelNode
from ruamel.yaml.reader import ReaderError

from harness.errors import shorten
from harness.study.nodes.limits import (
    MAX_DEPTH,
    MAX_INT,
    NOT_AN_INTEGER,
    TOO_DEEP,
    LimitError,
    check_size,
    codepoint,
    key_problem,
    string_problem,
)
from harness.study.nodes.yaml_node import SourceLocation, YamlNode

MAX_FILE_BYTES = 1_000_000

_CORE = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_CORE + kind for kind in ("null", "bool", "int", "float", "str", "map", "seq"))
_NULLS = ("", "~", "null", "Null", "NULL")
_UNREADABLE = (ValueError, LookupError, OverflowError, TypeError)
"""Raised by ruamel.yaml for a scalar whose text does not fit its tag."""


def read(path: Path, problems: list[str]) -> YamlNode | None:
    """The mapping in a YAML file; None if it cannot be loaded, with the reason appended to `problems`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            problems.append(f"{path}: cannot be loaded (it is {kind}); pass the path of a YAML file")
            return None
        if status.st_size > MAX_FILE_BYTES:
            problems.append(
                f"{path}: has {status.st_size:,} bytes; a study may have at most {MAX_FILE_BYTES:,}; shorten it"
            )
            return None
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8")
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        problems.append(f"{shorten(str(path), 300)}: cannot be loaded ({reason}); pass the path of a YAML file")
        return None
    node = parse(text, SourceLocation(str(path), 1), problems)
    if node is not None and not node.is_mapping:
        problems.append(f"{path}: contains {_kind(node.value)}; must be a mapping")
        return None
    return node


def parse(text: str, location: SourceLocation, problems: list[str]) -> YamlNode | None:
    """YAML text as a node; None if it is not valid YAML. Everything that is not allowed is appended to `problems`.

    Args:
        location: of the first line of the text; without a line for a `--set` argument.
    """
    if len(text) > MAX_FILE_BYTES:
        problems.append(f"{location}: has {len(text):,} characters; at most {MAX_FILE_BYTES:,} are allowed")
        return None
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    yaml.max_depth = MAX_DEPTH
    try:
        root = yaml.compose(text)
        return YamlNode(None, location) if root is None else _Builder(yaml, location, problems).build(root, "", root)
    except MaxDepthExceededError:
        problems.append(f"{location}: is too large for a study: {TOO_DEEP}")
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = replace(location, line=location.line + mark.line) if mark and location.line else location
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        problems.append(f"{place}: not valid YAML: {shorten(reason, 300)}")
    except ReaderError as error:
        character = codepoint(error.character)
        problems.append(f"{location}: not valid YAML: the character {character} is not allowed; remove it")
    except LimitError as error:
        problems.append(f"{location}: is too large for a study: {error}")
    except (YAMLError, ValueError, OverflowError) as error:  # the last two for an escape beyond Unicode
        problems.append(f"{location}: not valid YAML: {shorten(str(error), 300)}")
    return None


class _Composer(Composer):
    """Composes ruamel.yaml's nodes, up to `MAX_VALUES` of them."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self.num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node and its descendants."""
        self.num_nodes += 1
        check_size(self.num_nodes, depth=1)
        return super().compose_node(parent, index)


class _Builder:
    """Converts composed nodes to `YamlNode`s, which keep line numbers; duplicate keys are reported."""

    def __init__(self, yaml: YAML, location: SourceLocation, problems: list[str]) -> None:
        self.yaml = yaml
        self.location = location
        self.problems = problems
        self.num_values = 0
        self.ancestors: list[RuamelNode] = []

    def build(self, node: RuamelNode, key: str, line_of: RuamelNode) -> YamlNode:
        """Converts the node under `key`; its line number is that of `line_of`."""
        self.num_values += 1
        check_size(self.num_values, len(self.ancestors) + 1)
        location = self._location(key, line_of)
        if any(ancestor is node for ancestor in self.ancestors):
            self.problems.append(f"{location}: an alias is inside the value that it repeats; write the value out")
            return YamlNode(None, location)
        if node.tag not in _PLAIN_TAGS:
            self.problems.append(f"{location}: {_tag_problem(node)}")
            return YamlNode(str(node.value) if isinstance(node, ScalarNode) else None, location)
        if isinstance(node, ScalarNode):
            return YamlNode(self._scalar(node, location), location)
        self.ancestors.append(node)
        value: Any
        if isinstance(node, MappingNode):
            value = self._mapping(node, key)
        else:
            assert isinstance(node, SequenceNode)
            value = [self.build(item, f"{key}.{i}" if key else str(i), item) for i, item in enumerate(node.value)]
        self.ancestors.pop()
        return YamlNode(value, location)

    def _location(self, key: str, line_of: RuamelNode) -> SourceLocation:
        line = self.location.line and self.location.line + line_of.start_mark.line
        return SourceLocation(self.location.source, line, ".".join(filter(None, (self.location.key, key))))

    def _scalar(self, node: ScalarNode, location: SourceLocation) -> Any:
        try:
            value = self.yaml.constructor.construct_object(node)
        except _UNREADABLE:
            value = node.value
        is_too_large = isinstance(value, int) and abs(value) > MAX_INT
        if node.tag == f"{_CORE}int" and (is_too_large or not isinstance(value, int)):
            problem: str | None = f"found {shorten(node.value)}; {NOT_AN_INTEGER}"
        elif (isinstance(value, str) and node.tag != f"{_CORE}str") or (value is None and node.value not in _NULLS):
            kind = str(node.tag).removeprefix(_CORE)
            problem = f"found {shorten(node.value)!r}, which is not a valid {kind}; remove the tag"
        else:
            problem = string_problem(value) if isinstance(value, str) else None
        if problem is not None:
            self.problems.append(f"{location}: {problem}")
            return None
        return value

    def _mapping(self, node: MappingNode, key: str) -> dict[str, YamlNode]:
        built: dict[str, YamlNode] = {}
        for name_node, value_node in node.value:
            problem = _key_problem(name_node)
            if problem is not None:
                self.problems.append(f"{self._location(key, name_node)}: {problem}")
                continue
            name = name_node.value
            child = self.build(value_node, f"{key}.{name}" if key else name, name_node)
            if name in built:
                first = built[name].location.line
                self.problems.append(f"{child.location}: duplicate key, first on line {first}; keep one")
            built[name] = child
        return built


def _key_problem(node: RuamelNode) -> str | None:
    if not isinstance(node, ScalarNode):
        return "a key is a mapping or a list; must be a string"
    if node.tag == f"{_CORE}merge":
        return "merge keys (<<) are not supported; write the settings out, or put shared settings in base"
    if node.tag != f"{_CORE}str":
        return f"the key {shorten(node.value)} is not a string; quote it"
    return key_problem(node.value)


def _tag_problem(node: RuamelNode) -> str:
    """Why a value with this tag is refused."""
    kind = str(node.tag).removeprefix(_CORE)
    if kind == "timestamp":
        return f"found the date {node.value}; no setting is a date; quote it if it is text"
    if kind in {"merge", "value"}:
        return f"found {node.value}, which has a special meaning in YAML; quote it"
    return f"the tag {shorten(kind)} is not supported; remove it"


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else f"the single value {shorten(repr(value))}"
