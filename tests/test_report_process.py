"""Reports are built during a run: one at a time, at a limited rate, and without ending the run on failure."""

import time
from pathlib import Path

from harness.execution.report_process import ReportProcess
from harness.results.run_folder import RunFolder


def build(path: Path) -> None:
    """Takes a while, writes the report and counts."""
    time.sleep(0.5)
    folder = RunFolder(path)
    folder.report.parent.mkdir(exist_ok=True)
    folder.report.write_text("page")
    with (path / "built.log").open("a") as log:
        log.write("built\n")


def broken(_: Path) -> None:
    raise RuntimeError("no report")


def built(folder: RunFolder) -> int:
    return len((folder.path / "built.log").read_text().splitlines())


def test_a_report_is_started_once_and_waited_for(tmp_path):
    folder = RunFolder(tmp_path)
    with ReportProcess(build) as report:
        report.start(folder)
        report.start(folder)
    assert built(folder) == 1
    assert folder.report.exists()


def test_reports_take_a_limited_share_of_the_time(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    with ReportProcess(build) as report:
        report.start(folder)
        report._process.join()
        report.start(folder)
        report._process.join()
        assert built(folder) == 1
        later = time.time() + 3600
        monkeypatch.setattr(time, "time", lambda: later)
        report.start(folder)
    assert built(folder) == 2


def test_a_report_that_fails_ends_nothing(tmp_path, capfd):
    with ReportProcess(broken) as report:
        report.start(RunFolder(tmp_path))
    assert "no report" in capfd.readouterr().err
