"""Rows, tables and the run folder."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from harness.data.scenes import FAMILIES as SCENE_FAMILIES
from harness.errors import HarnessError
from harness.results.columns import COLUMNS, SAMPLE_COLUMNS
from harness.results.metrics import FAMILIES, aggregate_seeds
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system.files import replace_file
from tests.small_study import row_of, samples_of, write_study


def test_every_family_of_the_scenes_has_its_columns():
    assert set(SCENE_FAMILIES) <= set(FAMILIES)


@pytest.fixture
def cells(tmp_path):
    return Study.from_yaml(write_study(tmp_path)).cells()


def test_seeds_are_aggregated_by_their_mean():
    cells = pd.DataFrame({"giou": [0.4, 0.6], "latency_ms": [90.0, 80.0], "latency_llm_ms": [10.0, 20.0]})
    assert aggregate_seeds(cells) == pytest.approx({"giou": 0.5, "latency_ms": 85.0, "latency_llm_ms": 15.0})
    assert math.isnan(aggregate_seeds(cells.assign(latency_ms=None))["latency_ms"])


def test_gathered_tables_equal_what_was_written(tmp_path, cells):
    folder = RunFolder(tmp_path / "run")
    for cell in reversed(cells):
        folder.write_cell({**row_of(cell), "ciou": np.float32(0.25), "fp_rate": float("nan")}, samples_of(cell))
    folder.gather([cell.id for cell in cells])
    results, samples = pd.read_parquet(folder.results), pd.read_parquet(folder.samples)
    assert results["cell"].tolist() == [cell.id for cell in cells]
    assert tuple(results.columns) == COLUMNS
    assert set(results["ciou"]) == {0.25}
    assert folder.rows()[cells[0].id]["fp_rate"] is None, "JSON has no NaN"
    assert results["fn_rate"].dtype == np.float64
    assert results["fn_rate"].isna().all()
    assert tuple(samples.columns) == SAMPLE_COLUMNS
    assert samples["cell"].tolist() == [cell.id for cell in cells for _ in range(2)]


def test_failed_and_skipped_cells_have_rows_and_only_failed_ones_run_again(tmp_path, cells):
    folder = RunFolder(tmp_path / "run")
    for cell, status in zip(cells, ("done", "failed", "skipped"), strict=False):
        folder.write_cell(row_of(cell, status, "why"), samples_of(cell) if status == "done" else None)
    results = folder.gather([cell.id for cell in cells])
    assert results["status"].tolist() == ["done", "failed", "skipped"]
    assert set(folder.finished()) == {cells[0].id, cells[2].id}


def test_tables_without_any_cell_can_be_read(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.gather([])
    assert len(pd.read_parquet(folder.results)) == len(pd.read_parquet(folder.samples)) == 0


def test_rows_of_other_cells_are_not_gathered(tmp_path, cells):
    folder = RunFolder(tmp_path / "run")
    for cell in cells:
        folder.write_cell(row_of(cell), samples_of(cell))
    assert folder.gather([cells[3].id])["cell"].tolist() == [cells[3].id]
    assert len(folder.rows()) == len(cells)


def test_a_failed_write_keeps_the_file(tmp_path):
    path = tmp_path / "table"
    replace_file(path, lambda part: part.write_text("whole"))

    def half(part):
        part.write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, half)
    assert path.read_text() == "whole"
    assert [found.name for found in tmp_path.iterdir()] == ["table"]


def test_a_folder_is_locked_by_one_run_at_a_time(tmp_path):
    folder = RunFolder(tmp_path / "run")
    path = tmp_path / "run" / ".lock"
    lock_command = (
        f"import filelock, time; lock = filelock.FileLock({str(path)!r}); lock.acquire(); print(1, flush=True); "
    )
    with folder.lock():
        pass
    with subprocess.Popen([sys.executable, "-c", lock_command + "time.sleep(60)"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(HarnessError, match="another run is writing"), folder.lock():
            pass
        other.kill()
    with folder.lock():
        pass


def test_a_report_is_stale_when_its_tables_are_newer(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.gather([])
    folder.write_if_changed(folder.study, "a")
    assert not folder.is_reported
    folder.report.parent.mkdir()
    folder.report.write_text("page")
    assert folder.is_reported
    folder.write_if_changed(folder.study, "a")
    assert folder.is_reported, "a file with equal text is not written"
    folder.write_if_changed(folder.study, "b")
    assert not folder.is_reported
