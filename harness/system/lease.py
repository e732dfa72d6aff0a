"""The lease of a cell: a file that a worker renews while it runs the cell.

A lease ends when its file is removed, by its worker or by the process that returns the cell to the queue; when its
process has died on this machine; or when its file has not changed for `EXPIRES_S` on the clock of the worker that
looks. Another worker may then run the cell. No clocks of two machines are compared.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.system.files import replace_file

RENEWED_S = 2.0
"""Interval between two renewals."""
EXPIRES_S = 60.0
"""How long a lease is kept without a renewal. Longer than a stall of a shared file system."""


class LeaseLostError(BaseException):
    """Another worker took over the cell, because this one did not renew its lease in time.

    Not an `Exception`: the cell must end without writing a row.
    """


@dataclass(frozen=True, slots=True)
class Owner:
    """A worker process.

    Attributes:
        machine: identifies the booted machine and its process namespace.
        pid: process id in that namespace.
        started: start time of the process in clock ticks, which tells it from a later process with the same id.
        host: name of the machine, to be shown.
    """

    machine: str
    pid: int
    started: int
    host: str

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to have ended; False for a process of another machine."""
        is_here = self.machine == this_process().machine and self.started > 0
        return is_here and _started(self.pid) != self.started


@dataclass(slots=True)
class Status:
    """What the worker is doing, for the table of workers.

    Attributes:
        cell: id of the cell.
        title: arm, search point and seed.
        note: the current stage.
        step, steps: of the training.
        loss: of the last logged step; NaN before the first.
        started: wall-clock time at which the cell began, in seconds since the epoch.
    """

    cell: str
    title: str
    note: str = ""
    step: int = 0
    steps: int = 0
    loss: float = float("nan")
    started: float = 0.0


class Lease:
    """The lease of one cell, renewed by a thread while the context is open.

    Args:
        path: of the file, in a folder that all workers see.

    Raises:
        LeaseLostError: by `check`, once the file is gone or another worker's.
    """

    def __init__(self, path: Path, status: Status) -> None:
        self.path = path
        self.status = status
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ends.set()
        self._thread.join()
        if not self._is_lost():
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises LeaseLostError if another worker took the cell over, also if this process has just been resumed."""
        if self._is_lost():
            raise LeaseLostError(f"{self.path} belongs to another worker")

    def _is_lost(self) -> bool:
        found = read(self.path)
        return not self.path.exists() if found is None else found[0] != this_process()

    def _renew(self) -> None:
        while not self._ends.wait(RENEWED_S):
            if self._is_lost():
                return
            try:
                self._write()
            except OSError:  # such as a full disk, on which the time of a file can still change
                with suppress(OSError):
                    os.utime(self.path)

    def _write(self) -> None:
        content = {"owner": asdict(this_process()), "status": asdict(self.status), "renewed": time.time()}
        replace_file(self.path, lambda path: path.write_text(json.dumps(content), encoding="utf-8"))


class Watch:
    """Tells which leases have ended, by this process's own clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Path, tuple[int, float]] = {}

    def has_ended(self, path: Path) -> bool:
        """Whether nobody holds the lease in this file."""
        found = read(path)
        if found is None or found[0].is_dead:
            return True
        changed, now = path.stat().st_mtime_ns if path.exists() else 0, self._clock()
        before = self._seen.get(path)
        if before is None or before[0] != changed:
            self._seen[path] = (changed, now)
            return False
        return now - before[1] > EXPIRES_S


def read(path: Path) -> tuple[Owner, Status] | None:
    """Owner and status of a lease; None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Owner(**content["owner"]), Status(**content["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@cache
def this_process() -> Owner:
    """The owner that this process is."""
    return Owner(_machine(), os.getpid(), _started(os.getpid()) or 0, os.uname().nodename)


@cache
def _machine() -> str:
    """The booted machine and its process namespace, in which process ids are unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{os.uname().nodename} {os.uname().sysname}"


def _started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
