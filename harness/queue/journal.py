"""A journal file as Optuna's storage: it contains whole records only, and its lock ends with the process that holds it.

Optuna's own lock is a file, which a killed process leaves behind, so that all others wait for 30 s. Its records can be
cut by a full disk, and then the next one is appended to the same line and the journal cannot be loaded.
"""

import json
import math
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock
from optuna.storages.journal import JournalFileBackend

_POLL_S = 0.005


def lock_of(journal: Path) -> BaseFileLock:
    """The lock of a journal, in a file next to it; a context manager."""
    return FileLock(journal.with_name(f".{journal.name}.lock"), poll_interval=_POLL_S, fallback_to_soft=False)


class JournalFile(JournalFileBackend):
    """Appends whole records, which can be collected and written at once: each write waits for the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._process_lock = path, lock_of(path)
        self._waiting: list[dict[str, Any]] = []
        self._num_direct: float = math.inf

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Records from this number on; none while records wait to be written."""
        if not self._waiting:
            yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records to the file, or collect them.

        Raises:
            OSError: as for a full disk.
        """
        if self._num_direct > 0:
            self._num_direct -= 1
            self._write(logs)
        else:
            self._waiting += logs

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect records, and write them at the end, also after an error.

        The first is written at once: Optuna reads the number of the first trial that a process adds.
        """
        self._num_direct = 1
        try:
            yield
        finally:
            waiting, self._waiting, self._num_direct = self._waiting, [], math.inf
            if waiting:
                self._write(waiting)

    def _write(self, logs: list[dict[str, Any]]) -> None:
        """Append records. The file is unchanged if not all of them can be written.

        Raises:
            OSError: as for a full disk.
        """
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        # Without a buffer, which would write the rest of a failed write when the file is closed.
        with self._process_lock, self._path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":  # the process that wrote the last record was killed
                    file.seek(0)
                    size = file.readall().rfind(b"\n") + 1
                    file.truncate(size)
            try:
                written = 0
                while written < len(text):
                    written += file.write(text[written:])
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
