"""Validates a node with a pydantic model; each message names the location, the value found and what is allowed."""

import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import shorten, suggest, unknown_key
from harness.study.nodes.yaml_node import SourceLocation, YamlNode

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], node: YamlNode, problems: list[str]) -> M | None:
    """The model of a node; None if the node is invalid, with each problem appended to `problems`.

    Validation is strict, with the types of JSON: "3" and true are not integers, and a list is accepted as a tuple.
    """
    try:
        return model.model_validate_json(json.dumps(node.plain()), strict=True)
    except ValidationError as error:
        found: dict[SourceLocation, list[str]] = {}
        for details in error.errors(include_url=False):
            location, sentence = _sentence(details, model, node)
            found.setdefault(location, []).append(sentence)
        problems.extend(f"{location}: {' or '.join(dict.fromkeys(sentences))}" for location, sentences in found.items())
        return None


def _sentence(details: ErrorDetails, model: type[BaseModel], node: YamlNode) -> tuple[SourceLocation, str]:
    """The location and the message of one pydantic error."""
    kind, loc, found = details["type"], details["loc"], details["input"]
    context: dict[str, Any] = details.get("ctx", {})
    location = location_of(loc, node)
    if kind == "extra_forbidden":
        return location, unknown_key(str(loc[-1]), _fields(model, loc[:-1]))
    if kind == "missing":
        return location.under(str(loc[-1])), "is missing" + _description(model, loc)
    if kind == "union_tag_invalid":
        tag = context["tag"]
        return location_of(
            (*loc, "name"), node
        ), f"there is no {tag!r}; {suggest(tag, _quoted(context['expected_tags']))}"
    if kind == "union_tag_not_found":
        return location.under("name"), "is missing"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message.replace("an object", "a mapping").replace("valid array", "list")
    if kind in {"value_error", "assertion_error"}:
        return location, message
    if kind == "literal_error" and isinstance(found, str):
        near = get_close_matches(found, _quoted(context["expected"]), n=1)
        message += f"; did you mean {near[0]}?" if near else ""
    return location, f"found {shown(found)}; {message[:1].lower()}{message[1:]}"


def location_of(loc: Sequence[int | str], node: YamlNode) -> SourceLocation:
    """The location of the deepest part of `loc` that exists; union tags in `loc` are skipped."""
    for part in loc:
        value = node.value
        is_key = isinstance(value, dict) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            node = value[part]
    return node.location


def _fields(model: type[BaseModel], loc: Sequence[int | str]) -> set[str]:
    """The keys that are allowed at `loc` in a model."""
    return {field for found in _models(model, loc) for field in found.model_fields}


def _description(model: type[BaseModel], loc: Sequence[int | str]) -> str:
    fields = (found.model_fields.get(str(loc[-1])) for found in _models(model, loc[:-1]))
    return next((f" ({field.description})" for field in fields if field and field.description), "")


def _models(model: type[BaseModel], loc: Sequence[int | str]) -> list[type[BaseModel]]:
    """The models at `loc`: several for a union without a tag."""
    models = [model]
    for part in loc:
        nested = [
            found
            for m in models
            if part in m.model_fields
            for found in _nested_models(m.model_fields[str(part)].annotation)
        ]
        tagged = [m for m in models if "name" in m.model_fields and m.model_fields["name"].default == part]
        models = nested or tagged or models
    return models


def _nested_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _nested_models(argument)


def _quoted(expected: str) -> list[str]:
    return re.findall(r"'([^']*)'", expected)


def shown(value: object) -> str:
    """A value as a message shows it; only the kind of a mapping or list."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else shorten(repr(value))
