"""A worker that is killed while it trains a cell is succeeded by another one, with the same result to the last bit."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.execution.cells import Cells
from harness.queue.cell_queue import CellQueue
from harness.queue.storage import default_path
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.training import trainer
from harness.training.loop import TrainingLoop
from harness.worker.limits import DEFAULT_LIMITS
from harness.worker.local_workers import Job, work

pytestmark = pytest.mark.slow
STEPS = 40
MEASURED = {"train_seconds", "eval_seconds", "wall_seconds", "started_at", "peak_memory_mib"}
"""Columns of the clock and the memory, apart from latencies."""


def _work(study: Study, out: Path, log: Path) -> None:
    """A worker that writes its training checkpoint after every step, and the step with which its training begins."""
    torch.set_num_threads(1)
    trainer.SAVE_EVERY_SECONDS = 0.0
    restore = TrainingLoop.restore

    def logged(self: TrainingLoop) -> None:
        restore(self)
        with log.open("a") as file:
            file.write(f"{self.step}\n")

    TrainingLoop.restore = logged  # type: ignore[method-assign]
    sys.exit(work(Job(study, out, default_path(out), DEFAULT_LIMITS, Cells)))


@pytest.fixture
def study(cells, tmp_path) -> Study:
    """One arm of the study of `cells`, with more steps."""
    path = tmp_path / "study.yaml"
    others = tuple(f"  {arm}:" for arm in cells if arm != "sspe")
    lines = [line for line in path.read_text().splitlines(True) if not line.startswith(others)]
    path.write_text("".join(lines).replace("baseline: pooling", "baseline: sspe"))
    return Study.from_yaml(path, [f"training.steps={STEPS}"])


def test_a_cell_whose_worker_was_killed_continues_and_has_the_result_of_an_uninterrupted_one(study, tmp_path):
    [cell] = study.cells()
    start = multiprocessing.get_context("spawn").Process
    killed, whole, log = RunFolder(tmp_path / "killed"), RunFolder(tmp_path / "whole"), tmp_path / "steps.log"
    for folder in (killed, whole):
        with CellQueue(study, default_path(folder.path)) as queue:
            queue.fill({})

    worker = start(target=_work, args=(study, killed.path, log))
    worker.start()
    checkpoint, deadline = killed.training_checkpoint(cell.id), time.monotonic() + 240
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    saved = torch.load(checkpoint, weights_only=True)["step"]
    assert 0 < saved < STEPS, "killed in the middle of the training"
    assert killed.rows() == {}

    for folder in (killed, whole):
        worker = start(target=_work, args=(study, folder.path, log))
        worker.start()
        worker.join(240)
        assert worker.exitcode == 0
    assert log.read_text().split() == ["0", str(saved), "0"]

    row, expected = killed.row(cell.id), whole.row(cell.id)
    assert (row["status"], row["stage"]) == ("done", "illustrated")
    varying = {name for name in row if name in MEASURED or name.startswith("latency")} | {"trial"}
    assert {name: row[name] for name in row.keys() - varying} == {
        name: expected[name] for name in expected.keys() - varying
    }
    tensors, others = load_file(killed.checkpoint(cell.id)), load_file(whole.checkpoint(cell.id))
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    with CellQueue(study, default_path(killed.path)) as queue:
        assert queue.completed() == [cell.id]
