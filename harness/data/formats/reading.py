"""Shared code of file readers: damaged JSON files and malformed entries."""

import json
from pathlib import Path
from typing import Any

from harness.errors import DataError

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Exceptions that parsing a malformed entry raises."""


def read_json(path: Path, fallback: str | None = None) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Args:
        fallback: the encoding of files that are not UTF-8; None if all must be UTF-8.

    Raises:
        DataError: it is missing, not a file, or truncated.
    """
    try:
        content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            if fallback is None:
                raise
            text = content.decode(fallback, errors="replace")
        return json.loads(text)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; correct the path, or download the file (`python -m harness.data check` names the "
            "source of published datasets)"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); it must be a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is truncated or invalid JSON ({error}); download it again, or correct it") from None


def as_text(value: Any) -> str:
    """Returns a value that must be a string.

    Raises:
        TypeError: it is no string.
        ValueError: it has a lone surrogate, which cannot be stored or tokenized; truncated JSON strings end in one.
    """
    if not isinstance(value, str):
        raise TypeError(f"found {value!r:.60} instead of a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!r:.60} contains half of a surrogate pair (\\ud800 to \\udfff)") from None
    return value


def as_sentence(value: Any) -> str:
    """A string in lower case, its words separated by single spaces.

    Raises:
        TypeError, ValueError: it is no valid string.
    """
    return " ".join(as_text(value).lower().split())


def what_is_wrong(error: Exception) -> str:
    """The message of a parsing error, in one line; except for a ValueError, its type comes first."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
