"""MLflow shows each cell once, with what its row says."""

import json
import logging

import pytest
from mlflow import MlflowClient

from harness.records import RunFolder
from harness.study import load
from harness.tracking import Tracker, tracking_uri
from tests.small_study import row_of, run_folder, score, write_study

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables


@pytest.fixture
def cells(tmp_path):
    return load(write_study(tmp_path)).cells()[:2]


def runs(folder: RunFolder, kind: str):
    client = MlflowClient(tracking_uri(folder.path))
    [experiment] = [found for found in client.search_experiments() if found.name == "small"]
    return client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")


def test_a_cell_is_tracked_once_with_its_settings_scores_and_curve(tmp_path, cells):
    folder = run_folder(tmp_path)
    folder.gather([])
    rows = [row_of(cell) for cell in cells]
    tracker = Tracker("small", folder)
    tracker.record(rows[0])
    tracker.sync(rows, [folder.results])
    before = {run.info.run_id for run in runs(folder, "cell")}
    Tracker("small", folder).sync(rows)
    tracked = {run.data.tags["cell"]: run for run in runs(folder, "cell")}
    [parent] = runs(folder, "study")
    assert set(tracked) == {cell.id for cell in cells}
    assert {run.info.run_id for run in tracked.values()} == before
    assert parent.info.status == "FINISHED"
    run = tracked[cells[0].id]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["arm"] == "pooling"
    assert run.data.params["training.steps"] == "10"
    assert run.data.metrics["giou"] == pytest.approx(score(cells[0]))
    assert run.info.end_time - run.info.start_time == 5000
    client = MlflowClient(tracking_uri(folder.path))
    history = client.get_metric_history(run.info.run_id, "training_loss")
    assert [(point.step, point.value) for point in history] == [(5, 2.0), (10, 1.0)]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["results.parquet"]
    assert (folder.path / "mlartifacts").is_dir()


def test_a_cell_that_ran_again_replaces_its_run(tmp_path, cells):
    folder = run_folder(tmp_path)
    Tracker("small", folder).sync([row_of(cells[0], "failed", "why")])
    Tracker("small", folder).sync([{**row_of(cells[0]), "started_at": "2026-01-02T00:00:00+00:00"}])
    [run] = runs(folder, "cell")
    assert run.data.tags["status"] == "done"


def test_a_run_left_half_logged_is_made_again(tmp_path, cells):
    folder = run_folder(tmp_path)
    Tracker("small", folder).sync([row_of(cells[0])])
    [run] = runs(folder, "cell")
    MlflowClient(tracking_uri(folder.path)).delete_tag(run.info.run_id, "complete")
    Tracker("small", folder).sync([row_of(cells[0])])
    [again] = runs(folder, "cell")
    assert again.info.run_id != run.info.run_id


def test_many_settings_long_values_and_long_curves_fit(tmp_path, cells):
    folder = run_folder(tmp_path)
    spec = {"llm": {f"setting_{i}": i for i in range(150)} | {"long": "x" * 9000}}
    curve = [{"step": step, "loss": 1.0, "bce": float("nan")} for step in range(1500)]
    Tracker("small", folder).sync([{**row_of(cells[0]), "spec": json.dumps(spec), "curve": json.dumps(curve)}])
    [run] = runs(folder, "cell")
    assert len(run.data.params) == 151
    assert len(MlflowClient(tracking_uri(folder.path)).get_metric_history(run.info.run_id, "training_loss")) == 1500
    assert "training_bce" not in run.data.metrics


def test_mlflow_is_told_to_send_nothing_and_say_little(tmp_path, cells, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    folder = run_folder(tmp_path)
    Tracker("small", folder).record(row_of(cells[0]))
    import os

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert logging.getLogger("mlflow").level == logging.WARNING
