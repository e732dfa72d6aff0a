"""The Python API: the notebook runs, and its functions agree with the command line."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from rich.console import Console

import harness
from harness import Results, Study, load_cell, run_study
from harness.errors import HarnessError
from harness.execution import session
from harness.execution.cell import run_cell
from tests.report_tables import tables, write_run
from tests.small_study import Cells, NoReports, quiet, run_folder, write_study

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is committed without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    results = [cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"]
    text = "\n".join(str(output.get("data", {}).get("text/plain", "")) for outputs in results for output in outputs)
    assert "torch.Size([2, 36, 128])" in text
    assert "Difference(delta=" in text
    assert "report/index.html" in text


def test_exported_names_exist_and_are_documented():
    assert harness.__all__ == sorted(harness.__all__)
    assert all(getattr(harness, name).__doc__ for name in harness.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'runs'"):
        harness.runs  # noqa: B018


def test_a_run_counts_its_failed_cells_and_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "ReportProcess", NoReports)
    monkeypatch.setattr(session, "build_report", lambda folder: folder.write_if_changed(folder.report, "page"))
    monkeypatch.setattr(session, "_cells", lambda: Cells(fails=("bbox_mlp",)))
    study, folder = Study.from_yaml(write_study(tmp_path)), run_folder(tmp_path)
    results = run_study(study, folder.path, console=Console(quiet=True))
    assert results.num_failed == 2
    assert results.folder == folder.path
    assert set(results.cells["arm"]) == {"pooling", "bbox_mlp", "sspe"}
    assert len(results.samples) == 2 * (results.cells["status"] == "done").sum()
    again = Cells()
    monkeypatch.setattr(session, "_cells", lambda: again)
    assert run_study(study, folder.path, console=Console(quiet=True)).num_failed == 0
    assert len(again.ran) == 2


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of synthetic tables."""
    return Results(write_run(tmp_path_factory.mktemp("api") / "run", *tables(num_images=12, num_seeds=2)))


def test_results_hold_the_tables_of_the_report(results):
    table = results.table()
    assert len(table) >= len(results.scores.variants)
    assert table["giou"].notna().all()
    assert {"giou_low", "giou_high", "difference"} <= {*table}
    assert results.report() == results.folder / "report" / "index.html"


def test_unknown_tables_and_variants_are_refused_with_near_matches(results):
    with pytest.raises(HarnessError, match="the report has no table 'mian'; did you mean main"):
        results.table("mian")
    with pytest.raises(HarnessError, match="no finished cell of 'poling'; did you mean pooling"):
        results.compare("poling", "decoder_pe")


def test_comparisons_are_those_of_the_report(results):
    itself = results.compare("pooling", "pooling")
    assert (itself.delta, itself.low, itself.high) == (0, 0, 0)
    difference, table = results.compare("decoder_pe", "pooling"), results.table()
    [row] = table[table.iloc[:, 0] == "decoder_pe"].to_dict("records")
    assert difference.delta == pytest.approx(row["difference"])
    assert (difference.low, difference.high) == pytest.approx((row["difference_low"], row["difference_high"]))


def test_a_cell_segments_a_file_an_array_and_a_pil_image_alike(cells, folder, tmp_path):
    run_cell(cells["pooling"], folder, quiet())
    cell = load_cell(folder.checkpoint(cells["pooling"].id), "cpu")
    pixels = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    expressions = ["the red circle", "The green  square"]
    found = [cell.predict(each, expressions) for each in (tmp_path / "image.png", pixels, Image.fromarray(pixels))]
    assert [one.expression for one in found[0]] == ["the red circle", "the green square"]
    assert found[0][0].mask.shape == (80, 120)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert np.array_equal(one.mask, other.mask)
            assert one.predicted_seg == other.predicted_seg
    [alone] = cell.predict(pixels, expressions[1])
    assert (alone.mask != found[0][1].mask).mean() < 0.01, "one sequence, or one expression at a time"
    assert next(cell._trained.assembly.segmenter.parameters()).device == torch.device("cpu")


def test_an_array_that_is_not_an_rgb_image_is_refused(cells, folder):
    run_cell(cells["pooling"], folder, quiet())
    cell = load_cell(folder.checkpoint(cells["pooling"].id), "cpu")
    for wrong in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(HarnessError, match=r"give \(h, w, 3\) uint8 RGB"):
            cell.predict(wrong, "the red circle")
