"""A reader of pickles of plain data that never executes code from the file."""

import pickle
from pathlib import Path
from typing import Any

from harness.errors import DataError

_DAMAGE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Exceptions that unpickling raises for a damaged file."""


class _PlainData(pickle.Unpickler):
    """An unpickler that refuses every class and function."""

    def __init__(self, path: Path, file: Any) -> None:
        # REFER's files were written by Python 2; its byte strings decode as Latin-1.
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise DataError(
            f"{self.path} is a pickle that loads {f'{module_name}.{global_name}'!r:.80}, which could run any code; "
            "only lists, dicts, numbers and strings are allowed; use the official file"
        )


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle of lists, dicts, numbers and strings.

    Raises:
        DataError: the file is missing or truncated, or contains anything else.
    """
    try:
        with path.open("rb") as file:
            return _PlainData(path, file).load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; `python -m harness.data check` prints where to download it") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is a truncated or invalid pickle ({reason}); download it again") from None
