"""Validates a part of a YAML tree with a pydantic model and says what is wrong, where, and what is allowed."""

import json
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import shorten, suggest, unknown_key
from harness.study.yaml_node import SourceLocation, YamlNode

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], tree: YamlNode, problems: list[str]) -> M | None:
    """The model of this part of the tree; None where it has mistakes, each of them appended to `problems`.

    Validation is strict, as of JSON: "3" and true are no integers, a list is a tuple.
    """
    try:
        return model.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        found: dict[SourceLocation, list[str]] = {}
        for details in error.errors(include_url=False):
            spot, sentence = _sentence(details, model, tree)
            found.setdefault(spot, []).append(sentence)
        problems.extend(f"{spot}: {' or '.join(dict.fromkeys(sentences))}" for spot, sentences in found.items())
        return None


def _sentence(details: ErrorDetails, model: type[BaseModel], tree: YamlNode) -> tuple[SourceLocation, str]:
    """Where a mistake is, and what it is."""
    kind, loc, found = details["type"], details["loc"], details["input"]
    context: dict[str, Any] = details.get("ctx", {})
    spot = spot_of(loc, tree)
    if kind == "extra_forbidden":
        return spot, unknown_key(str(loc[-1]), _fields(model, loc[:-1]))
    if kind == "missing":
        return spot.under(str(loc[-1])), "is missing" + _description(model, loc)
    if kind == "union_tag_invalid":
        tag = context["tag"]
        return spot_of((*loc, "name"), tree), f"there is no {tag!r}; {suggest(tag, _quoted(context['expected_tags']))}"
    if kind == "union_tag_not_found":
        return spot.under("name"), "is missing"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message.replace("an object", "a mapping").replace("valid array", "list")
    if kind in {"value_error", "assertion_error"}:
        return spot, message
    if kind == "literal_error" and isinstance(found, str):
        near = get_close_matches(found, _quoted(context["expected"]), n=1)
        message += f"; did you mean {near[0]}?" if near else ""
    return spot, f"found {_shown(found)}; {message[:1].lower()}{message[1:]}"


def spot_of(loc: Sequence[int | str], tree: YamlNode) -> SourceLocation:
    """The place of the deepest part of `loc` that is written down; union tags in it stand for nothing."""
    for part in loc:
        value = tree.value
        is_key = isinstance(value, dict) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            tree = value[part]
    return tree.spot


def _fields(model: type[BaseModel], loc: Sequence[int | str]) -> set[str]:
    """The keys that are allowed at a place of a model."""
    return {field for found in _models(model, loc) for field in found.model_fields}


def _description(model: type[BaseModel], loc: Sequence[int | str]) -> str:
    fields = (found.model_fields.get(str(loc[-1])) for found in _models(model, loc[:-1]))
    return next((f" ({field.description})" for field in fields if field and field.description), "")


def _models(model: type[BaseModel], loc: Sequence[int | str]) -> list[type[BaseModel]]:
    """The models that may stand at a place: several for a union without a tag."""
    models = [model]
    for part in loc:
        inner = [
            found for m in models if part in m.model_fields for found in _inside(m.model_fields[str(part)].annotation)
        ]
        tagged = [m for m in models if "name" in m.model_fields and m.model_fields["name"].default == part]
        models = inner or tagged or models
    return models


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inside(argument)


def _quoted(expected: str) -> list[str]:
    return re.findall(r"'([^']*)'", expected)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else shorten(repr(value))
