"""Everything that can be wrong in a study whose preset and overrides are merged in."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from harness.errors import shorten, suggest
from harness.results.metrics import METRICS
from harness.study.cell_spec import CellSpec, data_config, resolve, set_values
from harness.study.schema import Search, StudySettings, grid
from harness.study.validation import validate
from harness.study.yaml_node import SourceLocation, YamlNode, merge

MAX_CELLS = 20_000
"""Cells of one study, and settings that a search may try one by one."""
MAX_PROBLEMS = 50
"""Mistakes that are told at once; the search for more ends there."""


def check(study: YamlNode, problems: list[str]) -> tuple[StudySettings | None, dict[str, YamlNode]]:
    """The settings of a study, and its arms merged over base; mistakes are appended to `problems`."""
    settings = validate(StudySettings, study, problems)
    too_large = _too_large(study, settings)
    if too_large is not None:
        problems.append(too_large)
        return None, {}
    problems.extend(_names(study))
    problems.extend(_objectives(study.get("objectives")))
    search = study.get("search")
    if search is not None:
        problems.extend(_sampler(search))
        problems.extend(_nested_paths(search.get("space")))
    arms, specs = _arms(study, problems)
    problems.extend(_claims(study, specs))
    if search is not None and len(problems) < MAX_PROBLEMS:
        searched = {name: arms[name] for name in _texts(search.get("arms")) if name in arms}
        _space(search.get("space"), searched, problems)
        if not problems:
            _combinations(search.get("space"), searched, problems)
    return settings, arms


def _too_large(study: YamlNode, settings: StudySettings | None) -> str | None:
    """The sentence about a study of more cells, or of more settings to try, than `MAX_CELLS`."""
    search = study.get("search")
    space = search.get("space") if search is not None else None
    num_tried = sum(len(values.entries()) for _, values in space.items()) if space is not None else 0
    num_tried *= len(_texts(search.get("arms"))) if search is not None else 1
    if search is not None and num_tried > MAX_CELLS:
        return f"{search.spot}: tries {num_tried:,} settings; at most {MAX_CELLS:,} are allowed; shorten search.space"
    if settings is None:
        return None
    num_points = _num_points(settings)
    num_cells = num_points * len(settings.seeds)
    if num_cells <= MAX_CELLS:
        return None
    return (
        f"{study.spot}: has {num_cells:,} cells ({num_points:,} arms and search points, {len(settings.seeds):,} seeds "
        f"each); at most {MAX_CELLS:,} are allowed; take fewer seeds, fewer arms, or a smaller search"
    )


def _num_points(settings: StudySettings) -> int:
    search = settings.search
    if search is None:
        return len(settings.arms)
    num_fixed = len(settings.arms) - len({*search.arms} & {*settings.arms})
    return num_fixed + (search.trials or 0 if search.sampler == "tpe" else len(search.arms) * _grid_size(search))


def _grid_size(search: Search) -> int:
    return math.prod(len(values) for values in search.space.values() if isinstance(values, tuple))


def _arms(study: YamlNode, problems: list[str]) -> tuple[dict[str, YamlNode], dict[str, CellSpec]]:
    """Each arm over base, and its specification where it has no mistake."""
    base, arms = study.get("base") or YamlNode({}, study.spot.under("base")), study.get("arms")
    merged: dict[str, YamlNode] = {}
    specs: dict[str, CellSpec] = {}
    if arms is None or not base.is_mapping:
        return merged, specs
    for name, given in arms.items():
        difference = given if given.value is not None else YamlNode({}, given.spot)
        if not difference.is_mapping:
            continue  # the schema has told it
        merged[name] = merge(base, difference)
        spec = resolve(merged[name], problems, given.get("superpixels"))
        if spec is not None:
            specs[name] = spec
        if len(problems) > MAX_PROBLEMS:
            break
    return merged, specs


def _texts(tree: YamlNode | None) -> list[str]:
    """The texts in a list."""
    return [one.value for one in tree.entries() if isinstance(one.value, str)] if tree is not None else []


def _names(study: YamlNode) -> Iterator[str]:
    """Arms that are named outside `arms`, and seeds, searched arms and baselines that are named twice."""
    search, named, baseline = study.get("search"), study.get("arms"), study.get("baseline")
    arms = {*named.keys()} if named is not None else set()
    listed = search.get("arms") if search is not None else None
    searched = listed.entries() if listed is not None else []
    baselines = (baseline.entries() or [baseline]) if baseline is not None else []
    of_claims = (claim.get(key) for claim in _list(study, "claims") for key in ("better", "no_worse", "than"))
    for tree in (*searched, *baselines, *filter(None, of_claims)):
        if isinstance(tree.value, str) and tree.value not in arms:
            yield f"{tree.spot}: there is no arm {shorten(tree.value)!r}; {suggest(tree.value, arms)}"
    varied = {*_texts(listed)}
    for tree in baselines:
        if isinstance(tree.value, str) and tree.value in varied:
            yield (
                f"{tree.spot}: arm {tree.value!r} is searched, and a baseline is one point; name an arm that is not "
                "searched"
            )
    for trees in (_list(study, "seeds"), searched, baselines):
        yield from _given_twice(trees)


def _list(study: YamlNode, key: str) -> list[YamlNode]:
    found = study.get(key)
    return found.entries() if found is not None else []


def _given_twice(trees: Iterable[YamlNode]) -> Iterator[str]:
    seen = set()
    for tree in trees:
        plain = tree.plain()
        value = json.dumps(plain, sort_keys=True) if isinstance(plain, dict | list) else plain
        if value in seen:
            yield f"{tree.spot}: {shorten(repr(plain))} is given twice; keep one"
        seen.add(value)


def _objectives(objectives: YamlNode | None) -> Iterator[str]:
    """Objectives on metrics that are not measured, or towards the worse."""
    if objectives is None:
        return
    for name, direction in objectives.items():
        if name not in METRICS:
            yield f"{direction.spot}: there is no metric {name!r}; {suggest(name, METRICS)}"
            continue
        is_higher = METRICS[name].higher_is_better
        right = "maximize" if is_higher else "minimize"
        if is_higher is not None and direction.value in ("maximize", "minimize") and direction.value != right:
            better = "higher" if is_higher else "lower"
            yield f"{direction.spot}: found {direction.value}; {name} is better when it is {better}, write {right}"


def _sampler(search: YamlNode) -> Iterator[str]:
    """Settings of a search that cannot take effect with its sampler, or are missing for it."""
    sampler, trials = search.get("sampler"), search.get("trials")
    is_sampled = sampler is not None and sampler.value == "tpe"
    if is_sampled and trials is None and sampler is not None:
        yield f"{sampler.spot}: tpe needs a number of points to sample; add search.trials"
    if trials is not None and not is_sampled:
        yield f"{trials.spot}: cannot take effect with sampler grid, which runs every point once; remove it"
    space = search.get("space")
    for _, values in space.items() if space is not None else ():
        if values.is_mapping and not is_sampled:
            yield f"{values.spot}: a grid needs a list of choices; list them, or write sampler: tpe"
        yield from _bounds(values)


def _bounds(values: YamlNode) -> Iterator[str]:
    low, high, log, step = (None if t is None else t.value for t in map(values.get, ("low", "high", "log", "step")))
    if isinstance(low, int | float) and isinstance(high, int | float):
        if low >= high:
            yield f"{values.spot}: found low: {low} and high: {high}; low must be less than high"
        elif isinstance(step, int | float) and step > high - low:
            yield f"{values.spot}: a step of {step} leaves only low: {low}; it must be at most {high - low}"
    if log and isinstance(low, int | float) and low <= 0:
        yield f"{values.spot}: found log: true with low: {low}; a logarithm needs low above 0"
    if log and step is not None:
        yield f"{values.spot}: step cannot take effect with log: true; remove one of them"


def _nested_paths(space: YamlNode | None) -> Iterator[str]:
    """Paths of a search space of which one sets the other too."""
    paths = sorted(space.items()) if space is not None else []
    for (outer, _), (inner, values) in combinations(paths, 2):
        if inner.startswith(f"{outer}."):
            yield f"{values.spot}: lies inside {outer}, which the search sets too; remove one of them"


def _space(space: YamlNode | None, arms: Mapping[str, YamlNode], problems: list[str]) -> None:
    """Tries every value of the space by itself in every searched arm; ranges at their ends."""
    for path, values in space.items() if space is not None else ():
        choices = values.entries()
        problems.extend(_given_twice(choices))
        ends = [end for end in (values.get("low"), values.get("high")) if end is not None]
        for arm in arms.values():
            for value in choices + ends:
                _try(arm, {path: value.plain()}, value.spot if choices else values.spot, problems)
                if len(problems) > MAX_PROBLEMS:
                    return


def _combinations(space: YamlNode | None, arms: Mapping[str, YamlNode], problems: list[str]) -> None:
    """Tries every point of a grid: values that are good one by one need not go together."""
    if space is None or len(space.keys()) < 2 or not all(isinstance(values.value, list) for _, values in space.items()):
        return
    for arm in arms.values():
        for point in grid({path: tuple(values.plain()) for path, values in space.items()}):
            _try(arm, point, space.spot, problems)
            if len(problems) > MAX_PROBLEMS:
                return


def _try(arm: YamlNode, values: Mapping[str, Any], spot: SourceLocation, problems: list[str]) -> None:
    is_own = any(path.split(".")[0] == "superpixels" for path in values)
    resolve(set_values(arm, values, spot), problems, YamlNode(True, spot) if is_own else None)


def _claims(study: YamlNode, specs: Mapping[str, CellSpec]) -> Iterator[str]:
    """Claims about search points that the search does not try, or about families and domains that the data has not."""
    search = study.get("search")
    space = search.get("space") if search is not None else None
    searched = _texts(search.get("arms")) if search is not None else []
    is_data_varied = space is not None and any(path.partition(".")[0] == "data" for path, _ in space.items())
    for claim in _list(study, "claims"):
        named = [arm.value for arm in map(claim.get, ("better", "no_worse", "than")) if arm is not None]
        arms = [arm for arm in named if isinstance(arm, str)]
        at = claim.get("at")
        if at is not None and at.value and not {*arms} & {*searched}:
            yield f"{at.spot}: names search points, and the search varies neither arm of the claim; remove it"
        elif at is not None:
            yield from _points_named(at, space)
        if not is_data_varied:
            yield from _parts_named(claim, [specs[arm] for arm in arms if arm in specs])


def _points_named(at: YamlNode, space: YamlNode | None) -> Iterator[str]:
    for path, value in at.items():
        values = space.get(path) if space is not None else None
        if values is None:
            paths = space.keys() if space is not None else []
            yield f"{value.spot}: the search does not vary {path!r}; {suggest(path, paths)}"
        elif values.entries() and not any(_is_same(value.value, choice.value) for choice in values.entries()):
            tried = shorten(", ".join(str(choice.plain()) for choice in values.entries()))
            yield f"{value.spot}: found {shorten(repr(value.plain()))}; the search tries {tried}"
        elif values.is_mapping and not _is_within(value.value, values):
            low, high = (end.plain() if end is not None else None for end in (values.get("low"), values.get("high")))
            yield f"{value.spot}: found {shorten(repr(value.plain()))}; the search tries {low} to {high}"


def _is_same(value: Any, choice: Any) -> bool:
    return isinstance(value, bool) == isinstance(choice, bool) and value == choice


def _is_within(value: Any, values: YamlNode) -> bool:
    ends = [end.value for end in (values.get("low"), values.get("high")) if end is not None]
    if not all(isinstance(one, int | float) for one in (value, *ends)) or len(ends) < 2:
        return False
    return bool(ends[0] <= value <= ends[1])


def _parts_named(claim: YamlNode, specs: Iterable[CellSpec]) -> Iterator[str]:
    """Families and domains, where the data of an arm knows its own without being read."""
    for spec in specs:
        config = data_config(spec.data)
        for key, known in (("family", "families"), ("domain", "scored_domains")):
            part, parts = claim.get(key), getattr(config, known, None)
            if part is not None and parts is not None and isinstance(part.value, str) and part.value not in parts:
                found = shorten(part.value)
                yield f"{part.spot}: {spec.data['name']} has no {key} {found!r}; {suggest(part.value, parts)}"
