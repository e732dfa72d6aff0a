"""A study around cells that take no time: every cell once, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from harness.execution.run_study import execute
from harness.queue.cell_queue import CellQueue
from harness.queue.storage import default_path
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system.lease import EXPIRES_S, Owner, Status, Watch
from harness.worker.limits import DEFAULT_LIMITS
from harness.worker.worker import Worker, return_dead_cells
from tests.small_study import Cells, quiet, run_folder, sampled_study, write_study

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables


def test_every_cell_runs_once_and_the_tables_hold_them_in_order(tmp_path):
    study, folder, cells = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path), Cells()
    outcome = execute(study, folder, None, cells, quiet())
    planned = [cell.id for cell in study.cells()]
    assert Counter(cells.ran) == Counter(planned)
    assert (outcome.num_run, outcome.num_failed, outcome.num_others) == (12, 0, 0)
    results = pd.read_parquet(folder.results)
    assert results["cell"].tolist() == planned
    assert results["command"].notna().all()
    assert results["trial"].nunique() == 12
    for path in (folder.study, folder.environment, folder.importance, folder.path / "optuna.journal"):
        assert path.exists()


def test_every_arm_has_its_first_seed_before_any_has_its_second(tmp_path):
    study, cells = Study.from_yaml(write_study(tmp_path)), Cells()
    execute(study, run_folder(tmp_path), None, cells, quiet())
    seeds = {cell.id: cell.seed for cell in study.cells()}
    assert [seeds[cell] for cell in cells.ran] == 6 * [0] + 6 * [1]


def test_a_second_run_runs_nothing_and_leaves_the_tables(tmp_path):
    study, folder = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path)
    execute(study, folder, None, Cells(), quiet())
    folder.report.parent.mkdir()
    folder.report.write_text("page")
    before = folder.results.stat().st_mtime_ns
    cells = Cells()
    outcome = execute(study, folder, None, cells, quiet())
    assert cells.ran == []
    assert outcome.num_run == 0
    assert folder.results.stat().st_mtime_ns == before
    assert folder.is_reported


def test_failed_cells_run_again_and_skipped_ones_do_not(tmp_path):
    study, folder = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path)
    outcome = execute(study, folder, None, Cells(fails=("bbox_mlp",), skips=("pooling",)), quiet())
    assert outcome.num_failed == 2
    results = pd.read_parquet(folder.results)
    assert Counter(results["status"]) == {"done": 8, "failed": 2, "skipped": 2}
    cells = Cells()
    assert execute(study, folder, None, cells, quiet()).num_failed == 0
    assert set(cells.ran) == {cell.id for cell in study.cells() if cell.arm == "bbox_mlp"}


def test_rows_survive_the_loss_of_everything_made_from_them(tmp_path):
    study, folder = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path)
    execute(study, folder, None, Cells(), quiet())
    for path in (folder.results, folder.samples, folder.importance, folder.path / "optuna.journal"):
        path.unlink()
    cells = Cells()
    execute(study, folder, None, cells, quiet())
    assert cells.ran == []
    assert len(pd.read_parquet(folder.results)) == 12
    assert folder.importance.exists()


def test_cells_of_another_version_are_kept_outside_the_tables(tmp_path):
    folder = run_folder(tmp_path)
    execute(Study.from_yaml(write_study(tmp_path)), folder, None, Cells(), quiet())
    shorter = Study.from_yaml(write_study(tmp_path), ["seeds=[1]", "arms.bbox_mlp.training.steps=3"])
    cells = Cells()
    outcome = execute(shorter, folder, None, cells, quiet())
    assert len(cells.ran) == 1
    assert outcome.num_others == 7
    assert pd.read_parquet(folder.results)["cell"].tolist() == [cell.id for cell in shorter.cells()]


def test_sampled_cells_are_in_the_tables_and_run_once(tmp_path):
    study, folder, cells = sampled_study(tmp_path), run_folder(tmp_path), Cells()
    outcome = execute(study, folder, None, cells, quiet())
    assert len(outcome.cells) == outcome.num_run == len(set(cells.ran)) == 2 * (1 + 4)
    assert execute(study, folder, None, Cells(), quiet()).num_run == 0
    assert set(pd.read_parquet(folder.results)["cell"]) == set(cells.ran)


def test_a_cell_of_a_machine_that_died_is_run_by_a_worker_that_has_not_seen_its_lease_before(tmp_path):
    study, folder, cells = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path), Cells()
    now, dead = 0.0, Owner("elsewhere", 1, 1, "elsewhere")
    watch = Watch(lambda: now)
    with CellQueue(study, default_path(folder.path)) as queue:
        queue.fill({})
        claim = queue.claim()
        queue.name(claim)
        content = {"owner": asdict(dead), "status": asdict(Status(claim.cell.id, "pooling seed 0"))}
        folder.cells.mkdir()
        folder.lease(claim.cell.id).write_text(json.dumps(content))
        return_dead_cells(queue, folder, watch, retries=2)
        now = EXPIRES_S + 1
        return_dead_cells(queue, folder, watch, retries=2)
        Worker(study, folder, cells, queue, quiet(), DEFAULT_LIMITS).run()
        assert Counter(queue.completed()) == Counter(cells.ran) == Counter(cell.id for cell in study.cells())


def test_a_cell_that_was_enqueued_again_while_it_ended_has_one_result(tmp_path):
    study, folder, cells = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path), Cells()
    with CellQueue(study, default_path(folder.path)) as queue:
        queue.fill({})
        Worker(study, folder, cells, queue, quiet(), DEFAULT_LIMITS).run()
        queue.fill({})
        Worker(study, folder, cells, queue, quiet(), DEFAULT_LIMITS).run()
        assert Counter(queue.completed()) == Counter(cells.ran) == Counter(cell.id for cell in study.cells())


@pytest.mark.slow
def test_a_run_killed_in_the_middle_finishes_with_every_cell_once(tmp_path):
    study, out = write_study(tmp_path), run_folder(tmp_path).path
    command = [sys.executable, "-m", "tests.small_study", str(study), str(out), "0.3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True) as run:
        deadline = time.monotonic() + 240
        while len(list((out / "cells").glob("*.json"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(run.pid, signal.SIGKILL)
    folder = RunFolder(out)
    kept = folder.finished()
    assert 4 <= len(kept) < 12
    tabled = pd.read_parquet(folder.results)["cell"]
    assert 0 < len(tabled) <= len(kept), "tables follow after every cell"
    cells = Cells()
    execute(Study.from_yaml(study), folder, None, cells, quiet())
    started = (out / "started.log").read_text().split()
    assert Counter([*cells.ran, *kept]) == Counter(cell.id for cell in Study.from_yaml(study).cells())
    assert len(started) - len(kept) <= 1, "at most the cell that was killed is lost"
    assert sorted(pd.read_parquet(folder.results)["cell"]) == sorted(cell.id for cell in Study.from_yaml(study).cells())
    samples = pd.read_parquet(folder.samples)
    assert samples.groupby("cell").size().eq(2).all()
    trials = CellQueue(Study.from_yaml(study), default_path(out)).optuna.get_trials()
    states = Counter(trial.state.name for trial in trials)
    assert states["COMPLETE"] == 12
    assert set(states) <= {"COMPLETE", "FAIL"}
