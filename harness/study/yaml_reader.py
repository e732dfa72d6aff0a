"""Reads YAML as trees, within stated limits: no file, however it is written, hangs or ends in a traceback.

A study needs plain YAML only: mappings with text as keys, lists, text, numbers, true, false and null. Anchors and
aliases are allowed; dates, merge keys (`<<`) and other tags are refused, because no setting takes them.
"""

import stat
import unicodedata
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
from harness.study.yaml_node import SourceLocation, YamlNode

MAX_FILE_BYTES = 1_000_000
MAX_VALUES = 50_000
"""Mappings, lists and scalars of one file, each alias counted as what it stands for."""
MAX_DEPTH = 50
"""Mappings and lists inside one another."""
MAX_TEXT = 10_000
"""Characters of one text."""
MAX_KEY = 200
"""Characters of one key."""
MAX_INT = 2**53 - 1
"""The largest whole number that JSON keeps exactly everywhere."""

_TOO_DEEP = f"more than {MAX_DEPTH} mappings and lists inside one another; write it flatter"
_CORE = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_CORE + kind for kind in ("null", "bool", "int", "float", "str", "map", "seq"))
_NULLS = ("", "~", "null", "Null", "NULL")
_UNREADABLE = (ValueError, LookupError, OverflowError, TypeError)
"""What comes of a scalar whose text does not fit its tag."""


class _LimitError(Exception):
    """A document is larger than a study needs."""


def read(path: Path, problems: list[str]) -> YamlNode | None:
    """The mapping in a file; None where there is none, with the reason appended to `problems`."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            problems.append(f"{path}: cannot be read (it is {kind}); give the path of a YAML file")
            return None
        if found.st_size > MAX_FILE_BYTES:
            problems.append(
                f"{path}: has {found.st_size:,} bytes; a study has at most {MAX_FILE_BYTES:,}; give a smaller YAML file"
            )
            return None
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8")
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        problems.append(f"{shorten(str(path), 300)}: cannot be read ({reason}); give the path of a YAML file")
        return None
    tree = parse(text, SourceLocation(str(path), 1), problems)
    if tree is not None and not tree.is_mapping:
        problems.append(f"{path}: holds {_kind(tree.value)}; it must be a mapping of keys to values")
        return None
    return tree


def parse(text: str, spot: SourceLocation, problems: list[str]) -> YamlNode | None:
    """YAML text as a tree; what a study cannot hold is appended to `problems`.

    Args:
        spot: of the text's first line; without a line, the text is one argument and has none.
    """
    if len(text) > MAX_FILE_BYTES:
        problems.append(f"{spot}: has {len(text):,} characters; at most {MAX_FILE_BYTES:,} are allowed")
        return None
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    yaml.max_depth = MAX_DEPTH
    try:
        root = yaml.compose(text)
        return YamlNode(None, spot) if root is None else _Builder(yaml, spot, problems).build(root, "", root)
    except MaxDepthExceededError:
        problems.append(f"{spot}: is larger than a study may be: {_TOO_DEEP}")
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = replace(spot, line=spot.line + mark.line) if mark and spot.line else spot
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        problems.append(f"{place}: not valid YAML: {shorten(reason, 300)}")
    except ReaderError as error:
        problems.append(f"{spot}: not valid YAML: the character {_code(error.character)} is not allowed; remove it")
    except _LimitError as error:
        problems.append(f"{spot}: is larger than a study may be: {error}")
    except (YAMLError, ValueError, OverflowError) as error:  # the last two of an escape beyond Unicode
        problems.append(f"{spot}: not valid YAML: {shorten(str(error), 300)}")
    return None


class _Composer(Composer):
    """Composes nodes until there are too many of them."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self.num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node with everything in it."""
        self.num_nodes += 1
        _check_size(self.num_nodes, depth=1)
        return super().compose_node(parent, index)


