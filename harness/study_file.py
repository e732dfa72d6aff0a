"""Reads a study file with its preset and overrides, and finds every mistake in them at once.

The study's `base` is merged over the preset's key by key, `--set` over that, an arm over `base`, a search point over
its arm. What a study optimises stands whole in one place: its `objectives` replace the preset's.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import StudyError, suggest
from harness.records import METRICS
from harness.sections import IS_MISSING, SECTIONS, resolve, set_values
from harness.study_schema import StudySettings, grid
from harness.yaml_errors import validate
from harness.yaml_tree import Spot, Tree, merge, parse, read

PRESET_KEYS = ("base", "objectives", "seeds")
ALONE = "{question: What does this backbone reach with all patches?, arms: {mlp: {projector: mlp}}, baseline: mlp}"
"""What a preset is run or planned as by itself."""
_NO_ASSIGNMENT = "is not of the form key=value, as in training.steps=100"
_EXTENDS = "extends="


def read_study(path: Path, overrides: Sequence[str]) -> tuple[StudySettings, dict[str, Tree]]:
    """The settings of a study, and its arms merged over base; a preset by itself is a study of one arm, `ALONE`.

    Raises:
        StudyError: with every mistake that was found.
    """
    problems: list[str] = []
    tree = read(path, problems)
    if tree is not None and {"base"} <= {*_keys(tree)} <= {*PRESET_KEYS}:
        alone = parse(ALONE, tree.spot, problems)
        tree = replace(merge(alone, tree), spot=tree.spot)
    if tree is not None:
        presets = [given for given in overrides if given.startswith(_EXTENDS)]
        others = [given for given in overrides if given not in presets]
        extended = _extend(_choose_preset(tree, presets), path, problems)
        is_whole = not problems
        settings, arms = _check(_override(extended, others, problems), problems)
        if not is_whole:
            # What a preset that cannot be read would have given is not missing.
            problems = [problem for problem in problems if not problem.endswith(IS_MISSING)]
        if settings is not None and not problems:
            return settings, arms
    raise StudyError(sorted(dict.fromkeys(problems), key=_order))


def _order(problem: str) -> tuple[str, int]:
    """Problems are told file by file, from the top down."""
    place = re.match(r"(.*?):(\d+): ", problem)
    return (place[1], int(place[2])) if place else (problem.partition(":")[0], 0)


def _choose_preset(study: Tree, presets: Sequence[str]) -> Tree:
    """`--set extends=FILE` in place of the preset that the study names; the same study then has another backbone."""
    for given in presets:
        chosen = Tree.of(given.removeprefix(_EXTENDS), Spot(f"--set {given}"))
        study = replace(merge(study, Tree.nest(["extends"], chosen)), spot=study.spot)
    return study


def _extend(study: Tree, path: Path, problems: list[str]) -> Tree:
    """The study over the preset that it names."""
    extends = study.get("extends")
    if extends is None or not isinstance(extends.value, str):
        return study
    file = path.parent / extends.value
    if not file.is_file():
        near = [str(found.relative_to(path.parent)) for found in path.parent.rglob("*.yaml") if found != path]
        hint = suggest(extends.value, near) if near else "there are no YAML files beside the study"
        problems.append(f"{extends.spot}: there is no file {file}; {hint}")
        return study
    preset = read(file, problems)
    if preset is None:
        return study
    for key, value in preset.items():
        if key not in PRESET_KEYS:
            problems.append(f"{value.spot}: a preset may only give {', '.join(PRESET_KEYS)}; move it to the study")
    given = Tree({key: value for key, value in preset.items() if key in PRESET_KEYS}, preset.spot)
    if study.get("objectives") is not None:
        given = given.without("objectives")
    return replace(merge(given, study), spot=study.spot)


def _override(study: Tree, overrides: Sequence[str], problems: list[str]) -> Tree:
    """`--set` arguments over the study, in order."""
    for given in overrides:
        path, equals, text = given.partition("=")
        keys = path.strip().split(".")
        if keys[0] in SECTIONS:
            keys.insert(0, "base")
        spot = Spot(f"--set {given}")
        mistake = _mistake_in_path(study, keys) if equals else _NO_ASSIGNMENT
        if mistake is not None:
            problems.append(f"{spot}: {mistake}")
            continue
        value = parse(text, spot, problems)
        if value is not None:
            study = replace(merge(study, Tree.nest(keys, value)), spot=study.spot)
    return study


def _mistake_in_path(study: Tree, keys: Sequence[str]) -> str | None:
    """What is wrong with the place that `--set` names."""
    if not all(keys):
        return _NO_ASSIGNMENT
    allowed = {*StudySettings.model_fields} - {"extends"}
    if keys[0] not in allowed:
        return f"unknown key; {suggest(keys[0], {*allowed, *SECTIONS})}"
    arms = _keys(study.get("arms"))
    if keys[0] == "arms" and len(keys) > 1 and keys[1] not in arms:
        return f"there is no arm {keys[1]!r}; {suggest(keys[1], arms)}"
    return None


def _check(study: Tree, problems: list[str]) -> tuple[StudySettings | None, dict[str, Tree]]:
    """Everything that can be wrong in a merged study."""
    settings = validate(StudySettings, study, problems)
    arms = _arms(study)
    for name, arm in arms.items():
        resolve(arm, problems, _own_superpixels(study, name))
    problems.extend(_names(study, arms))
    problems.extend(_objectives(study.get("objectives")))
    search = study.get("search")
    if search is not None and search.is_mapping:
        problems.extend(_sampler(search))
        searched = [tree.value for tree in _items(search.get("arms")) if isinstance(tree.value, str)]
        _space(search.get("space"), {name: arms[name] for name in searched if name in arms}, problems)
        if not problems:
            _combinations(search.get("space"), {name: arms[name] for name in searched}, problems)
    return settings, arms


def _arms(study: Tree) -> dict[str, Tree]:
    """Each arm over base; what is not even a mapping has been reported by the schema."""
    base = study.get("base") or Tree({}, study.spot.under("base"))
    arms = study.get("arms")
    if arms is None or not base.is_mapping:
        return {}
    differences = {name: arm if arm.value is not None else Tree({}, arm.spot) for name, arm in arms.items()}
    return {name: merge(base, arm) for name, arm in differences.items() if arm.is_mapping}


def _own_superpixels(study: Tree, arm: str) -> Tree | None:
    arms = study.get("arms")
    own = arms.get(arm) if arms is not None else None
    return own.get("superpixels") if own is not None else None


def _keys(tree: Tree | None) -> list[str]:
    return [key for key, _ in tree.items()] if tree is not None else []


def _names(study: Tree, arms: Mapping[str, Tree]) -> Iterator[str]:
    """Arms that are named outside `arms`, and seeds, searched arms and baselines that are named twice."""
    search = study.get("search")
    searched = search.get("arms") if search is not None else None
    baseline = study.get("baseline")
    named = _items(baseline) or ([baseline] if baseline is not None else [])
    for tree in _items(searched) + named:
        if isinstance(tree.value, str) and tree.value not in arms:
            yield f"{tree.spot}: there is no arm {tree.value!r}; {suggest(tree.value, arms)}"
    for claim in _items(study.get("claims")):
        for key in ("better", "no_worse", "than"):
            arm = claim.get(key)
            if arm is not None and isinstance(arm.value, str) and arm.value not in arms:
                yield f"{arm.spot}: there is no arm {arm.value!r}; {suggest(arm.value, arms)}"
    for listed in (study.get("seeds"), searched, baseline):
        seen: list[Any] = []
        for tree in _items(listed):
            if tree.plain() in seen:
                yield f"{tree.spot}: {tree.plain()!r} is given twice; keep one"
            seen.append(tree.plain())


def _items(tree: Tree | None) -> list[Tree]:
    return tree.value if tree is not None and isinstance(tree.value, list) else []


def _objectives(objectives: Tree | None) -> Iterator[str]:
    """Objectives on metrics that are not measured, or towards the worse."""
    if objectives is None:
        return
    for name, direction in objectives.items():
        if name not in METRICS:
            yield f"{direction.spot}: there is no metric {name!r}; {suggest(name, METRICS)}"
            continue
        is_higher = METRICS[name].higher_is_better
        right = "maximize" if is_higher else "minimize"
        if is_higher is not None and direction.value in {"maximize", "minimize"} and direction.value != right:
            better = "higher" if is_higher else "lower"
            yield f"{direction.spot}: found {direction.value}; {name} is better when it is {better}, write {right}"


def _sampler(search: Tree) -> Iterator[str]:
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


def _bounds(values: Tree) -> Iterator[str]:
    low, high, log, step = (None if t is None else t.value for t in map(values.get, ("low", "high", "log", "step")))
    if isinstance(low, int | float) and isinstance(high, int | float) and low >= high:
        yield f"{values.spot}: found low: {low} and high: {high}; low must be less than high"
    if log and isinstance(low, int | float) and low <= 0:
        yield f"{values.spot}: found log: true with low: {low}; a logarithm needs low above 0"
    if log and step is not None:
        yield f"{values.spot}: step cannot take effect with log: true; remove one of them"


def _space(space: Tree | None, arms: Mapping[str, Tree], problems: list[str]) -> None:
    """Tries every value of the space by itself in every searched arm; ranges at their ends."""
    for path, values in space.items() if space is not None else ():
        choices = _items(values)
        plain = [choice.plain() for choice in choices]
        problems.extend(
            f"{choice.spot}: {choice.plain()!r} is given twice; keep one"
            for i, choice in enumerate(choices)
            if choice.plain() in plain[:i]
        )
        ends = [end for end in (values.get("low"), values.get("high")) if end is not None]
        for arm in arms.values():
            for value in choices + ends:
                _try(arm, {path: value.plain()}, value.spot if choices else values.spot, problems)


def _combinations(space: Tree | None, arms: Mapping[str, Tree], problems: list[str]) -> None:
    """Tries every point of a grid: values that are good one by one need not go together."""
    if space is None or not all(isinstance(values.value, list) for _, values in space.items()):
        return
    for arm in arms.values():
        for point in grid({path: tuple(values.plain()) for path, values in space.items()}):
            _try(arm, point, space.spot, problems)


def _try(arm: Tree, values: Mapping[str, Any], spot: Spot, problems: list[str]) -> None:
    is_own = any(path.split(".")[0] == "superpixels" for path in values)
    resolve(set_values(arm, values, spot), problems, Tree(True, spot) if is_own else None)
