"""Pickles of plain data, read without running what they could otherwise run."""

import pickle
from pathlib import Path
from typing import Any

from harness.errors import DataError


class _PlainData(pickle.Unpickler):
    """Knows no class and no function: lists, dicts, numbers and text need none."""

    def __init__(self, path: Path, file: Any) -> None:
        # REFER's files were written by Python 2, whose byte strings are Latin-1 here.
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise DataError(
            f"{self.path} is a pickle that asks for {module_name}.{global_name}, which could run anything; only lists, "
            "dicts, numbers and text are allowed; take the official file"
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
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, ImportError) as error:
        raise DataError(f"{path} is no whole pickle ({error or type(error).__name__}); fetch it again") from None
