"""What a study can name: projectors, superpixel sources, datasets, metrics, and pretrained weights."""

import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rich.table import Table

import projectors
from harness import data, superpixels
from harness.errors import HarnessError
from harness.records import METRICS

Line = tuple[str, str, str]
"""Name, what it is, where it comes from."""


def _described(name: str, module: ModuleType | None) -> Line:
    """The first line of a module's docstring, and its `Source:`."""
    text = inspect.cleandoc(module.__doc__ or "") if module else ""
    source = re.search(r"^Source: (.+?)\.?(?=\n\n|\nDiffers|\Z)", text, re.MULTILINE | re.DOTALL)
    return name, text.partition("\n")[0], " ".join(source[1].split()) if source else ""


def _projectors() -> list[Line]:
    return [_described(name, inspect.getmodule(projectors.get(name))) for name in projectors.names()]


def _superpixels() -> list[Line]:
    return [_described(name, inspect.getmodule(superpixels.get(name).segment)) for name in superpixels.names()]


def _datasets() -> list[Line]:
    return [_described(name, data.get(name)) for name in data.names()]


def _metrics() -> list[Line]:
    ends = {True: "higher is better", False: "lower is better", None: ""}
    return [
        (name, " ".join(filter(None, (metric.label, metric.unit))), ends[metric.higher_is_better])
        for name, metric in METRICS.items()
    ]


def _weights(kind: Any) -> list[Line]:
    from harness.backbone.weights import PACKAGED, names

    packaged = ((name, PACKAGED[name]) for name in names(kind))
    lines = [(name, f"sha256 {found.sha256[:12]}", f"{found.package}=={found.version}") for name, found in packaged]
    return [*lines, ("owner/name", "any model of the hub that transformers loads", "hub")]


def _llms() -> list[Line]:
    return [("tiny", "trained from scratch; give width, layers and heads", ""), *_weights("llm")]


def _mask_heads() -> list[Line]:
    from harness.backbone.weights import CHECKPOINTS, SHIPPED

    shipped = [(name, f"sha256 {sha256[:12]}", "ships with this package") for name, (_, sha256) in SHIPPED.items()]
    meta = [(name, f"sha256 {found.sha256[:12]}", f"hub {found.repository}") for name, found in CHECKPOINTS.items()]
    return [
        ("scratch", "trained from scratch on the vision encoder's patches; give its sizes", ""),
        *shipped,
        *meta,
        ("path/to/file", "any checkpoint of a SAM, .pth or .safetensors", "path"),
    ]


LISTS: dict[str, Callable[[], list[Line]]] = {
    "projectors": _projectors,
    "superpixels": _superpixels,
    "datasets": _datasets,
    "metrics": _metrics,
    "encoders": lambda: _weights("encoder"),
    "llms": _llms,
    "mask_heads": _mask_heads,
}


def listing(kind: str) -> Table:
    """One of `LISTS` as a table.

    Raises:
        HarnessError: a file that the list is made from is not what it should be.
    """
    table = Table(box=None, pad_edge=False)
    for column in (kind, "what it is", "source"):
        table.add_column(column, overflow="fold")
    try:
        lines = LISTS[kind]()
    except projectors.ProjectorError as error:
        raise HarnessError(str(error)) from error
    for line in lines:
        table.add_row(*line)
    return table
