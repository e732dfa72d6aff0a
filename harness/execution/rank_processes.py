"""Trains one cell in several processes, one per GPU, which end with the training.

The process that holds the cell starts them, receives their progress and ends them when one of them fails. The trained
model reaches its later stages by the checkpoint.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessContext, start_processes

from harness.errors import HarnessError
from harness.evaluation.cost import PeakMemory
from harness.execution.stages import Stages
from harness.monitoring.progress import Progress, SilentProgress
from harness.monitoring.run_log import run_log
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell
from harness.system.device import default_device
from harness.system.environment import visible_gpus
from harness.system.shares import check_devices
from harness.training.ranks import connected
from projectors import ProjectorError

_POLL_S = 0.1
"""Pause between two looks at the messages of the processes."""


class _SentProgress(SilentProgress):
    """Sends steps and notes to the process that holds the cell."""

    def __init__(self, messages: Any) -> None:
        self.messages = messages

    def step(self, point: Mapping[str, float], total: int) -> None:
        """Sent."""
        self.messages.put(("step", dict(point), total))

    def note(self, text: str) -> None:
        """Sent."""
        self.messages.put(("note", text))


def train_in_processes(stages: Stages) -> Row:
    """Runs `Stages.train` of this cell in one process per device; returns its columns and the largest peak memory.

    Raises:
        HarnessError: the machine has too few GPUs, a process died, or training met an error of the user.
        ProjectorError: the projector is incompatible with the backbone.
        RuntimeError: a process raised another exception; the message is its traceback.
    """
    num = stages.spec.training.devices
    check_devices(num, visible_gpus())
    # Memory that earlier cells of this process have left reserved on the first GPU.
    gc.collect()
    torch.cuda.empty_cache()
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // num)
    with TemporaryDirectory(prefix="svp-ranks-") as place:
        arguments = (num, Path(place) / "store", threads, stages.cell, stages.folder.path, stages.max_images, messages)
        context = start_processes(_train, arguments, nprocs=num, join=False, start_method="spawn")
        try:
            return _columns(context, messages, stages.progress)
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
            messages.close()
            for path in context.error_files:
                Path(path).unlink(missing_ok=True)


def _columns(context: ProcessContext, messages: Any, progress: Progress) -> Row:
    """Passes progress on until all processes have ended; returns the columns that the first one sent."""
    columns: Row = {}
    while True:
        codes = [process.exitcode for process in context.processes]
        columns |= _read(messages, progress)
        _raise_failure(context, codes)
        if all(code == 0 for code in codes):
            return columns
        time.sleep(_POLL_S)


def _read(messages: Any, progress: Progress) -> Row:
    """Handles the messages that have arrived; raises an error that a process sent."""
    columns: Row = {}
    while not messages.empty():
        match messages.get():
            case ("step", point, total):
                progress.step(point, total)
            case ("note", text):
                progress.note(text)
            case ("columns", found):
                columns = found
            case ("error", error):
                raise error
    return columns


def _raise_failure(context: ProcessContext, codes: Sequence[int | None]) -> None:
    """Raises if a process has failed. Others fail because it is gone, so the first failure is the cause."""
    for number, code in enumerate(codes, start=1):
        if code not in (None, 0, 1):
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise HarnessError(
                f"process {number} of the {len(codes)} that train this cell {how}, perhaps because memory ran out; "
                "look for the cause in the log of the system, then run the study again: training continues from its "
                "last training checkpoint"
            )
    files = [path for path in map(Path, context.error_files) if path.exists() and path.stat().st_size]
    if files:
        first = min(files, key=lambda path: path.stat().st_mtime_ns)
        raise RuntimeError(pickle.loads(first.read_bytes()))
    if 1 in codes:
        context.join()


def _train(
    index: int, num: int, store: Path, threads: int, cell: Cell, folder: Path, max_images: int | None, messages: Any
) -> None:
    """One of the processes. Ctrl-C is for the process that holds the cell, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    run = RunFolder(folder)
    progress = _SentProgress(messages) if index == 0 else SilentProgress()
    try:
        with run_log(run.path / "run.log"), connected(index, num, store) as ranks:
            device = default_device()
            memory = PeakMemory(device)
            columns = Stages(cell, run, progress, max_images).train(ranks)
            peak = max(ranks.gather(memory.mib(), device))
            if ranks.is_first:
                messages.put(("columns", {**columns, "peak_memory_mib": peak}))
    except (HarnessError, ProjectorError) as error:
        messages.put(("error", error))


def _end_with_parent() -> None:
    """Ends this process when the one that started it dies, also if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
