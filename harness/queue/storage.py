"""Optuna's storages: a journal file in the run folder, or a database by URL."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from harness.errors import HarnessError
from harness.system.uris import redact


def default_path(folder: Path) -> Path:
    """The journal file of Optuna in a run folder. Its lock works on shared file systems."""
    return folder / "optuna.journal"


def repair(folder: Path) -> None:
    """Move a damaged journal aside; the queue is then filled from the rows again.

    A disk that was full may leave a truncated line in the middle, after which Optuna cannot load the journal.
    """
    path = default_path(folder)
    if not path.exists():
        return
    *lines, last = path.read_bytes().split(b"\n")
    try:
        for line in lines:
            json.loads(line)
    except ValueError:
        is_damaged = True
    else:
        is_damaged = last != b""
    if is_damaged:
        path.replace(path.with_suffix(f".damaged-{time.time_ns()}"))


class _Journal(BaseJournalBackend):
    """A journal file whose lines can be collected and written at once; each write waits for the disk."""

    def __init__(self, path: Path) -> None:
        self._file = JournalFileBackend(str(path))
        self._waiting: list[dict[str, Any]] = []
        self._num_direct: float = math.inf

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Lines from this number on; none while lines wait to be written."""
        return iter(()) if self._waiting else self._file.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines to the file, or collect them."""
        if self._num_direct > 0:
            self._num_direct -= 1
            self._file.append_logs(logs)
        else:
            self._waiting += logs

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect lines, and write them at the end, also after an error.

        The first is written at once: Optuna reads the number of the first trial that a process adds.
        """
        self._num_direct = 1
        try:
            yield
        finally:
            waiting, self._waiting, self._num_direct = self._waiting, [], math.inf
            if waiting:
                self._file.append_logs(waiting)


class _JournalStorage(JournalStorage):
    def __init__(self, path: Path) -> None:
        self.journal = _Journal(path)
        super().__init__(self.journal)


def adding_trials(storage: BaseStorage) -> AbstractContextManager[None]:
    """Trials that are added inside the context are written at once where the storage is a file.

    Inside the context, added trials cannot be read.
    """
    return storage.journal.collect() if isinstance(storage, _JournalStorage) else nullcontext()


def open_storage(storage: str | Path) -> BaseStorage:
    if isinstance(storage, Path):
        storage.parent.mkdir(parents=True, exist_ok=True)
        return _JournalStorage(storage)
    try:
        shown = make_url(storage).render_as_string(hide_password=True)
        return RDBStorage(storage)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise HarnessError(
            f"--storage {redact(storage)!r} is no storage URL ({redact(str(error))}); give one like "
            "postgresql://user@host/optuna"
        ) from error
    except OperationalError as error:
        raise HarnessError(
            f"the storage {shown} cannot be opened: {error.orig}; start the server, or correct the URL"
        ) from error
