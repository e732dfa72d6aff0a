"""Several worker processes of one run: every cell once, also when workers die."""

import errno
import os
import signal
from collections import Counter
from functools import partial

import pandas as pd
import pytest
from rich.console import Console

from harness.errors import HarnessError
from harness.execution.run_study import Team, execute
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system.shares import Share, shares
from tests.small_study import Cells, quiet, run_folder, sampled_study, write_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # in MLflow's own tables
]


def team(num_workers: int, make_cells) -> Team:
    return Team([Share(1)] * num_workers, make_cells, Console(quiet=True))


class Refused(Cells):
    """Cells that meet an error which ends the run."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def run(self, *_: object):
        """Raises it."""
        raise self.error


def test_three_workers_run_every_cell_once_and_write_the_tables_of_one(tmp_path):
    study, log = Study.from_yaml(write_study(tmp_path)), tmp_path / "started.log"
    folder, alone = run_folder(tmp_path), RunFolder(tmp_path / "alone")
    outcome = execute(study, folder, None, Cells(), quiet(), team=team(3, partial(Cells, seconds=0.3, log=log)))
    execute(study, alone, None, Cells(), quiet())
    assert (outcome.num_run, outcome.num_failed) == (12, 0)
    assert Counter(log.read_text().split()) == Counter(cell.id for cell in study.cells())
    varying = ["trial", "environment"]
    found, expected = (pd.read_parquet(each.results).drop(columns=varying) for each in (folder, alone))
    pd.testing.assert_frame_equal(found, expected)
    assert folder.leases() == []


class KilledOnce(Cells):
    """Cells of which three kill their worker when they run for the first time."""

    killing = (("pooling", 0), ("pooling", 1), ("bbox_mlp", 0))

    def run(self, cell, folder, progress):
        """Dies, or runs."""
        marker = self.log.with_name(f"killed-{cell.id}")
        if (cell.arm, cell.seed) in self.killing and not marker.exists():
            marker.touch()
            with self.log.open("a") as log:
                log.write(f"{cell.id}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(cell, folder, progress)


def test_a_killed_worker_is_replaced_and_its_cell_runs_again(tmp_path):
    study, folder, log = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path), tmp_path / "started.log"
    outcome = execute(study, folder, None, Cells(), quiet(), team=team(2, partial(KilledOnce, seconds=0.1, log=log)))
    assert (outcome.num_failed, len(outcome.cells)) == (0, 12)
    killed = [cell.id for cell in study.cells() if (cell.arm, cell.seed) in KilledOnce.killing]
    assert len(killed) == 3
    assert Counter(log.read_text().split()) == Counter([*killed, *(cell.id for cell in study.cells())])


def test_a_cell_in_which_every_worker_dies_is_recorded_as_failed(tmp_path):
    study, folder = Study.from_yaml(write_study(tmp_path), ["seeds=[0]"]), run_folder(tmp_path)
    outcome = execute(study, folder, None, Cells(), quiet(), team=team(2, Fatal))
    assert (outcome.num_failed, len(outcome.cells)) == (1, 6)
    [row] = [row for row in folder.rows().values() if row["status"] == "failed"]
    assert row["arm"] == "bbox_mlp"
    assert row["reason"].startswith("3 workers died while they ran this cell")


class Fatal(Cells):
    """Cells of which one arm kills its process."""

    def run(self, cell, folder, progress):
        """Dies, or runs."""
        if cell.arm == "bbox_mlp":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(cell, folder, progress)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (HarnessError("the data are missing"), "^the data are missing$"),
        (OSError(errno.ENOSPC, "No space left on device"), "^no space left on the disk .*; free some space, then run"),
    ],
)
def test_an_error_of_the_user_or_a_full_disk_in_a_worker_ends_the_run_with_one_sentence(tmp_path, error, sentence):
    study, folder = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path)
    with pytest.raises(HarnessError, match=sentence):
        execute(study, folder, None, Cells(), quiet(), team=team(2, partial(Refused, error)))
    assert execute(study, folder, None, Cells(), quiet()).num_run == 12


def test_sampled_points_run_every_seed_once_with_two_workers(tmp_path):
    study, folder, log = sampled_study(tmp_path), run_folder(tmp_path), tmp_path / "started.log"
    outcome = execute(study, folder, None, Cells(), quiet(), team=team(2, partial(Cells, log=log)))
    started = Counter(log.read_text().split())
    assert set(started.values()) == {1}
    assert started.keys() == {cell.id for cell in outcome.cells}
    assert len(started) == 2 * (1 + study.num_sampled)


@pytest.mark.parametrize(
    ("workers", "cells", "gpus", "memory", "devices", "expected"),
    [
        (None, 8, ["0", "1"], 64.0, 1, [Share(4, "0"), Share(4, "1")]),
        (None, 1, [], 64.0, 1, [Share(8)]),
        (None, 20, [], 64.0, 1, [Share(1)] * 8),
        (None, 20, [], 7.0, 1, [Share(4)] * 2),
        (None, 20, [], 1.0, 1, [Share(8)]),
        (3, 20, ["0", "1"], 64.0, 1, [Share(2, "0"), Share(2, "1"), Share(2, "0")]),
        (2, 20, [], 1.0, 1, [Share(4)] * 2),
        (None, 8, ["0", "1"], 64.0, 2, [Share(8, "0,1")]),
        (None, 8, ["4", "5", "6", "7", "8"], 64.0, 2, [Share(4, "4,5"), Share(4, "6,7")]),
        (None, 1, ["0", "1", "2", "3"], 64.0, 2, [Share(8, "0,1")]),
        (None, 20, [], 64.0, 2, [Share(2)] * 4),
        (None, 20, [], 7.0, 2, [Share(8)]),
        (2, 20, ["0", "1"], 64.0, 2, [Share(4, "0,1")] * 2),
    ],
)
def test_workers_share_the_machine(workers, cells, gpus, memory, devices, expected, monkeypatch):
    monkeypatch.setattr("harness.system.shares.num_cores", lambda: 8)
    assert shares(workers, cells, gpus, memory, devices) == expected


def test_a_cell_on_more_gpus_than_the_machine_has_is_refused():
    with pytest.raises(HarnessError, match=r"training.devices is 2, but this process may use only 1 GPU "):
        shares(None, 8, ["0"], 64.0, 2)
