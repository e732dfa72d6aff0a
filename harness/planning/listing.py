"""Lists of the names that a study can use: projectors, superpixel sources, datasets, metrics, weights."""

import inspect
import re
from collections.abc import Callable
from types import ModuleType

from rich.table import Table

import projectors
from harness import data, superpixels
from harness.errors import HarnessError
from harness.results.metrics import METRICS

Line = tuple[str, ...]
"""One cell of text per column."""
COLUMNS = ("description", "source")
PROJECTOR_COLUMNS = ("tokens", "parameters", "GFLOPs", "inputs besides patches", "description, source and licence")

_OURS = "ships with this package, Apache-2.0"
_NUMBERS = PROJECTOR_COLUMNS[:3]
_REFERENCE = (
    "Default settings, with vision width 1024, LLM width 4096, 24 x 24 patches, 24 encoder blocks, and an image of 40 "
    "superpixels, two of which CLS attends to. The token count of PruMerge and DiVT depends on the image. FLOPs are "
    "twice the multiply-adds of matrix products and convolutions."
)


def _described(module: ModuleType | None) -> Line:
    """The first line of a module's docstring, and its `Source:`."""
    text = inspect.cleandoc(module.__doc__ or "") if module else ""
    return text.partition("\n")[0], _entry("Source", text)


def _entry(title: str, text: str) -> str:
    """The text after `title:` in a docstring, up to the next such title."""
    found = re.search(rf"^{title}: (.+?)\.?(?=\n\n|\n[A-Z][a-z ]+: |\nDiffers|\Z)", text, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _projectors() -> list[Line]:
    from harness.planning.reference_cost import measure

    lines: list[Line] = []
    for name in projectors.names():
        text = inspect.cleandoc(str(getattr(inspect.getmodule(projectors.get(name)), "__doc__", "")))
        cost = measure(name)
        numbers = (str(cost.tokens), f"{cost.parameters:,}", f"{cost.flops / 1e9:.2f}", ", ".join(cost.required_inputs))
        about = f"{text.partition(chr(10))[0]} {_entry('Source', text)}. {_entry('Licence', text)}."
        lines.append((name, *numbers, about))
    return lines


def _superpixels() -> list[Line]:
    return [(name, *_described(inspect.getmodule(superpixels.get(name).segment))) for name in superpixels.names()]


def _datasets() -> list[Line]:
    return [(name, *_described(data.get(name))) for name in data.names()]


def _metrics() -> list[Line]:
    ends = {True: "higher is better", False: "lower is better", None: ""}
    return [(name, metric.heading, ends[metric.higher_is_better]) for name, metric in METRICS.items()]


def _weights(kind: str) -> list[Line]:
    from harness.model.weights.known import PACKAGED, SHIPPED

    packaged = [
        (name, f"sha256 {found.sha256[:12]}", f"{found.package}=={found.version}")
        for name, found in PACKAGED.items()
        if found.kind == kind
    ]
    shipped = [
        (name, f"{found.about}, sha256 {found.sha256[:12]}", _OURS)
        for name, found in SHIPPED.items()
        if found.kind == kind
    ]
    return [*packaged, *shipped]


def _encoders() -> list[Line]:
    from harness.model.vision.built_in import BUILT_IN, RANDOM
    from harness.model.vision.families import FAMILIES

    random = [(f"{RANDOM}{name}", "the same architecture with random weights", "") for name in BUILT_IN]
    families = f"checkpoints for transformers, of the families {', '.join(FAMILIES)}"
    return [*_weights("encoder"), *random, ("owner/name or folder", families, "hub or disk")]


def _llms() -> list[Line]:
    loaded = "any causal LM that transformers loads"
    return [
        ("tiny", "trained from scratch; set width, layers and heads", ""),
        ("linear", "a linear model of words and visual tokens, fitted to its only optimum", ""),
        *_weights("llm"),
        ("owner/name or folder", loaded, "hub or disk"),
    ]


def _mask_decoders() -> list[Line]:
    from harness.model.weights.known import CHECKPOINTS

    sams = [
        (
            name,
            f"sha256 {found.sha256[:12]}",
            f"hub {found.repository}" + (f" or npm {found.npm.requirement}" if found.npm else ""),
        )
        for name, found in CHECKPOINTS.items()
    ]
    return [
        ("scratch", "trained from scratch on the vision encoder's patches; set its sizes", ""),
        *_weights("mask_decoder"),
        *sams,
        ("path/to/file", "any SAM or MobileSAM checkpoint, .pt, .pth or .safetensors", "path"),
    ]


def _checkpoints() -> list[Line]:
    return [
        *_weights("checkpoint"),
        ("runs/<study>/cells/<cell>.safetensors", "any trained cell, without its projector", "path"),
    ]


LISTS: dict[str, Callable[[], list[Line]]] = {
    "projectors": _projectors,
    "superpixels": _superpixels,
    "datasets": _datasets,
    "metrics": _metrics,
    "encoders": _encoders,
    "llms": _llms,
    "mask_decoders": _mask_decoders,
    "checkpoints": _checkpoints,
}


def listing(kind: str) -> Table:
    """One of `LISTS` as a table; projectors with their cost at reference dimensions.

    Raises:
        HarnessError: a module that is listed is invalid.
    """
    is_measured = kind == "projectors"
    table = Table(box=None, pad_edge=False, caption_justify="left", caption=_REFERENCE if is_measured else None)
    for column in (kind, *(PROJECTOR_COLUMNS if is_measured else COLUMNS)):
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    try:
        lines = LISTS[kind]()
    except projectors.ProjectorError as error:
        raise HarnessError(str(error)) from error
    for line in lines:
        table.add_row(*line)
    return table
