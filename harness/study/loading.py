"""Reads a study file with its preset and overrides, and finds every mistake in them at once.

The study's `base` is merged over the preset's key by key, `--set` over that, an arm over `base`, a search point over
its arm. What a study optimises stands whole in one place: its `objectives` replace the preset's.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.errors import StudyError, shorten, suggest, unknown_key
from harness.study.cell_spec import IS_MISSING, SECTIONS
from harness.study.checks import MAX_PROBLEMS, check
from harness.study.schema import StudySettings
from harness.study.yaml_node import SourceLocation, YamlNode, merge
from harness.study.yaml_reader import MAX_DEPTH, MAX_TEXT, mistake_in_text, parse, read
from harness.system.files import find

PRESET_KEYS = ("base", "objectives", "seeds", "tracking")
ALONE = "{question: What does this backbone reach with all patches?, arms: {mlp: {projector: mlp}}, baseline: mlp}"
"""What a preset is run or planned as by itself."""
_NO_ASSIGNMENT = "is not of the form key=value, as in training.steps=100"
_EXTENDS = "extends="


def read_study(path: Path, overrides: Sequence[str]) -> tuple[StudySettings, dict[str, YamlNode]]:
    """The settings of a study, and its arms merged over base; a preset by itself is a study of one arm, `ALONE`.

    Raises:
        StudyError: with every mistake that was found.
    """
    mistake = mistake_in_text(str(path), MAX_TEXT)
    if mistake is not None:
        raise StudyError([f"{shorten(str(path).encode('unicode_escape').decode(), 300)}: the file's name {mistake}"])
    problems: list[str] = []
    tree = read(path, problems)
    if tree is not None and {"base"} <= {*tree.keys()} <= {*PRESET_KEYS}:
        alone = parse(ALONE, tree.spot, problems)
        tree = replace(merge(alone, tree), spot=tree.spot)
    if tree is not None:
        presets = [given for given in overrides if given.startswith(_EXTENDS)]
        others = [given for given in overrides if given not in presets]
        extended = _extend(_choose_preset(tree, presets), path, problems)
        is_whole = not problems
        settings, arms = check(_override(extended, others, problems), problems)
        if not is_whole:
            # What a preset that cannot be read would have given is not missing.
            problems = [problem for problem in problems if not problem.endswith(IS_MISSING)]
        if settings is not None and not problems:
            return settings, arms
    raise StudyError(_in_order(problems, path))


def _in_order(problems: Sequence[str], path: Path) -> list[str]:
    """Each problem once, file by file from the top down; of very many, the first."""
    told = sorted(dict.fromkeys(problems), key=_order)
    more = len(told) - MAX_PROBLEMS
    return [*told[:MAX_PROBLEMS], f"{path}: and more mistakes; mend these first"] if more > 0 else told


def _order(problem: str) -> tuple[str, int]:
    """Problems are told file by file, from the top down."""
    place = re.match(r"(.*?):(\d+): ", problem)
    return (place[1], int(place[2])) if place else (problem.partition(":")[0], 0)


def _spot(given: str) -> SourceLocation:
    return SourceLocation(f"--set {shorten(given, 200)}")


def _choose_preset(study: YamlNode, presets: Sequence[str]) -> YamlNode:
    """`--set extends=FILE` in place of the preset that the study names; the same study then has another backbone."""
    for given in presets:
        chosen = YamlNode.of(given.removeprefix(_EXTENDS), _spot(given))
        study = replace(merge(study, YamlNode.nest(["extends"], chosen)), spot=study.spot)
    return study


def _extend(study: YamlNode, path: Path, problems: list[str]) -> YamlNode:
    """The study over the preset that it names."""
    extends = study.get("extends")
    if extends is None or not isinstance(extends.value, str):
        return study
    file = find(path.parent / extends.value)
    if file is None or not file.is_file():
        beside = [found for pattern in ("*.yaml", "*/*.yaml") for found in path.parent.glob(pattern) if found != path]
        near = [str(found.relative_to(path.parent)) for found in beside]
        hint = suggest(extends.value, near) if near else "there are no YAML files beside the study"
        problems.append(f"{extends.spot}: there is no file {shorten(str(path.parent / extends.value), 300)}; {hint}")
        return study
    preset = read(file, problems)
    if preset is None:
        return study
    for key, value in preset.items():
        if key not in PRESET_KEYS:
            problems.append(f"{value.spot}: a preset may only give {', '.join(PRESET_KEYS)}; move it to the study")
    given = YamlNode({key: value for key, value in preset.items() if key in PRESET_KEYS}, preset.spot)
    if study.get("objectives") is not None:
        given = given.without("objectives")
    return replace(merge(given, study), spot=study.spot)


def _override(study: YamlNode, overrides: Sequence[str], problems: list[str]) -> YamlNode:
    """`--set` arguments over the study, in order."""
    for given in overrides:
        path, equals, text = given.partition("=")
        keys = path.strip().split(".")
        if keys[0] in SECTIONS:
            keys.insert(0, "base")
        spot = _spot(given)
        mistake = _mistake_in_path(study, keys) if equals else _NO_ASSIGNMENT
        if mistake is not None:
            problems.append(f"{spot}: {mistake}")
            continue
        value = parse(text, spot, problems)
        if value is not None:
            study = replace(merge(study, YamlNode.nest(keys, value)), spot=study.spot)
    return study


def _mistake_in_path(study: YamlNode, keys: Sequence[str]) -> str | None:
    """What is wrong with the place that `--set` names."""
    if not all(keys):
        return _NO_ASSIGNMENT
    if len(keys) > MAX_DEPTH:
        return f"names a key inside {len(keys):,} others; at most {MAX_DEPTH} are allowed"
    allowed = {*StudySettings.model_fields} - {"extends"}
    if keys[0] not in allowed:
        return unknown_key(keys[0], {*allowed, *SECTIONS})
    named = study.get("arms")
    arms = named.keys() if named is not None else []
    if keys[0] == "arms" and len(keys) > 1 and keys[1] not in arms:
        return f"there is no arm {shorten(keys[1])!r}; {suggest(keys[1], arms)}"
    return None
