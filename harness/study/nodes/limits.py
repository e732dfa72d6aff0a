"""Upper bounds on the size of a study, for YAML and for mappings alike."""

import unicodedata

MAX_VALUES = 50_000
"""Mappings, lists and scalars of one document; the value of an alias counts each time it is repeated."""
MAX_DEPTH = 50
"""Nesting depth of mappings and lists."""
MAX_TEXT = 10_000
"""Characters of one string."""
MAX_KEY = 200
"""Characters of one key."""
MAX_INT = 2**53 - 1
"""The largest integer that every JSON implementation represents exactly."""
MAX_PROBLEMS = 50
"""Problems that are reported at once; checking stops there."""

TOO_DEEP = f"mappings and lists are nested more than {MAX_DEPTH} deep; flatten them"
NOT_AN_INTEGER = f"must be an integer of at most {MAX_INT:,} in absolute value"


class LimitError(Exception):
    """A document is larger than a study may be."""


def check_size(num_values: int, depth: int) -> None:
    """Checks a document against `MAX_VALUES` and `MAX_DEPTH`.

    Raises:
        LimitError: the document exceeds one of them.
    """
    if num_values > MAX_VALUES:
        raise LimitError(f"more than {MAX_VALUES:,} values, counting each alias; shorten its lists")
    if depth > MAX_DEPTH:
        raise LimitError(TOO_DEEP)


def string_problem(text: str, limit: int = MAX_TEXT) -> str | None:
    """Why a string is not allowed anywhere in a study; None if it is."""
    if len(text) > limit:
        return f"found a string of {len(text):,} characters; at most {limit:,} are allowed; shorten it"
    if text.isprintable():
        return None
    for character in text:
        # Control characters move the cursor of a terminal; a surrogate cannot be encoded in a file.
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\t":
            return f"contains the control character {codepoint(character)}; remove it"
    return None


def key_problem(key: str) -> str | None:
    """Why a string is not allowed as a key; None if it is."""
    return string_problem(key, MAX_KEY)


def codepoint(character: int | str | bytes) -> str:
    """A character as U+XXXX."""
    return f"U+{character if isinstance(character, int) else ord(character):04X}"
