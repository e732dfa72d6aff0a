"""Loads a study from a YAML file or a mapping, with its preset and overrides, and collects every problem in them.

The study's `base` is merged into the preset's, key by key; then the overrides (`--set`), an arm into `base`, and a
search point into its arm. A study's `objectives` replace the preset's as a whole.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import StudyError, shorten, suggest, unknown_key
from harness.study.cell_spec import IS_MISSING, SECTIONS
from harness.study.checks import check
from harness.study.nodes.limits import MAX_DEPTH, MAX_PROBLEMS, string_problem
from harness.study.nodes.mapping_reader import read_mapping
from harness.study.nodes.yaml_node import SourceLocation, YamlNode, merge
from harness.study.nodes.yaml_reader import parse, read
from harness.study.schema import StudySettings
from harness.system.files import find

STUDIES = Path(__file__).parents[2] / "studies"
"""The repository's studies; `extends` of a study made from a mapping is relative to this folder."""
PRESET_KEYS = ("base", "objectives", "seeds", "tracking")
PRESET_STUDY = (
    "{question: What does this backbone reach with all patches?, arms: {mlp: {projector: mlp}}, baseline: mlp}"
)
"""The study that a preset is by itself."""
_NO_ASSIGNMENT = "is not of the form key=value, as in training.steps=100"
_EXTENDS = "extends="
_NULL = ": found nothing; "
"""Part of the message for a null."""


@dataclass(frozen=True, slots=True)
class LoadedStudy:
    """A study without problems.

    Args:
        arms: each arm merged into base, as plain values.
    """

    settings: StudySettings
    arms: Mapping[str, dict[str, Any]]


def load_yaml(path: Path, overrides: Sequence[str]) -> LoadedStudy:
    """Loads a study or a preset from a YAML file.

    Raises:
        StudyError: with every problem in the file, its preset and the overrides.
    """
    problem = string_problem(str(path))
    if problem is not None:
        raise StudyError([f"{shorten(str(path).encode('unicode_escape').decode(), 300)}: the file's name: {problem}"])
    problems: list[str] = []
    node = read(path, problems)
    return _load(node, path.parent, str(path), overrides, problems)


def load_mapping(mapping: Mapping[str, Any], name: str, overrides: Sequence[str]) -> LoadedStudy:
    """Loads a study from a mapping with the keys of a study file; `extends` is relative to `STUDIES`.

    Raises:
        StudyError: with every problem in the mapping, its preset and the overrides.
    """
    problems: list[str] = []
    node = read_mapping(mapping, SourceLocation(name), problems)
    return _load(node, STUDIES, name, overrides, problems)


def _load(
    node: YamlNode | None, folder: Path, source: str, overrides: Sequence[str], problems: list[str]
) -> LoadedStudy:
    """Merges and checks a study.

    Args:
        node: None if it cannot be loaded; `problems` then says why.
        folder: that `extends` is relative to.
        problems: found while loading `node`.
    """
    if node is not None:
        if {"base"} <= {*node.keys()} <= {*PRESET_KEYS}:
            defaults = parse(PRESET_STUDY, node.location, problems)
            node = replace(merge(defaults, node), location=node.location)
        presets = [override for override in overrides if override.startswith(_EXTENDS)]
        others = [override for override in overrides if override not in presets]
        extended = _extend(_choose_preset(node, presets), folder, problems)
        is_whole = not problems
        study = _override(extended, others, problems)
        before_checks = problems[:MAX_PROBLEMS]
        settings, arms = check(study, problems)
        if settings is not None and not problems:
            return LoadedStudy(settings, {name: arm.plain() for name, arm in arms.items()})
        problems = _without_nulls(problems, before_checks)
        if not is_whole:  # sections of a preset that could not be loaded are not missing
            problems = [problem for problem in problems if not problem.endswith(IS_MISSING)]
    raise StudyError(_in_order(problems, source))


