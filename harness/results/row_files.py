"""The rows of cells in a folder; a file is read again only after it has changed."""

import json
import os
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

Row = dict[str, Any]
"""A row of results.parquet; a missing column is None or left out."""
_Version = tuple[int, int, int]
"""Inode, time of the last change and size of a file. Files of rows are replaced as a whole."""


class RowFiles:
    """Rows, each in a file of its own.

    Args:
        folder: of the files; it may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, tuple[_Version, Row]] = {}

    def path(self, cell: str) -> Path:
        """The file of a cell's row."""
        return self.folder / f"{cell}.json"

    def row(self, cell: str) -> Row:
        """Load the row of a cell.

        Raises:
            HarnessError: the file is not the row of a cell.
        """
        path = self.path(cell)
        try:
            row: Row = json.loads(path.read_text(encoding="utf-8"))
            is_valid = {"status", "spec"} <= row.keys()
        except (ValueError, AttributeError):
            is_valid = False
        if not is_valid:
            raise HarnessError(f"{path} is not the row of a cell; delete it, and the study runs that cell again")
        return row

    def rows(self) -> dict[str, Row]:
        """Every row by cell. The row of an unchanged file is the same object as before; do not change it.

        Raises:
            HarnessError: a file is not the row of a cell.
        """
        versions = self._versions()
        known = self._read
        self._read = {
            cell: known[cell] if cell in known and known[cell][0] == version else (version, self.row(cell))
            for cell, version in versions.items()
        }
        return {cell: row for cell, (_, row) in self._read.items()}

    def _versions(self) -> dict[str, _Version]:
        """The files of the folder by cell, sorted."""
        found: dict[str, _Version] = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".json"):
                        status = entry.stat()
                        found[entry.name.removesuffix(".json")] = (status.st_ino, status.st_mtime_ns, status.st_size)
        except FileNotFoundError:  # no cell has a row yet
            return {}
        return dict(sorted(found.items()))
