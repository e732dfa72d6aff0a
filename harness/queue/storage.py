"""Optuna's storages: a journal file in the run folder, or a database by URL."""

import json
import time
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from harness.errors import HarnessError
from harness.system.uris import redact

_EXAMPLE = "postgresql+psycopg2://user@host/optuna"


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


def open_storage(storage: str | Path) -> BaseStorage:
    if isinstance(storage, Path):
        storage.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(storage)))
    try:
        shown = make_url(storage).render_as_string(hide_password=True)
        return RDBStorage(storage)
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
