"""What can go wrong on the user's side. Each message says what was found, what is allowed, where, and what to do.

HarnessError            exit code 2, no traceback
  StudyError            a study file; carries every mistake found, not only the first
  WeightsError          a weight that cannot be resolved, does not match its hash, or does not load strictly
  DataError             a dataset file that is missing, truncated or not what its format says
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class HarnessError(Exception):
    """A mistake the user can mend; the command line prints it as one sentence and exits with 2."""


class StudyError(HarnessError):
    """One or more mistakes in a study file.

    Args:
        problems: one sentence each, with file, line and key.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class WeightsError(HarnessError):
    """A weight could not be found, fetched, verified or loaded strictly."""


class DataError(HarnessError):
    """A dataset's file is not there or is not what its format promises."""


def shorten(text: str, limit: int = 80) -> str:
    """A text as a message shows it: one that is too long keeps its first characters, and its length is told."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


RENAMED = {
    "start": "init_from",
    "mask_head": "mask_decoder",
    "pointing": "location_loss",
    "said": "generated_text",
    "answered": "predicted_seg",
    "giou_other_tokens": "giou_swapped_tokens",
}
"""YAML keys, columns and metrics of earlier versions, and their names now."""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message for a key that is not in `known`: its new name if it was renamed, else near matches."""
    allowed = set(known)
    renamed = RENAMED.get(key)
    return f"{key} is now named {renamed}; rename it" if renamed in allowed else f"unknown key; {suggest(key, allowed)}"


def suggest(name: str, known: Iterable[str]) -> str:
    """The second half of an unknown-name message: near matches when there are any, else all that is known."""
    options = sorted(known)
    near = get_close_matches(shorten(name), options, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(options)}"
