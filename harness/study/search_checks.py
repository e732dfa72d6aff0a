"""Checks of a study's `search`: its sampler, its space, and every value of the space in every searched arm."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from harness.errors import shorten
from harness.study.cell_spec import Sections, resolve, set_value
from harness.study.nodes.limits import MAX_PROBLEMS
from harness.study.nodes.yaml_node import SourceLocation, YamlNode
from harness.study.schema import grid


def sampler_problems(search: YamlNode) -> Iterator[str]:
    """Settings of a search that its sampler requires, or that cannot take effect with it."""
    sampler, trials = search.get("sampler"), search.get("trials")
    is_sampled = sampler is not None and sampler.value == "tpe"
    if is_sampled and trials is None and sampler is not None:
        yield f"{sampler.location}: sampler tpe requires the number of points to sample; add search.trials"
    if trials is not None and not is_sampled:
        yield f"{trials.location}: cannot take effect with sampler grid, which runs every point once; remove it"
    space = search.get("space")
    for _, values in space.items() if space is not None else ():
        if values.is_mapping and not is_sampled:
            yield f"{values.location}: sampler grid requires a list of choices; list them, or set sampler: tpe"
        yield from _bound_problems(values)
    yield from _nested_paths(space)


def space_problems(
    space: YamlNode | None, arms: Mapping[str, YamlNode], sections: Sections, problems: list[str]
) -> None:
    """Resolves every searched arm with each value of the space, one at a time; ranges at both bounds."""
    for path, values in space.items() if space is not None else ():
        choices = values.entries()
        problems.extend(duplicates(choices))
        bounds = [bound for bound in (values.get("low"), values.get("high")) if bound is not None]
        for arm in arms.values():
            for value in choices + bounds:
                location = value.location if choices else values.location
                _resolve_at(arm, {path: value.plain()}, location, sections, problems)
                if len(problems) > MAX_PROBLEMS:
                    return


def combination_problems(
    space: YamlNode | None, arms: Mapping[str, YamlNode], sections: Sections, problems: list[str]
) -> None:
    """Resolves every searched arm at every point of a grid: values that are valid alone may be invalid together."""
    if space is None or len(space.keys()) < 2 or not all(isinstance(values.value, list) for _, values in space.items()):
        return
    for arm in arms.values():
        for point in grid({path: tuple(values.plain()) for path, values in space.items()}):
            _resolve_at(arm, point, space.location, sections, problems)
            if len(problems) > MAX_PROBLEMS:
                return


def duplicates(nodes: Iterable[YamlNode]) -> Iterator[str]:
    """Values that occur twice in a list."""
    known = set()
    for node in nodes:
        plain = node.plain()
        value = json.dumps(plain, sort_keys=True) if isinstance(plain, dict | list) else plain
        if value in known:
            yield f"{node.location}: duplicate value {shorten(repr(plain))}; keep one"
        known.add(value)


def _bound_problems(values: YamlNode) -> Iterator[str]:
    low, high, log, step = (None if t is None else t.value for t in map(values.get, ("low", "high", "log", "step")))
    if isinstance(low, int | float) and isinstance(high, int | float):
        if low >= high:
            yield f"{values.location}: found low: {low} and high: {high}; low must be less than high"
        elif isinstance(step, int | float) and step > high - low:
            yield f"{values.location}: found step: {step}; must be at most high - low = {high - low}"
    if log and isinstance(low, int | float) and low <= 0:
        yield f"{values.location}: found log: true with low: {low}; log requires low above 0"
    if log and step is not None:
        yield f"{values.location}: step cannot take effect with log: true; remove one of them"


def _nested_paths(space: YamlNode | None) -> Iterator[str]:
    """Paths of which one sets the other too."""
    paths = sorted(space.items()) if space is not None else []
    for (outer, _), (inner, values) in combinations(paths, 2):
        if inner.startswith(f"{outer}."):
            yield f"{values.location}: is part of {outer}, which the search sets too; remove one of them"


def _resolve_at(
    arm: YamlNode, values: Mapping[str, Any], location: SourceLocation, sections: Sections, problems: list[str]
) -> None:
    for path, value in values.items():
        arm = set_value(arm, path, YamlNode.of(value, location))
    sets_superpixels = any(path.split(".")[0] == "superpixels" for path in values)
    resolve(arm, problems, YamlNode(True, location) if sets_superpixels else None, sections)
