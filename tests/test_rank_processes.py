"""A cell on two devices: its row is that of one device, and failing processes end the cell with a reason."""

import json
import math
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from harness import run
from harness.errors import HarnessError, StudyError
from harness.execution.cell import run_cell
from harness.results.run_folder import RunFolder
from harness.study.study import Cell, Study
from harness.system.shares import check_devices
from harness.training.loop import VERSION
from tests.small_study import STUDY, quiet, write_study

pytestmark = pytest.mark.slow

LONG = 3000
"""Steps of a training that a test does not let end; every 60th is reported."""


def on_devices(cell: Cell, devices: int, **changed: object) -> Cell:
    """The cell on so many devices, in float32 and with the other changed settings."""
    training = cell.spec.training.model_copy(update={"devices": devices, "precision": "float32", **changed})
    return replace(cell, spec=cell.spec.model_copy(update={"training": training}))


def children() -> list[multiprocessing.process.BaseProcess]:
    """The living processes that train a cell."""
    return multiprocessing.active_children()


@pytest.mark.usefixtures("one_thread")
def test_the_row_of_a_cell_on_two_devices_is_that_of_one(cells, folder, tmp_path):
    alone = run_cell(on_devices(cells["sspe"], 1), RunFolder(tmp_path / "alone"), quiet())
    steps: list[int] = []
    progress = quiet()
    progress.step = lambda point, total: steps.append((point["step"], total))
    row = run_cell(on_devices(cells["sspe"], 2), folder, progress)
    assert (alone["status"], row["status"]) == ("done", "done"), row["reason"]
    assert children() == []
    assert not folder.training_checkpoint(row["cell"]).exists()
    assert steps == [(step, 5) for step in (1, 2, 3, 3, 4)], "of four steps and a branch of one"
    curves = [json.loads(each["curve"]) for each in (alone, row)]
    for point, other in zip(*curves, strict=True):
        assert point == pytest.approx(other, abs=1e-5)
    for name in ("giou", "tokens", "trainable_parameters", "code", "weights"):
        assert row[name] == pytest.approx(alone[name], abs=1e-3), name
    assert (alone["micro_batch_images"], row["micro_batch_images"]) == (2, 1)
    assert (alone["has_halved_micro_batch"], row["has_halved_micro_batch"]) == (False, False)
    assert row["peak_memory_mib"] > 100
    assert math.isfinite(row["train_seconds"])
    assert json.loads(row["spec"])["training"]["devices"] == 2


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_fails_the_cell_with_one_sentence(cells, folder, number):
    killed: list[object] = []

    def kill(*_: object) -> None:
        if not killed:
            killed.append(sorted(children(), key=lambda process: process.pid)[number])
            killed[0].kill()

    progress = quiet()
    progress.step = kill
    row = run_cell(on_devices(cells["pooling"], 2, steps=LONG), folder, progress)
    assert (row["status"], row["failed_stage"]) == ("failed", "trained")
    assert row["reason"].startswith(f"process {number + 1} of the 2 that train this cell was ended by SIGKILL, perhaps")
    assert children() == []


def test_an_exception_in_a_process_is_the_reason_of_the_cell(cells, folder):
    cell = on_devices(cells["pooling"], 2)
    folder.cells.mkdir(parents=True)
    torch.save({"version": VERSION, "num_run": 1, "branch": None, "step": 1}, folder.training_checkpoint(cell.id))
    row = run_cell(cell, folder, quiet())
    assert row["status"] == "failed"
    assert row["reason"].rstrip().endswith("KeyError: 'seconds'")
    assert children() == []


def test_errors_of_the_user_are_those_of_one_device(cells, folder, tmp_path):
    skipped = run_cell(on_devices(cells["finer"], 2), folder, quiet())
    assert (skipped["status"], skipped["reason"]) == (
        "skipped",
        run_cell(on_devices(cells["finer"], 1), folder, quiet())["reason"],
    )
    for path in (tmp_path / "encoder").iterdir():
        path.unlink()
    row = run_cell(on_devices(cells["pooling"], 2), folder, quiet())
    assert row["status"] == "failed"
    assert "encoder" in row["reason"]
    assert "Traceback" not in row["reason"]


def test_an_interruption_ends_the_processes(cells, folder):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    progress = quiet()
    progress.step = interrupt
    with pytest.raises(KeyboardInterrupt):
        run_cell(on_devices(cells["pooling"], 2, steps=LONG), folder, progress)
    assert children() == []


PARENT = """
import multiprocessing, time
from harness.execution.rank_processes import _end_with_parent

def train():
    _end_with_parent()
    print("started", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=train).start()
    time.sleep(600)
"""


def test_a_process_ends_when_the_one_that_started_it_is_killed(tmp_path):
    path = tmp_path / "parent.py"
    path.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"started\n"
    parent.kill()
    assert parent.stdout.read() == b"", "the end of the pipe, which the child holds open while it lives"
    parent.wait()
    parent.stdout.close()


def test_more_devices_than_gpus_are_refused_in_one_sentence():
    check_devices(2, ["0", "1"])
    check_devices(2, [])
    with pytest.raises(HarnessError, match=r"^training.devices is 4, but this process may use only 2 GPUs \(CUDA dev"):
        check_devices(4, ["2", "3"])


def test_the_devices_of_a_study_are_the_largest_number_of_its_cells(tmp_path):
    study = STUDY.replace("tokens: 4}}", "tokens: 4}, training: {devices: 2}}")
    assert Study.from_yaml(write_study(tmp_path, STUDY)).devices == 1
    assert Study.from_yaml(write_study(tmp_path, study)).devices == 2
    searched = study.replace("projector.position.queries: [1, 2]", "training.devices: [1, 4]")
    assert Study.from_yaml(write_study(tmp_path, searched)).devices == 4


def test_a_run_on_too_few_gpus_is_refused_before_the_preflight(cells, tmp_path, monkeypatch, capsys):
    assert cells
    monkeypatch.setattr("harness.execution.session.visible_gpus", lambda: ["0"])
    path = str(tmp_path / "study.yaml")
    for arguments in ([], ["--check"]):
        assert run.main([path, "--set", "training.devices=2", "--out", str(tmp_path / "run"), *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(
            "training.devices is 2, but this process may use only 1 GPU (CUDA devices 0); use"
        )
        assert captured.err.count("\n") == 1
        assert captured.out == ""


def test_more_devices_than_images_of_a_step_are_refused(tmp_path):
    study = STUDY.replace("tokens: 4}}", "tokens: 4}, training: {devices: 4, batch_images: 3}}")
    with pytest.raises(StudyError, match=r"arms.pooling.training.devices: found 4, but a step has only 3 images; set"):
        Study.from_yaml(write_study(tmp_path, study))