def _without_nulls(problems: Sequence[str], before_checks: Sequence[str]) -> list[str]:
    """Problems without those about nulls that stand for a value that was refused before the checks."""

    def is_consequence(problem: str) -> bool:
        location, found, _ = problem.partition(_NULL)
        return bool(found) and any(earlier.startswith(f"{location}: ") for earlier in before_checks)

    return [problem for problem in problems if not is_consequence(problem)]


def _in_order(problems: Sequence[str], source: str) -> list[str]:
    """Each problem once, file by file, by line; at most `MAX_PROBLEMS` of them."""
    ordered = sorted(dict.fromkeys(problems), key=_file_and_line)
    num_more = len(ordered) - MAX_PROBLEMS
    return [*ordered[:MAX_PROBLEMS], f"{source}: has more problems; fix these first"] if num_more > 0 else ordered


def _file_and_line(problem: str) -> tuple[str, int]:
    location = re.match(r"(.*?):(\d+): ", problem)
    return (location[1], int(location[2])) if location else (problem.partition(":")[0], 0)


def _override_location(override: str) -> SourceLocation:
    return SourceLocation(f"--set {shorten(override, 200)}")


def _choose_preset(study: YamlNode, presets: Sequence[str]) -> YamlNode:
    """The study with `extends` replaced by `--set extends=FILE`."""
    for override in presets:
        chosen = YamlNode.of(override.removeprefix(_EXTENDS), _override_location(override))
        study = replace(merge(study, YamlNode.nest(["extends"], chosen)), location=study.location)
    return study


def _extend(study: YamlNode, folder: Path, problems: list[str]) -> YamlNode:
    """The study merged into the preset that it extends."""
    extends = study.get("extends")
    if extends is None or not isinstance(extends.value, str):
        return study
    file = find(folder / extends.value)
    if file is None or not file.is_file():
        files = [path for pattern in ("*.yaml", "*/*.yaml") for path in folder.glob(pattern)]
        near = [str(path.relative_to(folder)) for path in files if str(path) != study.location.source]
        hint = suggest(extends.value, near) if near else "there are no YAML files in that folder"
        problems.append(f"{extends.location}: there is no file {shorten(str(folder / extends.value), 300)}; {hint}")
        return study
    preset = read(file, problems)
    if preset is None:
        return study
    for key, value in preset.items():
        if key not in PRESET_KEYS:
            problems.append(
                f"{value.location}: not allowed in a preset (allowed: {', '.join(PRESET_KEYS)}); move it to the study"
            )
    allowed = YamlNode({key: value for key, value in preset.items() if key in PRESET_KEYS}, preset.location)
    if study.get("objectives") is not None:
        allowed = allowed.without("objectives")
    return replace(merge(allowed, study), location=study.location)


def _override(study: YamlNode, overrides: Sequence[str], problems: list[str]) -> YamlNode:
    """The study with `key=value` overrides applied in order."""
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if keys[0] in SECTIONS:
            keys.insert(0, "base")
        location = _override_location(override)
        problem = _path_problem(study, keys) if equals else _NO_ASSIGNMENT
        if problem is not None:
            problems.append(f"{location}: {problem}")
            continue
        value = parse(text, location, problems)
        if value is not None:
            study = replace(merge(study, YamlNode.nest(keys, value)), location=study.location)
    return study


def _path_problem(study: YamlNode, keys: Sequence[str]) -> str | None:
    """Why the path of an override is not allowed; None if it is."""
    if not all(keys):
        return _NO_ASSIGNMENT
    if len(keys) > MAX_DEPTH:
        return f"names a key nested {len(keys):,} deep; at most {MAX_DEPTH} are allowed"
    allowed = {*StudySettings.model_fields} - {"extends"}
    if keys[0] not in allowed:
        return unknown_key(keys[0], {*allowed, *SECTIONS})
    arms_node = study.get("arms")
    arms = arms_node.keys() if arms_node is not None else []
    if keys[0] == "arms" and len(keys) > 1 and keys[1] not in arms:
        return f"there is no arm {shorten(keys[1])!r}; {suggest(keys[1], arms)}"
    return None
