"""Tables of settings from the pydantic models that check them; a field without a description fails the build."""

import re
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from markup import escape, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from sphinx.errors import ExtensionError

from harness.study.cell_spec import MODELS, REGISTRIES
from harness.study.schema import StudySettings

HEADINGS = ("key", "type and bounds", "unit", "default", "meaning")
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "path", Any: "any value"}
UNITS = {
    **{word: word for word in ("steps", "images", "layers", "blocks", "tokens", "queries", "heads")},
    **{"expressions_per_image": "expressions per image", "depth": "layers", "count": "superpixels"},
    **{"width": "channels", "trials": "search points", "repeats": "runs"},
}
"""Unit of a number by the last word of its key, where its description does not state one."""
STATED_UNIT = re.compile(r"\bin (pixels|patches|logits|seconds)\b|\bas a (share of [^,;]+)|\b(share) of\b")


class Setting(NamedTuple):
    """One row of a table."""

    key: str
    kind: str
    unit: str
    default: str
    meaning: str


def settings(model: type[BaseModel], prefix: str = "", owner: str = "") -> Iterator[Setting]:
    """The settings of a model, each followed by those of the models inside it under dotted keys.

    Raises:
        ExtensionError: a field has no description.
    """
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        kind = describe_type(field)
        meaning = meaning_of(model, name, field)
        yield Setting(key, kind, unit_of(name, field), default_of(field), f"{owner}{meaning}")
        for inner in models_in(field.annotation):
            alternative = alternative_name(inner)
            yield from settings(
                inner, f"{key}{_position(field.annotation)}.", f"`{alternative}` only: " if alternative else ""
            )


def _position(annotation: Any) -> str:
    """How the key of a setting goes on to one of its items: `[]` in a list, `.<key>` in a mapping."""
    return {tuple: "[]", dict: ".<path>"}.get(get_origin(annotation), "")


def meaning_of(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    """A field's description; a field with one allowed value, which names the model, needs none."""
    if field.description:
        return escape(field.description)
    if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
        return "selects these settings" if name == "name" else "the only one"
    raise ExtensionError(f"{model.__module__}: {model.__qualname__}.{name} has no description; add Field(description=)")


def alternative_name(model: type[BaseModel]) -> str:
    """The fixed `name` of a model that is one of several alternatives; empty for any other."""
    field = model.model_fields.get("name")
    return str(field.default) if field is not None and get_origin(field.annotation) is Literal else ""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation mentions, in order."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in () if get_origin(annotation) is Literal else get_args(annotation):
        yield from models_in(part)


def describe_type(field: FieldInfo) -> str:
    """The type of a field with its bounds: `integer, 1 to 64`."""
    return ", ".join(filter(None, (type_name(field.annotation), bounds_of(field.metadata))))


def type_name(annotation: Any) -> str:
    """A type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in TYPES:
        return TYPES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        alternative = alternative_name(annotation)
        return f"`{alternative}`" if alternative else "mapping"
    if origin is Literal:
        return " or ".join(f"`{yaml_value(part)}`" for part in parts)
    if origin in (Union, types.UnionType):
        names = ["null" if part is type(None) else type_name(part) for part in parts]
        return " or ".join(name for name in names if not (name == "integer" and "number" in names))
    if origin is tuple:
        return f"list of {plural(type_name(parts[0]))}"
    if origin is dict:
        return f"mapping of {type_name(parts[0])} to {type_name(parts[1])}"
    if parts and hasattr(annotation, "__metadata__"):
        fields = [part for one in annotation.__metadata__ for part in getattr(one, "metadata", (one,))]
        bounds = bounds_of(fields)
        return f"{type_name(parts[0])} ({bounds})" if bounds else type_name(parts[0])
    raise ExtensionError(f"no name for the type {annotation!r} of a setting")


def plural(name: str) -> str:
    """`integers`, `strings (length at most 3)`."""
    return re.sub(r"^(integer|number|string|mapping|path)\b", r"\1s", name)


def bounds_of(metadata: list[Any]) -> str:
    """Bounds in words, from the constraints of a field."""
    found = {name: getattr(one, name) for one in metadata for name in _BOUNDS if getattr(one, name, None) is not None}
    if {"ge", "le"} <= found.keys():
        return f"{yaml_value(found['ge'])} to {yaml_value(found['le'])}"
    return ", ".join(template.format(yaml_value(found[name])) for name, template in _BOUNDS.items() if name in found)


_BOUNDS = {
    "ge": "at least {}",
    "gt": "above {}",
    "le": "at most {}",
    "lt": "below {}",
    "min_length": "length at least {}",
    "max_length": "length at most {}",
    "multiple_of": "multiple of {}",
    "pattern": "matching `{}`",
}


def unit_of(name: str, field: FieldInfo) -> str:
    """The unit of a number: as its description states it, or by the last word of its key."""
    if not re.search(r"\b(integer|number)\b", type_name(field.annotation)):
        return "-"
    stated = STATED_UNIT.search(field.description or "")
    if stated:
        return next(filter(None, stated.groups()))
    return UNITS.get(name) or UNITS.get(name.rpartition("_")[2], "-")


def default_of(field: FieldInfo) -> str:
    """A default as YAML has it, or that there is none."""
    if field.is_required():
        return "required"
    return f"`{yaml_value(field.get_default(call_default_factory=True))}`"


def yaml_value(value: Any) -> str:
    """A value as YAML has it, in one line."""
    if isinstance(value, BaseModel):
        return alternative_name(type(value)) or yaml_value(value.model_dump(exclude_defaults=True, mode="json"))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(yaml_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if is_whole else str(value)


def settings_table(model: type[BaseModel]) -> str:
    """The settings of a model as a Markdown table."""
    rows = [(f"`{row.key}`", *row[1:]) for row in settings(model)]
    return f":::{{container}} settings\n{table(HEADINGS, rows)}:::\n"


def registered(section: str) -> str:
    """One subsection with a table for every name that a section can have."""
    parts = []
    for name in REGISTRIES[section].names():
        model = REGISTRIES[section].get(name).Config
        label = f"settings-{section}-{name}".replace("_", "-")
        parts.append(f"({label})=\n### `{name}`\n\n{settings_table(model)}")
    return "\n".join(parts)


def _of(model: type[BaseModel]) -> Callable[[], str]:
    return lambda: settings_table(model)


def _registered(section: str) -> Callable[[], str]:
    return lambda: registered(section)


CONTENT: dict[str, Callable[[], str]] = {
    "study": _of(StudySettings),
    **{section: _of(model) for section, model in MODELS.items()},
    **{section: _registered(section) for section in REGISTRIES},
}
