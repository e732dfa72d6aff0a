"""Results record their code: cells with changed code run again, others are kept, mixtures are reported."""

import json

import pandas as pd
import pytest

from harness import run
from harness.errors import StudyError
from harness.execution import session
from harness.execution.run_study import execute
from harness.planning import provenance
from harness.planning.provenance import outdated, set_aside_outdated
from harness.study import study as study_module
from harness.study.cell_code import component_code, numeric_code
from harness.study.study import Study
from tests.small_study import Cells, NoReports, quiet, run_folder, sampled_study, write_study

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables


class CodedCells(Cells):
    """Cells whose rows record the code of the harness."""

    def run(self, cell, folder, progress):
        row = {**super().run(cell, folder, progress), "code": numeric_code(cell.spec)}
        folder.write_cell(row)
        return row


@pytest.fixture
def edited(monkeypatch):
    """Simulates an edit of the projector `pooling`."""
    return lambda: monkeypatch.setattr(
        study_module,
        "component_code",
        lambda spec: "edited" if spec.projector["name"] == "pooling" else component_code(spec),
    )


def test_an_edited_projector_runs_its_arms_again_and_no_others(tmp_path, edited):
    path, folder, cells = write_study(tmp_path), run_folder(tmp_path), CodedCells()
    before = {cell.id for cell in Study.from_yaml(path).cells() if cell.arm == "pooling"}
    execute(Study.from_yaml(path), folder, None, cells, quiet())
    edited()
    again = CodedCells()
    outcome = execute(Study.from_yaml(path), folder, None, again, quiet())
    assert set(again.ran) == {cell.id for cell in Study.from_yaml(path).cells() if cell.arm == "pooling"}
    assert (outcome.num_run, outcome.num_superseded, outcome.num_others) == (2, 2, 0)
    assert before <= folder.rows().keys(), "old rows are kept"
    assert not before & set(pd.read_parquet(folder.results)["cell"])


def test_sampled_points_with_changed_code_run_again_unchanged(tmp_path, monkeypatch):
    study, folder = sampled_study(tmp_path), run_folder(tmp_path)
    execute(study, folder, None, CodedCells(), quiet())
    sampled = sorted(row["point"] for row in folder.rows().values())
    monkeypatch.setattr(study_module, "component_code", lambda _: "edited")
    again = CodedCells()
    outcome = execute(sampled_study(tmp_path), folder, None, again, quiet())
    assert len(again.ran) == outcome.num_superseded == len(sampled)
    assert sorted(pd.read_parquet(folder.results)["point"]) == sampled


def test_outdated_rows_are_reported_and_run_again_on_demand(tmp_path, monkeypatch, capsys):
    path, folder = write_study(tmp_path), run_folder(tmp_path)
    execute(Study.from_yaml(path), folder, None, CodedCells(), quiet())
    plan = [str(path), "--plan", "--out", str(folder.path)]
    assert run.main(plan) == 0
    assert "another version" not in capsys.readouterr().out
    monkeypatch.setattr(provenance, "numeric_code", lambda _: "other-code")
    assert run.main(plan) == 0
    assert "12 finished cells (pooling, bbox_mlp, sspe) were computed by another version" in capsys.readouterr().out
    cells = CodedCells()
    monkeypatch.setattr(session, "_cells", lambda: cells)
    monkeypatch.setattr(session, "ReportProcess", NoReports)
    monkeypatch.setattr(session, "build_report", lambda folder: folder.write_if_changed(folder.report, "page"))
    assert run.main([str(path), "--out", str(folder.path), "--rerun", "bbox_mlp"]) == 0
    assert "2 cells will run again; their old rows are kept" in capsys.readouterr().out.replace("\n", " ")
    assert set(cells.ran) == {cell.id for cell in Study.from_yaml(path).cells() if cell.arm == "bbox_mlp"}
    kept = [json.loads(file.read_text()) for file in (folder.cells / "superseded").glob("*.json")]
    assert {row["arm"] for row in kept} == {"bbox_mlp"}
    assert len(pd.read_parquet(folder.results)) == 12


def test_an_unknown_arm_is_reported(tmp_path):
    study = Study.from_yaml(write_study(tmp_path))
    with pytest.raises(StudyError, match=r"--rerun pooled: there is no such arm; did you mean pooling\?"):
        set_aside_outdated(study, run_folder(tmp_path), "pooled")


def test_rows_without_a_code_fingerprint_are_outdated(tmp_path):
    study, folder = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path)
    execute(study, folder, None, Cells(), quiet())
    assert len(outdated(study.cells(), folder)) == 12


def test_the_resolved_precision_is_part_of_a_cell(tmp_path, monkeypatch):
    ids = {}
    for is_native in (True, False):
        monkeypatch.setattr("harness.system.precision.has_native_bfloat16", lambda _, is_native=is_native: is_native)
        cells = Study.from_yaml(write_study(tmp_path)).cells()
        assert {cell.spec.training.precision for cell in cells} == {"bfloat16" if is_native else "float32"}
        ids[is_native] = {cell.id for cell in cells}
    assert not ids[True] & ids[False]
