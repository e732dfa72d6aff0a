"""What readers of other people's files have in common: JSON that may be damaged, entries that may lack something."""

import json
from pathlib import Path
from typing import Any

from harness.errors import DataError

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What comes of reading an entry that is not as its format promises."""


def read_json(path: Path, fallback: str | None = None) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Args:
        fallback: the encoding of a text that is no UTF-8; None where there should be none.

    Raises:
        DataError: it is missing, no file, or not whole.
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
        raise DataError(f"{path} is missing; `python -m harness.data check` says where it comes from") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); a JSON file is allowed there") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is truncated or invalid JSON ({error}); fetch it again, or mend it") from None


def as_text(given: Any) -> str:
    """A value that must be a text.

    Raises:
        TypeError: it is none.
        ValueError: it has a lone surrogate, as of a JSON text cut within an emoji, which cannot be stored or tokenized.
    """
    if not isinstance(given, str):
        raise TypeError(f"found {given!r:.60}, and a text is allowed")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{given!r:.60} contains half of a surrogate pair (\\ud800 to \\udfff)") from None
    return given


def as_sentence(given: Any) -> str:
    """A text in lower case, its words separated by single spaces.

    Raises:
        TypeError, ValueError: it is no text.
    """
    return " ".join(as_text(given).lower().split())


def what_is_wrong(error: Exception) -> str:
    """An error of reading an entry, in one line; a key or an index says nothing without its kind."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())
