"""Worker processes on this machine: one per GPU, or one thread each on a CPU. A process that dies is replaced."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.errors import HarnessError
from harness.monitoring.progress import SilentProgress
from harness.monitoring.run_log import run_log
from harness.queue.cell_queue import CellQueue
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system import environment
from harness.system.exit_code import sentence_of
from harness.system.shares import Share
from harness.worker.limits import Limits
from harness.worker.worker import RunsCells, Worker

_MAX_STARTS_PER_WORKER = 20
"""A machine on which workers die more often than this has another problem."""
_STOPPING_S = 20.0


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker of a run does; passed to its process.

    Attributes:
        cells: makes the object that runs cells; importable by name.
        command: command line that the rows state; by default that of the process that makes the job.
    """

    study: Study
    folder: Path
    storage: str | Path
    limits: Limits
    cells: Callable[[], RunsCells]
    command: str = field(default_factory=environment.command)


def work(job: Job, errors: Connection | None = None) -> int:
    """Run cells of a study in this process until none is left; returns the exit code.

    Args:
        errors: receives the sentence of an error that ends the run, for the process that started this one.
    """
    folder = RunFolder(job.folder)
    try:
        with run_log(folder.path / "run.log"), CellQueue(job.study, job.storage, is_joining=True) as queue:
            Worker(job.study, folder, job.cells(), queue, SilentProgress(), job.limits, command=job.command).run()
    except (HarnessError, OSError) as error:
        sentence = sentence_of(error)
        if errors is None or sentence is None:
            raise
        with suppress(BrokenPipeError):  # the run was killed
            errors.send(sentence)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _main(job: Job, errors: Connection) -> None:
    """A worker process: Ctrl-C is for the parent, which ends its workers by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(work(job, errors))


class LocalWorkers:
    """Workers of one run; a context manager that ends them.

    Args:
        shares: one per worker.
    """

    def __init__(self, job: Job, shares: Sequence[Share]) -> None:
        self.job = job
        self.shares = shares
        self.num_starts = 0
        self._context = get_context("spawn")
        self._errors, self._send_errors = self._context.Pipe(duplex=False)
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> Self:
        self._processes = [self._start(share) for share in self.shares]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        alive = [process for process in self._processes if process.is_alive()]
        for process in alive:
            process.terminate()
        for process in alive:
            process.join(_STOPPING_S)
            if process.is_alive():
                process.kill()

    def poll(self) -> bool:
        """Whether workers are running; replaces those that died.

        Raises:
            HarnessError: a worker met something that the user has to correct, or workers keep dying.
        """
        for number, process in enumerate(self._processes):
            if process.exitcode not in (None, 0, 2):
                self._processes[number] = self._start(self.shares[number])
        is_running = any(process.is_alive() for process in self._processes)
        if self._errors.poll():  # after the look at the processes, which send before they end
            raise HarnessError(self._errors.recv())
        return is_running

    def _start(self, share: Share) -> BaseProcess:
        if self.num_starts >= _MAX_STARTS_PER_WORKER * len(self.shares):
            raise HarnessError(
                f"{self.num_starts - len(self.shares)} workers died; look for the cause in the log of the system, then "
                "run the same command again: finished cells are kept"
            )
        self.num_starts += 1
        process = self._context.Process(target=_main, args=(self.job, self._send_errors))
        before = {name: os.environ.get(name) for name in share.environment}
        os.environ.update(share.environment)  # libraries look at these when the process loads them
        try:
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        return process
