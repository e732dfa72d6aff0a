"""A database as Optuna's storage, whose calls wait while its server is away."""

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from harness.errors import HarnessError

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""How long calls wait for a server that does not answer, since its last answer."""
_PAUSE_S = 1.0
_LIBPQ = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""A server that vanished without closing its connections is noticed within a minute."""


class _Patience:
    """Waits between attempts to reach a server.

    Args:
        shown: URL of the server without its password.
    """

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self._lost_at: float | None = None

    def wait(self, error: Exception) -> None:
        """Pause after an attempt that failed.

        Raises:
            HarnessError: the server has not answered for `PATIENCE_S`.
        """
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            _log.warning("the storage %s does not answer; waiting for at most %g s", self.shown, PATIENCE_S)
        if now - self._lost_at > PATIENCE_S:
            reason = " ".join(str(_reason(error)).split())
            raise HarnessError(
                f"the storage {self.shown} has not answered for {PATIENCE_S:g} s ({reason}); start the server, then "
                "run the same command again: finished cells are kept"
            ) from error
        time.sleep(_PAUSE_S)

    def end(self) -> None:
        """The server has answered."""
        self._lost_at = None


def _reason(error: BaseException) -> BaseException:
    """The error of the driver that led to this one."""
    while not isinstance(error, DBAPIError) and (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error.orig or error if isinstance(error, DBAPIError) else error


def _patiently(
    call: Callable[Concatenate[RDBStorage, P], T],
) -> Callable[Concatenate["Database", P], T]:
    """The same call, repeated while the server is away."""

    @wraps(call)
    def repeat(self: "Database", *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            try:
                result = call(self, *args, **kwargs)
            except StorageInternalError as error:
                if not _is_away(error):
                    raise
                self.patience.wait(error)
            else:
                self.patience.end()
                return result

    return repeat


def _is_away(error: BaseException | None) -> bool:
    """Whether an error, or the one that led to it, concerns the server or the connection and not the statement."""
    while error is not None:
        is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
        if is_lost or isinstance(error, OperationalError | InterfaceError):
            return True
        error = error.__cause__ or error.__context__
    return False


class Database(RDBStorage):
    """Optuna's storage in a database on a server.

    A call may be repeated after the server has executed it, if its answer was lost. This changes nothing, except that
    a trial can be created twice; the second one ends when it is claimed.

    Raises:
        HarnessError: by every call, once the server has not answered for `PATIENCE_S`.
    """

    def __init__(self, url: str) -> None:
        self.patience = _Patience(make_url(url).render_as_string(hide_password=True))
        super().__init__(url, engine_kwargs={"pool_pre_ping": True, "connect_args": _connect_args(make_url(url))})

    create_new_study = _patiently(RDBStorage.create_new_study)
    get_study_id_from_name = _patiently(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _patiently(RDBStorage.get_study_name_from_id)
    get_study_directions = _patiently(RDBStorage.get_study_directions)
    get_study_user_attrs = _patiently(RDBStorage.get_study_user_attrs)
    set_study_user_attr = _patiently(RDBStorage.set_study_user_attr)
    get_study_system_attrs = _patiently(RDBStorage.get_study_system_attrs)
    set_study_system_attr = _patiently(RDBStorage.set_study_system_attr)
    get_trial = _patiently(RDBStorage.get_trial)
    get_trial_id_from_study_id_trial_number = _patiently(RDBStorage.get_trial_id_from_study_id_trial_number)
    set_trial_state_values = _patiently(RDBStorage.set_trial_state_values)
    set_trial_user_attr = _patiently(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _patiently(RDBStorage.set_trial_system_attr)
    # Optuna's cache in front of the storage calls these.
    _create_new_trial = _patiently(RDBStorage._create_new_trial)
    _set_trial_param = _patiently(RDBStorage._set_trial_param)
    _get_trials = _patiently(RDBStorage._get_trials)


def join_database(url: str) -> Database:
    """Open a database that another process has opened before, and which may be away for a while.

    Raises:
        HarnessError: the server has not answered for `PATIENCE_S`.
    """
    patience = _Patience(make_url(url).render_as_string(hide_password=True))
    while True:
        try:
            return Database(url)
        except (SQLAlchemyError, StorageInternalError) as error:
            if not _is_away(error):
                raise
            patience.wait(error)


def _connect_args(url: URL) -> dict[str, Any]:
    """Time limits of connections by the drivers of PostgreSQL that use libpq; those in the URL are kept."""
    if url.get_backend_name() != "postgresql" or url.get_driver_name() not in {"psycopg2", "psycopg"}:
        return {}
    return {name: value for name, value in _LIBPQ.items() if name not in url.query}
