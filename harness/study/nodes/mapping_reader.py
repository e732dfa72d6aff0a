"""Converts a Python mapping to nodes, with the checks that `yaml_reader` makes of a file."""

from collections.abc import Mapping
from typing import Any

from harness.study.nodes.limits import MAX_INT, NOT_AN_INTEGER, LimitError, check_size, key_problem, string_problem
from harness.study.nodes.yaml_node import SourceLocation, YamlNode

_ALLOWED = "a mapping, a list, a string, a number, a bool or None"


def read_mapping(mapping: object, location: SourceLocation, problems: list[str]) -> YamlNode | None:
    """The mapping as a node; None if it is not a mapping or too large. Problems are appended to `problems`.

    Args:
        location: of the mapping; the location of each value is its key under it.
    """
    if not isinstance(mapping, Mapping):
        problems.append(f"{location}: found {_shown(mapping)}; must be a mapping of keys to values")
        return None
    try:
        return _Builder(problems).build(mapping, location, depth=1)
    except LimitError as error:
        problems.append(f"{location}: is too large for a study: {error}")
        return None


class _Builder:
    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        self.num_values = 0

    def build(self, value: object, location: SourceLocation, depth: int) -> YamlNode:
        self.num_values += 1
        check_size(self.num_values, depth)
        if isinstance(value, Mapping):
            return YamlNode(self._mapping(value, location, depth), location)
        if isinstance(value, list | tuple):
            return YamlNode([self.build(item, location.under(i), depth + 1) for i, item in enumerate(value)], location)
        return YamlNode(self._scalar(value, location), location)

    def _mapping(self, mapping: Mapping[Any, Any], location: SourceLocation, depth: int) -> dict[str, YamlNode]:
        built = {}
        for key, value in mapping.items():
            problem = (
                key_problem(key) if isinstance(key, str) else f"the key {_shown(key)} is not a string; use a string"
            )
            if problem is not None:
                self.problems.append(f"{location}: {problem}")
                continue
            name = str.__str__(key)
            built[name] = self.build(value, location.under(name), depth + 1)
        return built

    def _scalar(self, value: object, location: SourceLocation) -> bool | int | float | str | None:
        """The value as a built-in type; subclasses such as `numpy.float64` and string enumerations are converted."""
        problem = None
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            problem = string_problem(value)
            value = str.__str__(value)
        elif isinstance(value, int):
            value = int(value)
            problem = None if abs(value) <= MAX_INT else f"found a larger integer; {NOT_AN_INTEGER}"
        else:
            problem = f"found {_shown(value)}; must be {_ALLOWED}"
        if problem is not None:
            self.problems.append(f"{location}: {problem}")
            return None
        assert isinstance(value, int | str)
        return value


def _shown(value: object) -> str:
    """A value as a message shows it; only its type if its representation may be long."""
    is_short = value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= MAX_INT)
    kind = type(value).__name__
    return f"{value!r} ({kind})" if is_short else f"a value of type {kind}"
