"""Optuna's storages: a journal file in the run folder, or a database by URL."""

import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from harness.errors import HarnessError
from harness.queue.database import Database, join_database
from harness.queue.journal import JournalFile, lock_of
from harness.system.uris import redact

_EXAMPLE = "postgresql+psycopg2://user@host/optuna"


def default_path(folder: Path) -> Path:
    """The journal file of Optuna in a run folder. Its lock works on shared file systems."""
    return folder / "optuna.journal"


def repair(folder: Path) -> None:
    """Move a damaged journal aside; the queue is then filled from the rows again.

    An unfinished last line is no damage: the next record replaces it.
    """
    path = default_path(folder)
    if not path.exists():
        return
    with lock_of(path):  # workers of an earlier run may be writing
        try:
            for line in path.read_bytes().split(b"\n")[:-1]:
                json.loads(line)
        except ValueError:
            path.replace(path.with_suffix(f".damaged-{time.time_ns()}"))


class FileStorage(JournalStorage):
    """Trials in a journal file."""

    def __init__(self, path: Path) -> None:
        self.journal = JournalFile(path)
        super().__init__(self.journal)


def adding_trials(storage: BaseStorage) -> AbstractContextManager[None]:
    """Trials that are added inside the context are written at once where the storage is a file.

    Inside the context, added trials cannot be read.
    """
    return storage.journal.collect() if isinstance(storage, FileStorage) else nullcontext()


def open_storage(storage: str | Path, *, is_joining: bool = False) -> BaseStorage:
    """Open a storage by its URL, or a journal file.

    Args:
        is_joining: the run that started this process has opened the storage, so a server that is away will be back.

    Raises:
        HarnessError: the storage cannot be opened.
    """
    if isinstance(storage, Path):
        storage.parent.mkdir(parents=True, exist_ok=True)
        return FileStorage(storage)
    try:
        shown = make_url(storage).render_as_string(hide_password=True)
        if make_url(storage).get_backend_name() == "sqlite":
            return RDBStorage(storage)
        return join_database(storage) if is_joining else Database(storage)
    except ImportError as error:
        raise HarnessError(
            f"--storage {redact(storage)!r} requires the driver {make_url(storage).get_driver_name()}, which is not "
            f"installed; for PostgreSQL, run `pip install -e '.[postgresql]'` and give a URL like {_EXAMPLE}"
        ) from error
    except (ArgumentError, NoSuchModuleError) as error:
        raise HarnessError(
            f"--storage {redact(storage)!r} is no storage URL ({redact(str(error))}); give one like {_EXAMPLE}"
        ) from error
    except OperationalError as error:
        raise HarnessError(
            f"the storage {shown} cannot be opened: {error.orig}; start the server, or correct the URL"
        ) from error
