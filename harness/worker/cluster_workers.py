"""Workers that are jobs of a cluster, submitted through submitit. A job that ends early is replaced."""

import logging
import signal
import time
from functools import partial
from types import FrameType, TracebackType
from typing import Self

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from harness.errors import HarnessError
from harness.worker.local_workers import Job, work

_log = logging.getLogger(__name__)
_MAX_STARTS_PER_WORKER = 20
_LOOK_S = 2.0
"""Pause between two looks at the results of jobs."""
_ASK_S = 60.0
"""Pause between two questions to the cluster, for jobs that were killed and so left no result."""
_STOPPING_S = 20.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Ctrl-C; cancelled or preempted; soon at the time limit."""


def work_in_job(job: Job) -> int | str:
    """Run cells until none is left; what a job of the cluster does.

    Returns:
        The exit code of `work`, or the sentence of a HarnessError.
    """
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        return work(job)
    except HarnessError as error:
        return str(error)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Ends the cell once: SLURM signals twice, and the second must not interrupt the release of the cell."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


class ClusterWorkers:
    """Workers of one run; a context manager that cancels them.

    Args:
        job: what each of them does.
        count: number of workers.
        executor: submits them.
    """

    def __init__(self, job: Job, count: int, executor: submitit.Executor) -> None:
        self.job = job
        self.count = count
        self.num_starts = 0
        self._executor = executor
        self._submitted: list[submitit.Job[int | str]] = []
        self._is_finished = False
        self._looked = self._asked = time.monotonic()

    def __enter__(self) -> Self:
        self._submitted = self._submit(self.count)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        left = [job for job in self._submitted if not _has_ended(job)]
        for job in left:
            job.cancel(check=False)
        deadline = time.monotonic() + _STOPPING_S
        while left and time.monotonic() < deadline:
            left = [job for job in left if not _has_ended(job, asks=job is left[0])]
            time.sleep(0.2)

    def poll(self) -> bool:
        """Whether there may be cells left; replaces jobs that ended early.

        A worker ends by itself when no cell is left or running, so the others are not needed either: jobs that the
        cluster has not started yet are not waited for.

        Raises:
            HarnessError: a worker met something that the user has to correct, jobs keep ending early, or the cluster
                refuses a job.
        """
        now = time.monotonic()
        if self._is_finished or now - self._looked < _LOOK_S:
            return not self._is_finished
        self._looked = now
        asks = now - self._asked > _ASK_S
        if asks:
            self._asked = now
        for number, job in enumerate(self._submitted):
            if not _has_ended(job, asks=asks and number == 0):  # one question is about all jobs
                continue
            outcome = _outcome(job)
            if isinstance(outcome, str):
                raise HarnessError(outcome)
            if outcome == 0:
                self._is_finished = True
                return False
            self._replace(number)
        return True

    def _replace(self, number: int) -> None:
        log = str(self._submitted[number].paths.stderr)
        if self.num_starts >= _MAX_STARTS_PER_WORKER * self.count:
            raise HarnessError(
                f"{self.num_starts - self.count + 1} jobs ended before the study did; look for the cause in {log}, or "
                "raise the time limit of jobs (--slurm time=...), then run the same command again: finished cells are "
                "kept"
            )
        _log.warning("job ended early", extra={"fields": {"job": self._submitted[number].job_id, "log": log}})
        [self._submitted[number]] = self._submit(1)

    def _submit(self, count: int) -> list[submitit.Job[int | str]]:
        """Submits jobs at once, as a job array. They inherit nothing from a job in which the run itself may be."""
        self.num_starts += count
        try:
            with submitit.helpers.clean_env():
                return self._executor.submit_array([partial(work_in_job, self.job)] * count)
        except (FailedJobError, FailedSubmissionError) as error:
            raise HarnessError(
                f"the cluster refused a job ({' '.join(str(error).split())}); correct --slurm, then run the same "
                "command again: finished cells are kept"
            ) from error


def _has_ended(job: submitit.Job[int | str], asks: bool = False) -> bool:
    """Whether a job has left its result, or the cluster says that it has ended.

    Args:
        asks: the cluster, even if it was asked recently.
    """
    return job.done(force_check=asks) or job.state == "PREEMPTED"  # for submitit, SLURM will start the latter again


def _outcome(job: submitit.Job[int | str]) -> int | str | None:
    """What an ended job returned; None if it was killed or failed."""
    job.done()  # makes a network file system show files that were written a moment ago
    if not job.paths.result_pickle.exists() or job.exception() is not None:
        return None
    return job.result()
