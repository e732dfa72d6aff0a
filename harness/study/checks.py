"""All checks of a study after its preset and overrides are merged in."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from harness.errors import shorten, suggest
from harness.results.metrics import METRICS
from harness.study.cell_spec import CellSpec, Sections, data_config, resolve
from harness.study.nodes.limits import MAX_PROBLEMS
from harness.study.nodes.yaml_node import YamlNode, merge
from harness.study.schema import Search, StudySettings
from harness.study.search_checks import combination_problems, duplicates, sampler_problems, space_problems
from harness.study.validation import validate

MAX_CELLS = 20_000
"""Cells of one study; also the number of single values that a search may have."""


def check(study: YamlNode, problems: list[str]) -> tuple[StudySettings | None, dict[str, YamlNode]]:
    """The settings of a study, and its arms merged into base; problems are appended to `problems`."""
    settings = validate(StudySettings, study, problems)
    too_large = _too_large(study, settings)
    if too_large is not None:
        problems.append(too_large)
        return None, {}
    problems.extend(_name_problems(study))
    problems.extend(_objective_problems(study.get("objectives")))
    search = study.get("search")
    if search is not None:
        problems.extend(sampler_problems(search))
    sections = Sections()
    arms, specs = _resolve_arms(study, sections, problems)
    problems.extend(_claim_problems(study, specs))
    if search is not None and len(problems) < MAX_PROBLEMS:
        searched = {name: arms[name] for name in _strings(search.get("arms")) if name in arms}
        space_problems(search.get("space"), searched, sections, problems)
        if not problems:
            combination_problems(search.get("space"), searched, sections, problems)
    return settings, arms


def _too_large(study: YamlNode, settings: StudySettings | None) -> str | None:
    """The message for a study that exceeds `MAX_CELLS`; None if it does not."""
    search = study.get("search")
    space = search.get("space") if search is not None else None
    num_values = sum(len(values.entries()) for _, values in space.items()) if space is not None else 0
    num_values *= len(_strings(search.get("arms"))) if search is not None else 1
    if search is not None and num_values > MAX_CELLS:
        return (
            f"{search.location}: has {num_values:,} values in all arms; at most {MAX_CELLS:,} are allowed; "
            "shorten search.space"
        )
    if settings is None:
        return None
    num_points = _num_points(settings)
    num_cells = num_points * len(settings.seeds)
    if num_cells <= MAX_CELLS:
        return None
    return (
        f"{study.location}: has {num_cells:,} cells ({num_points:,} arms and search points, {len(settings.seeds):,} "
        f"seeds each); at most {MAX_CELLS:,} are allowed; use fewer seeds, fewer arms, or a smaller search"
    )


def _num_points(settings: StudySettings) -> int:
    search = settings.search
    if search is None:
        return len(settings.arms)
    num_fixed = len(settings.arms) - len({*search.arms} & {*settings.arms})
    return num_fixed + (search.trials or 0 if search.sampler == "tpe" else len(search.arms) * _grid_size(search))


def _grid_size(search: Search) -> int:
    return math.prod(len(values) for values in search.space.values() if isinstance(values, tuple))


def _resolve_arms(
    study: YamlNode, sections: Sections, problems: list[str]
) -> tuple[dict[str, YamlNode], dict[str, CellSpec]]:
    """Each arm merged into base, and its specification if it has no problem."""
    base, arms = study.get("base") or YamlNode({}, study.location.under("base")), study.get("arms")
    merged: dict[str, YamlNode] = {}
    specs: dict[str, CellSpec] = {}
    if arms is None or not base.is_mapping:
        return merged, specs
    for name, arm in arms.items():
        difference = arm if arm.value is not None else YamlNode({}, arm.location)
        if not difference.is_mapping:
            continue  # the schema has reported it
        merged[name] = merge(base, difference)
        spec = resolve(merged[name], problems, arm.get("superpixels"), sections)
        if spec is not None:
            specs[name] = spec
        if len(problems) > MAX_PROBLEMS:
            break
    return merged, specs


def _strings(node: YamlNode | None) -> list[str]:
    """The strings in a list."""
    return [entry.value for entry in node.entries() if isinstance(entry.value, str)] if node is not None else []


def _name_problems(study: YamlNode) -> Iterator[str]:
    """References to arms that do not exist; duplicate seeds, searched arms and baselines."""
    search, arms_node, baseline = study.get("search"), study.get("arms"), study.get("baseline")
    arms = {*arms_node.keys()} if arms_node is not None else set()
    listed = search.get("arms") if search is not None else None
    searched = listed.entries() if listed is not None else []
    baselines = (baseline.entries() or [baseline]) if baseline is not None else []
    in_claims = (claim.get(key) for claim in _entries(study, "claims") for key in ("better", "no_worse", "than"))
    for node in (*searched, *baselines, *filter(None, in_claims)):
        if isinstance(node.value, str) and node.value not in arms:
            yield f"{node.location}: there is no arm {shorten(node.value)!r}; {suggest(node.value, arms)}"
    varied = {*_strings(listed)}
    for node in baselines:
        if isinstance(node.value, str) and node.value in varied:
            yield (
                f"{node.location}: arm {node.value!r} is searched, but a baseline must be a single point; name an arm "
                "that is not searched"
            )
    for nodes in (_entries(study, "seeds"), searched, baselines):
        yield from duplicates(nodes)


def _entries(study: YamlNode, key: str) -> list[YamlNode]:
    found = study.get(key)
    return found.entries() if found is not None else []


def _objective_problems(objectives: YamlNode | None) -> Iterator[str]:
    """Objectives that are not metrics, or that optimize a metric in the wrong direction."""
    if objectives is None:
        return
    for name, direction in objectives.items():
        if name not in METRICS:
            yield f"{direction.location}: there is no metric {name!r}; {suggest(name, METRICS)}"
            continue
        is_higher = METRICS[name].higher_is_better
        right = "maximize" if is_higher else "minimize"
        if is_higher is not None and direction.value in ("maximize", "minimize") and direction.value != right:
            better = "higher" if is_higher else "lower"
            yield f"{direction.location}: found {direction.value}, but {better} {name} is better; must be {right}"


def _claim_problems(study: YamlNode, specs: Mapping[str, CellSpec]) -> Iterator[str]:
    """Claims about search points that are not in the space, or about families and domains that the data lacks."""
    search = study.get("search")
    space = search.get("space") if search is not None else None
    searched = _strings(search.get("arms")) if search is not None else []
    is_data_varied = space is not None and any(path.partition(".")[0] == "data" for path, _ in space.items())
    for claim in _entries(study, "claims"):
        named = [arm.value for arm in map(claim.get, ("better", "no_worse", "than")) if arm is not None]
        arms = [arm for arm in named if isinstance(arm, str)]
        at = claim.get("at")
        if at is not None and at.value and not {*arms} & {*searched}:
            yield f"{at.location}: names search points, but the search varies neither arm of the claim; remove it"
        elif at is not None:
            yield from _point_problems(at, space)
        if not is_data_varied:
            yield from _subset_problems(claim, [specs[arm] for arm in arms if arm in specs])


def _point_problems(at: YamlNode, space: YamlNode | None) -> Iterator[str]:
    for path, value in at.items():
        values = space.get(path) if space is not None else None
        found = f"{value.location}: found {shorten(repr(value.plain()))}"
        if values is None:
            paths = space.keys() if space is not None else []
            yield f"{value.location}: the search does not vary {path!r}; {suggest(path, paths)}"
        elif values.entries() and not any(_is_same(value.value, choice.value) for choice in values.entries()):
            choices = shorten(", ".join(str(choice.plain()) for choice in values.entries()))
            yield f"{found}; the search space contains only {choices}"
        elif values.is_mapping and not _is_within(value.value, values):
            low, high = (bound.plain() if bound is not None else None for bound in map(values.get, ("low", "high")))
            yield f"{found}; the search space ranges from {low} to {high}"


def _is_same(value: Any, choice: Any) -> bool:
    return isinstance(value, bool) == isinstance(choice, bool) and value == choice


def _is_within(value: Any, values: YamlNode) -> bool:
    bounds = [bound.value for bound in (values.get("low"), values.get("high")) if bound is not None]
    if not all(isinstance(number, int | float) for number in (value, *bounds)) or len(bounds) < 2:
        return False
    return bool(bounds[0] <= value <= bounds[1])


def _subset_problems(claim: YamlNode, specs: Iterable[CellSpec]) -> Iterator[str]:
    """Families and domains that the data does not have, if its configuration lists them."""
    for spec in specs:
        config = data_config(spec.data)
        for key, attribute in (("family", "families"), ("domain", "scored_domains")):
            subset, known = claim.get(key), getattr(config, attribute, None)
            if subset is not None and known is not None and isinstance(subset.value, str) and subset.value not in known:
                found = shorten(subset.value)
                yield f"{subset.location}: {spec.data['name']} has no {key} {found!r}; {suggest(subset.value, known)}"
