"""Mutates studies: invalid values, removed, duplicate and unknown keys, swapped sections."""

import json
import random
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML

OTHER_FILE = "/etc/passwd"
"""As a value of `extends`, the file that messages name."""
NASTY = (
    *("", "null", "~", "true", "no", "-1", "0", "1.5", "1e308", "-1e308", "1e400", ".inf", "-.inf", ".nan", "-0.0"),
    *("9223372036854775808", "-9223372036854775809", "1" * 5000, "0x7fffffffffffffffffff", "0o17", "1_000", "43000"),
    *("2020-01-01", "2020-13-45", "2020-01-01T25:61:61Z", "12:30:45", "=", "<<", "!!int abc", "!!int ''", "!!bool x"),
    *(
        "!!float x",
        "!!null x",
        "!!binary aGk=",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!python/object:os.system {}",
        "!x y",
    ),
    *("[]", "{}", "[[]]", "[{}]", "{a: {b: {c: 1}}}", "[1, [2, [3]]]", "{? [a, b] : c}", "{null: 1}", "{1: 2}"),
    *("{'': 1}", "{<<: {steps: 1}}", "&a [*a]", "*nowhere", "&x 1", "[&y {a: 1}, *y]", "{name: }", "{name: []}"),
    *('"[/bold]"', '"[red]x[/red]"', '":skull:"', r'"\0"', r'"\e[31m"', r'"\ud800"', r'"\UFFFFFFFF"', r'"\r\n"'),
    *('"\u202e\u0301"', '"%s{}{0}"', "'~nobody/x'", "'../..'", OTHER_FILE, "/dev/zero", ".", "'a/b'", "'a/../b'"),
    *("x" * 300, "'" + "y" * 20_000 + "'", "svp", "mlp", "pooling", "scenes", "sam-scenes", "dinov2-small", "tiny"),
    *("scratch", "random-x", "README.md", "[1, 1]", "[0, 1, 2]", "{name: {a: b}}", "{low: 1, high: 3}"),
    *("{low: .nan, high: 3}", "{low: 3, high: 1, log: true, step: 0}"),
)
"""Values as YAML text."""
KEYS = (
    *("name", "base", "arms", "search", "seeds", "objectives", "baseline", "claims", "margin", "extends", "question"),
    *(
        "projector",
        "superpixels",
        "training",
        "data",
        "llm",
        "vision_encoder",
        "mask_decoder",
        "init_from",
        "evaluation",
    ),
    *("tokens", "count", "width", "layers", "steps", "at", "family", "within", "better", "than", "space", "low"),
    *("", "1", "null", "a.b", "..", "<<", "2020-01-01", "[bold]", '"\\0"', "k" * 300, "? [a]", "=", "&k x"),
)


class Raw(str):
    """YAML text that is written without quoting."""


def plain(text: str) -> Any:
    """A study as plain Python values."""
    return YAML(typ="safe", pure=True).load(text)


def written(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def _key(key: str) -> str:
    return key if isinstance(key, Raw) else json.dumps(key)


def mutated(study: Any, chance: random.Random) -> Any:
    """The study with one to three random changes."""
    study = json.loads(json.dumps(study))
    for _ in range(chance.choice((1, 1, 2, 3))):
        entries = list(_entries(study))
        if entries:
            _change(*chance.choice(entries), chance, entries)
    return study


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _entries(inner)


def _change(container: Any, key: Any, chance: random.Random, entries: list[tuple[Any, Any]]) -> None:
    kind = chance.randrange(8)
    nasty = Raw(chance.choice(NASTY))
    if kind <= 2:
        container[key] = nasty
    elif kind == 3:
        del container[key]
    elif kind == 4 and isinstance(container, dict):
        container[Raw(chance.choice([*KEYS, str(key)]))] = container[key] if chance.random() < 0.5 else nasty
    elif kind == 5:
        other, at = chance.choice(entries)
        if at in (other if isinstance(other, dict) else range(len(other))):
            # Copied, so that a section cannot contain itself.
            container[key], other[at] = _copy(other[at]), _copy(container[key])
    elif kind == 6:
        container[key] = [container[key]] if chance.random() < 0.5 else {"name": container[key]}
    elif isinstance(container, list):
        container.append(container[key])
    else:
        container[Raw(json.dumps(key) + " ")] = nasty


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value
