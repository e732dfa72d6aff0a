"""Errors of the user's side. Each message states what was found, what is allowed, where, and what to do.

HarnessError            exit code 2, no traceback
  StudyError            an invalid study; lists every problem, not only the first
  WeightsError          weights that cannot be found, do not match their hash, or do not load strictly
  DataError             a dataset file that is missing, truncated or violates its format
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class HarnessError(Exception):
    """An error that the user can fix; the command line prints its message and exits with 2."""


class StudyError(HarnessError):
    """One or more problems in a study.

    Args:
        problems: one message each, with its location.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class WeightsError(HarnessError):
    """Weights could not be found, fetched, verified or loaded strictly."""


class DataError(HarnessError):
    """A file of a dataset is missing or violates its format."""


def shorten(text: str, limit: int = 80) -> str:
    """A text for a message: its first `limit` characters, followed by its length if it is longer."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


RENAMED = {
    "start": "init_from",
    "mask_head": "mask_decoder",
    "pointing": "location_loss",
    "said": "generated_text",
    "answered": "predicted_seg",
    "giou_other_tokens": "giou_swapped_tokens",
}
"""YAML keys, columns and metrics of earlier versions, and their current names."""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that is not in `known`: its current name if it was renamed, else near matches."""
    allowed = set(known)
    renamed = RENAMED.get(key)
    return f"{key} is now named {renamed}; rename it" if renamed in allowed else f"unknown key; {suggest(key, allowed)}"


def suggest(name: str, known: Iterable[str]) -> str:
    """The second half of a message about an unknown name: near matches if there are any, else all known names."""
    options = sorted(known)
    near = get_close_matches(shorten(name), options, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(options)}"