class _Builder:
    """Turns composed YAML nodes into trees, so that lines survive and duplicate keys are seen."""

    def __init__(self, yaml: YAML, spot: SourceLocation, problems: list[str]) -> None:
        self.yaml = yaml
        self.spot = spot
        self.problems = problems
        self.num_values = 0
        self.around: list[RuamelNode] = []

    def build(self, node: RuamelNode, key: str, at: RuamelNode) -> YamlNode:
        """The tree of a node that is written under `key`, on the line of `at`."""
        self.num_values += 1
        _check_size(self.num_values, len(self.around) + 1)
        spot = self._spot(key, at)
        if any(outer is node for outer in self.around):
            self.problems.append(f"{spot}: an alias stands inside the value that it repeats; write the value out")
            return YamlNode(None, spot)
        if node.tag not in _PLAIN_TAGS:
            self.problems.append(f"{spot}: {_refused(node)}")
            return YamlNode(str(node.value) if isinstance(node, ScalarNode) else None, spot)
        if isinstance(node, ScalarNode):
            return YamlNode(self._scalar(node, spot), spot)
        self.around.append(node)
        value: Any
        if isinstance(node, MappingNode):
            value = self._mapping(node, key)
        else:
            assert isinstance(node, SequenceNode)
            value = [self.build(item, f"{key}.{i}" if key else str(i), item) for i, item in enumerate(node.value)]
        self.around.pop()
        return YamlNode(value, spot)

    def _spot(self, key: str, at: RuamelNode) -> SourceLocation:
        line = self.spot.line and self.spot.line + at.start_mark.line
        return SourceLocation(self.spot.source, line, ".".join(filter(None, (self.spot.key, key))))

    def _scalar(self, node: ScalarNode, spot: SourceLocation) -> Any:
        try:
            value = self.yaml.constructor.construct_object(node)
        except _UNREADABLE:
            value = node.value
        is_too_large = isinstance(value, int) and abs(value) > MAX_INT
        if node.tag == f"{_CORE}int" and (is_too_large or not isinstance(value, int)):
            mistake: str | None = f"found {shorten(node.value)}; must be a whole number of at most {MAX_INT:,}"
        elif (isinstance(value, str) and node.tag != f"{_CORE}str") or (value is None and node.value not in _NULLS):
            mistake = f"found {shorten(node.value)!r}, which is no {str(node.tag).removeprefix(_CORE)}; remove the tag"
        else:
            mistake = mistake_in_text(value, MAX_TEXT) if isinstance(value, str) else None
        if mistake is not None:
            self.problems.append(f"{spot}: {mistake}")
            return None
        return value

    def _mapping(self, node: MappingNode, key: str) -> dict[str, YamlNode]:
        built: dict[str, YamlNode] = {}
        for name_node, value_node in node.value:
            mistake = _mistake_in_key(name_node)
            if mistake is not None:
                self.problems.append(f"{self._spot(key, name_node)}: {mistake}")
                continue
            name = name_node.value
            tree = self.build(value_node, f"{key}.{name}" if key else name, name_node)
            if name in built:
                first = built[name].spot.line
                self.problems.append(f"{tree.spot}: the key is given twice, first on line {first}; keep one")
            built[name] = tree
        return built


def _check_size(num_values: int, depth: int) -> None:
    """Raises where a document is larger than a study needs."""
    if num_values > MAX_VALUES:
        raise _LimitError(f"more than {MAX_VALUES:,} values, each alias written out; shorten its lists")
    if depth > MAX_DEPTH:
        raise _LimitError(_TOO_DEEP)


def _mistake_in_key(node: RuamelNode) -> str | None:
    if not isinstance(node, ScalarNode):
        return "a key is a mapping or a list; it must be text"
    if node.tag == f"{_CORE}merge":
        return "merge keys (<<) are not supported; write the settings out, or put what arms share in base"
    if node.tag != f"{_CORE}str":
        return f"the key {shorten(node.value)} is not text; quote it"
    return mistake_in_text(node.value, MAX_KEY)


def mistake_in_text(text: str, limit: int) -> str | None:
    """What is wrong with a text, whatever it is for."""
    if len(text) > limit:
        return f"found a text of {len(text):,} characters; at most {limit:,} are allowed; shorten it"
    if text.isprintable():
        return None
    for character in text:
        # Control characters move the cursor of a terminal; a surrogate can be written to no file.
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\t":
            return f"holds the control character {_code(character)}; remove it"
    return None


def _refused(node: RuamelNode) -> str:
    """Why a value with this tag is no setting."""
    kind = str(node.tag).removeprefix(_CORE)
    if kind == "timestamp":
        return f"found the date {node.value}; no setting is a date; quote it if it is text"
    if kind in {"merge", "value"}:
        return f"found {node.value}, which has a meaning of its own in YAML; quote it"
    return f"the tag {shorten(kind)} is not supported; remove it"


def _code(character: int | str | bytes) -> str:
    return f"U+{character if isinstance(character, int) else ord(character):04X}"


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, list) else f"the single value {shorten(repr(value))}"
