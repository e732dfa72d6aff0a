"""Rows and samples of many cells: only what changed is read, and gathering equals a concatenation of tables."""

import json

import pandas as pd
import pytest

from harness.errors import HarnessError
from harness.results.row_files import RowFiles
from harness.results.run_folder import RunFolder
from harness.results.sample_files import write_together


def row(cell: str, status: str = "done") -> dict:
    return {"cell": cell, "status": status, "spec": "{}"}


def test_only_rows_of_changed_files_are_read_again(tmp_path):
    folder = RunFolder(tmp_path)
    for cell in ("a", "b", "c"):
        folder.write_cell(row(cell))
    before = folder.rows()
    assert list(before) == ["a", "b", "c"]
    folder.write_cell(row("b", "failed"))
    (folder.cells / "c.json").unlink()
    after = folder.rows()
    assert after["a"] is before["a"]
    assert after["b"]["status"] == "failed"
    assert "c" not in after


def test_a_file_of_the_same_size_that_was_replaced_is_read_again(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_cell(row("a", "done"))
    assert folder.rows()["a"]["status"] == "done"
    folder.write_cell(row("a", "gone"))
    assert folder.rows()["a"]["status"] == "gone"


def test_a_folder_that_does_not_exist_has_no_rows(tmp_path):
    assert RowFiles(tmp_path / "none").rows() == {}


def test_a_damaged_row_is_an_error_each_time(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"status": "done"}))
    files = RowFiles(tmp_path)
    for _ in range(2):
        with pytest.raises(HarnessError, match=r"a\.json is not the row of a cell; delete it"):
            files.rows()


def test_gathered_samples_equal_a_concatenation(tmp_path):
    """Columns may be missing, empty, or of whole numbers in one of the files."""
    tables = [
        pd.DataFrame({"cell": ["a"] * 2, "iou": [0.5, 1.0], "text": ["x", "y"], "scoring": [None, None]}),
        pd.DataFrame({"cell": ["b"] * 2, "iou": [1, 0], "text": ["x", None], "scoring": ["accuracy", None]}),
        pd.DataFrame({"cell": ["c"], "iou": [0.25], "scoring": [None], "more": [True]}, index=[7]),
    ]
    files = [tmp_path / f"{number}.parquet" for number in range(len(tables))]
    for table, file in zip(tables, files, strict=True):
        table.to_parquet(file)
    write_together(files, tmp_path / "samples.parquet")
    gathered = pd.read_parquet(tmp_path / "samples.parquet")
    pd.concat(tables, ignore_index=True).to_parquet(tmp_path / "expected.parquet")
    pd.testing.assert_frame_equal(gathered, pd.read_parquet(tmp_path / "expected.parquet"))
    assert gathered["iou"].dtype == float


def test_a_truncated_table_of_samples_names_the_files_to_delete(tmp_path):
    (tmp_path / "a.samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(HarnessError, match=r"a\.samples\.parquet is a truncated or invalid table .* and a\.json"):
        write_together([tmp_path / "a.samples.parquet"], tmp_path / "samples.parquet")
