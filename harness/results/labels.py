"""Short names of the settings that a search varies, for the plan, the progress, the tables and the report."""

from collections.abc import Iterable, Mapping


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Map each dotted path to its shortest unique ending.

    For example `width`, or `position.width` if there is `aggregation.width` too.
    """
    parts = {path: path.split(".") for path in paths}
    return {path: _shortest(own, [other for other in parts.values() if other != own]) for path, own in parts.items()}


def _shortest(own: list[str], others: list[list[str]]) -> str:
    endings = (own[-length:] for length in range(1, len(own)))
    free = (ending for ending in endings if all(other[-len(ending) :] != ending for other in others))
    return ".".join(next(free, own))


def point_label(point: Mapping[str, object]) -> str:
    """The settings of a search point, such as `blocks=3, queries=4`; empty for an arm without a search."""
    names = short_names(point)
    return ", ".join(f"{names[path]}={value}" for path, value in point.items())
