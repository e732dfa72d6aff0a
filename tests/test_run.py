"""The command line: its output and its exit codes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness import run
from harness.execution import session
from harness.execution.run_study import execute
from harness.monitoring.tracker import Tracker
from harness.planning.plan import History, make_plan
from harness.results.metrics import METRICS
from harness.study.study import Study
from harness.system.environment import describe_environment
from tests.small_study import Cells, NoReports, quiet, run_folder, write_study

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables


@pytest.mark.slow
def test_problems_go_to_stderr_without_a_traceback_and_exit_with_2(tmp_path):
    path = write_study(tmp_path)
    path.write_text(path.read_text().replace("baseline: pooling", "baseline: poling").replace("seeds:", "seds:"))
    command = [sys.executable, "-m", "harness.run", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert lines == [
        f"{path}:1: seeds: is missing (every arm runs every seed)",
        f"{path}:13: seds: unknown key; did you mean seeds?",
        f"{path}:15: baseline: there is no arm 'poling'; did you mean pooling?",
    ]


def test_a_missing_study_is_reported(tmp_path, capsys):
    assert run.main([str(tmp_path / "none.yaml")]) == 2
    assert run.main([]) == 2
    assert "cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize("kind", run.LIST_KINDS)
def test_lists_contain_the_registered_names(kind, capsys):
    assert run.main(["--list", kind]) == 0
    printed = capsys.readouterr().out
    known = {
        "projectors": "svp",
        "superpixels": "felzenszwalb",
        "encoders": "dinov2-small",
        "llms": "tiny",
        "mask_decoders": "sam-scenes",
        "checkpoints": "runs/<study>/cells",
        "datasets": "scenes",
        "metrics": "giou",
    }
    assert known[kind] in printed


def test_the_time_of_a_plan_is_unknown_until_a_comparable_cell_has_finished(tmp_path, capsys):
    path = write_study(tmp_path)
    out = tmp_path / "runs" / "small"
    assert run.main([str(path), "--plan", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "12 of 12 cells to run; time unknown" in printed
    assert not out.exists(), "a plan leaves nothing behind"


def test_the_plan_shows_finished_cells_and_estimates_the_others(tmp_path):
    folder = run_folder(tmp_path)
    study = Study.from_yaml(write_study(tmp_path))
    execute(study, folder, None, _Here(), quiet())
    longer = Study.from_yaml(write_study(tmp_path), ["arms.sspe.training.steps=40"])
    plan = make_plan(longer, folder)
    assert [planned.status for planned in plan[:4]] == ["done"] * 4
    assert [planned.seconds for planned in plan] == [0.0] * 4 + [20.0] * 8, "5 s for 10 steps are 20 s for 40"
    assert History([]).seconds(longer.cells()[0]) is None


class _Here(Cells):
    """Cells that ran on this machine."""

    def run(self, cell, folder, progress):
        import json

        row = {**super().run(cell, folder, progress), "environment": json.dumps(describe_environment())}
        folder.write_cell(row)
        return row


def test_a_finished_study_runs_nothing_and_shows_its_results(tmp_path, capsys, monkeypatch):
    path, folder = write_study(tmp_path), run_folder(tmp_path)
    execute(Study.from_yaml(path), folder, None, Cells(), quiet())
    folder.report.parent.mkdir()
    folder.report.write_text("page")
    monkeypatch.setattr(session, "_cells", lambda: Cells(fails=("pooling", "bbox_mlp", "sspe")))
    assert run.main([str(path), "--out", str(folder.path)]) == 0
    printed = capsys.readouterr().out
    assert "nothing to run: all 12 cells have finished" in printed
    assert f"report: {folder.report}" in printed
    assert METRICS["giou"].label in printed
    assert folder.report.read_text() == "page", "a report that is up to date is left alone"


def test_failed_cells_set_the_exit_code(tmp_path, capsys, monkeypatch):
    path, folder = write_study(tmp_path), run_folder(tmp_path)
    monkeypatch.setattr(session, "_cells", lambda: Cells(fails=("bbox_mlp",)))
    monkeypatch.setattr(session, "ReportProcess", NoReports)
    monkeypatch.setattr(session, "build_report", lambda folder: folder.write_if_changed(folder.report, "page"))
    assert run.main([str(path), "--out", str(folder.path)]) == 1
    printed = capsys.readouterr().out
    assert "2 cells failed" in printed
    assert "[1/12] pooling seed 0: started" in printed
    assert "bbox_mlp seed 1: failed after 0 s: as the test asks" in printed


def test_a_report_without_results_says_what_to_do(tmp_path, capsys):
    assert run.main([str(write_study(tmp_path)), "--report-only", "--out", str(tmp_path / "run")]) == 2
    assert "run the study" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_with_nothing_to_run_imports_neither_mlflow_nor_a_model(tmp_path):
    path, folder = write_study(tmp_path), run_folder(tmp_path)
    tracker = Tracker(Study.from_yaml(path), folder)
    execute(Study.from_yaml(path), folder, None, Cells(), quiet(), tracker)
    folder.report.parent.mkdir()
    folder.report.write_text("page")
    tracker.sync(list(folder.rows().values()), folder.outputs())
    code = (
        "import sys; from harness.run import main; code = main(sys.argv[1:]); "
        "heavy = {'mlflow', 'harness.execution.cell', 'harness.assembly.assembly', 'matplotlib'}; "
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(path), "--out", str(folder.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_environment_has_hardware_and_versions():
    environment = describe_environment()
    assert environment["cores"] >= 1
    assert environment["torch"].startswith("2.")
    assert environment["cpu"]
    if shutil.which("git") and (ROOT / ".git").exists():
        assert len(environment["git_commit"]) == 40
        assert environment["git_dirty"] in {True, False}


def test_missing_weights_end_the_run_before_it_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(session, "_cells", lambda: Cells())
    path, out = write_study(tmp_path), tmp_path / "run"
    misspelt = [str(path), "--set", "arms.sspe.vision_encoder.name=dinov2-smal", "--out", str(out)]
    for arguments in ([*misspelt, "--plan"], misspelt):
        assert run.main(arguments) == 2
        printed = capsys.readouterr()
        assert "no weights 'dinov2-smal': not a known name (did you mean dinov2-small?)" in printed.err
        assert "started" not in printed.out


def test_an_invalid_row_is_one_message_and_does_not_affect_other_plans(tmp_path, capsys):
    path, folder = write_study(tmp_path), run_folder(tmp_path)
    execute(Study.from_yaml(path), folder, None, Cells(), quiet())
    spoilt = sorted(folder.cells.glob("*.json"))[0]
    for content in (b"{", b"{}", b"[]", b"\xff\xfe"):
        spoilt.write_bytes(content)
        assert run.main([str(path), "--out", str(folder.path)]) == 2
        assert f"{spoilt} is not the row of a cell; delete it" in capsys.readouterr().err.replace("\n", "")
    assert run.main([str(path), "--plan", "--out", str(folder.path.with_name("other"))]) == 0


def test_a_report_is_built_from_the_rows_or_else_from_the_tables(tmp_path, monkeypatch):
    path, folder = write_study(tmp_path), run_folder(tmp_path)
    execute(Study.from_yaml(path), folder, None, Cells(), quiet())
    monkeypatch.setattr(session, "build_report", lambda _: None)
    (cell, *_) = folder.tabled()
    folder.write_cell({**folder.row(cell), "giou": 0.75})
    command = [str(path), "--report-only", "--out", str(folder.path)]
    assert run.main(command) == 0
    assert pd.read_parquet(folder.results).set_index("cell").loc[cell, "giou"] == 0.75
    (folder.cells / f"{cell}.json").unlink()
    assert run.main(command) == 0
    assert len(folder.tabled()) == 12
