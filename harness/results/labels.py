"""Short names of the settings that a search varies, the same in the plan, the progress, the tables and the report."""

from collections.abc import Iterable, Mapping


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Each dotted path -> its shortest ending that no other path has.

    That is `width` where one path ends so, and `position.width` beside `aggregation.width`.
    """
    parts = {path: path.split(".") for path in paths}
    return {path: _shortest(own, [other for other in parts.values() if other != own]) for path, own in parts.items()}


def _shortest(own: list[str], others: list[list[str]]) -> str:
    endings = (own[-length:] for length in range(1, len(own)))
    free = (ending for ending in endings if all(other[-len(ending) :] != ending for other in others))
    return ".".join(next(free, own))


def point_label(point: Mapping[str, object]) -> str:
    """The settings of a search point: `blocks=3, queries=4`; empty for an arm that is not searched."""
    names = short_names(point)
    return ", ".join(f"{names[path]}={value}" for path, value in point.items())
