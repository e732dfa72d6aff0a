"""Pickles of plain data, read without running what they could otherwise run."""

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
"""What a pickle's instructions raise where some are missing or wrong."""


class _PlainData(pickle.Unpickler):
    """Knows no class and no function: lists, dicts, numbers and text need none."""

    def __init__(self, path: Path, file: Any) -> None:
        # REFER's files were written by Python 2, whose byte strings are Latin-1 here.
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise DataError(
            f"{self.path} is a pickle that asks for {f'{module_name}.{global_name}'!r:.80}, which could run anything; "
            "only lists, dicts, numbers and text are allowed; take the official file"
        )


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle of lists, dicts, numbers and text.

    Raises:
        DataError: the file is missing or not whole, or it asks for anything else.
    """
    try:
        with path.open("rb") as file:
            return _PlainData(path, file).load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing; `python -m harness.data check` says where it comes from") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is a truncated or invalid pickle ({reason}); fetch it again") from None
