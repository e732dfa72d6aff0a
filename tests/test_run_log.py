"""run.log contains one JSON object per line, for every run of a study."""

import json
import logging

import pytest

from harness import run
from harness.execution import session
from harness.monitoring.run_log import run_log
from tests.small_study import Cells, NoReports, run_folder, write_study

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_cells_are_logged_with_their_outcome(tmp_path, monkeypatch):
    path, folder = write_study(tmp_path), run_folder(tmp_path)
    monkeypatch.setattr(session, "_cells", lambda: Cells(fails=("bbox_mlp",)))
    monkeypatch.setattr(session, "ReportProcess", NoReports)
    monkeypatch.setattr(session, "build_report", lambda folder: folder.write_if_changed(folder.report, "page"))
    assert run.main([str(path), "--out", str(folder.path)]) == 1
    logged = lines(folder.path / "run.log")
    assert [line["event"] for line in logged[:2]] == ["run started", "cell started"]
    assert logged[-1]["event"] == "run ended"
    finished = [line for line in logged if line["event"] == "cell finished"]
    assert len(finished) == 12
    assert {line["status"] for line in finished if line["arm"] == "bbox_mlp"} == {"failed"}
    assert run.main([str(path), "--out", str(folder.path)]) == 1
    again = lines(folder.path / "run.log")
    assert again[: len(logged)] == logged
    assert sum(line["event"] == "cell started" for line in again) == 14


def test_an_interruption_is_logged(tmp_path, monkeypatch):
    path, folder = write_study(tmp_path), run_folder(tmp_path)

    class Interrupted(Cells):
        def run(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "_cells", Interrupted)
    monkeypatch.setattr(session, "ReportProcess", NoReports)
    monkeypatch.setattr(session, "build_report", lambda _: None)
    assert run.main([str(path), "--out", str(folder.path)]) == 130
    assert lines(folder.path / "run.log")[-1]["event"] == "run interrupted"


def test_a_traceback_is_one_line_and_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    logger = logging.getLogger("harness.test")
    with run_log(tmp_path / "run.log"):
        try:
            raise ValueError("odd")
        except ValueError:
            logger.exception("failed")
    (line,) = lines(tmp_path / "run.log")
    assert (line["level"], line["event"]) == ("error", "failed")
    assert line["traceback"].endswith("ValueError: odd")
    (tmp_path / "folder").mkdir()
    with run_log(tmp_path / "folder"):
        logger.info("lost")
    assert "Traceback" not in capsys.readouterr().err
