"""The catalogue of projectors, from the registry, the projectors' docstrings and their measured cost."""

import inspect
import re
from collections.abc import Callable
from functools import cache

from markup import escape, link, table

import projectors
from harness.planning import reference_cost

costs_of = cache(reference_cost.measure)
_TITLE = re.compile(r"(Source|Licence|Differs [^:]+): ?(.*)")
_HEADINGS = ("projector", "tokens", "parameters", "GFLOPs", "required inputs beside patches", "licence")


def entries(text: str) -> dict[str, str]:
    """The titled paragraphs of a projector's docstring: `Source`, `Licence`, `Differs from the paper`, ..."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in text.splitlines():
        title = _TITLE.match(line)
        if title:
            lines = found.setdefault(title[1], [])
            line = title[2]
        elif not line.strip():
            lines = None
        if lines is not None:
            lines.append(line.strip())
    return {title: " ".join(lines) for title, lines in found.items()}


def docstring(name: str) -> str:
    """The docstring of the file of a projector."""
    return inspect.cleandoc(inspect.getmodule(projectors.get(name)).__doc__ or "")


def required(name: str) -> str:
    """The inputs of a projector in words."""
    inputs = [f"`{one}`" if one.isidentifier() else one for one in costs_of(name).required_inputs]
    return f"requires patches and {', '.join(inputs)}" if inputs else "requires patches only"


def overview() -> str:
    """One row per projector, with its cost at the reference backbone."""
    rows = []
    for name in projectors.names():
        cost = costs_of(name)
        rows.append(
            (
                f"[`{name}`](#projector-{name.replace('_', '-')})",
                str(cost.tokens),
                f"{cost.parameters / 1e6:,.1f} M",
                f"{cost.flops / 1e9:,.1f}",
                required(name).removeprefix("requires ").removeprefix("patches and ").replace("patches only", "none"),
                escape(entries(docstring(name)).get("Licence", "").partition(";")[0].rstrip(".")),
            )
        )
    return table(_HEADINGS, rows, "lrrr")


def catalogue() -> str:
    """One subsection per projector."""
    return "\n".join(_entry(name) for name in projectors.names())


def _cost(name: str) -> str:
    cost = costs_of(name)
    return f"{cost.tokens} tokens, {cost.parameters:,} parameters, {cost.flops / 1e9:,.2f} GFLOPs; {required(name)}"


def _entry(name: str) -> str:
    text = docstring(name)
    facts = [f"{title}\n: {link(entry[:1].upper() + entry[1:])}\n" for title, entry in entries(text).items()]
    facts.append(f"Cost with default settings\n: {_cost(name)}\n")
    facts.append(f"Settings\n: [`projector: {name}`](#settings-projector-{name.replace('_', '-')})\n")
    return "\n".join(
        [f"(projector-{name.replace('_', '-')})=", f"### `{name}`\n", f"{escape(text.partition(chr(10))[0])}\n", *facts]
    )


CONTENT: dict[str, Callable[[], str]] = {"projector-overview": overview, "projector-catalogue": catalogue}
