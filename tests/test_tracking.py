"""MLflow has one run per cell with the values of its row, in the store that the user selects."""

import json
import logging
import os
import sys

import pytest
from mlflow import MlflowClient

from harness.errors import HarnessError
from harness.execution.run_study import execute
from harness.monitoring.study_runs import LOSS
from harness.monitoring.tracker import Tracker, tracking_uri
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system.environment import command
from harness.system.uris import choose_tracking_uri, redact, tracking_uri_problem
from tests.small_study import CURVE, PRESET, STUDY, Cells, quiet, row_of, run_folder, score, write_study
from tests.test_study import problems

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # in MLflow's own tables
SECRETS = "http://ann:se/cr@t@127.0.0.1:1/mlflow?token=tok"


@pytest.fixture
def study(tmp_path):
    return Study.from_yaml(write_study(tmp_path))


@pytest.fixture
def cells(study):
    return study.cells()[:2]


def runs(folder: RunFolder, kind: str, uri: str | None = None):
    client = MlflowClient(uri or tracking_uri(folder.path))
    [experiment] = [found for found in client.search_experiments() if found.name == "small"]
    return client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")


def curve_of(run, uri: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, LOSS))


def test_a_cell_is_tracked_once_with_its_settings_scores_and_curve(tmp_path, study, cells):
    folder = run_folder(tmp_path)
    folder.gather([])
    rows = [row_of(cell) for cell in cells]
    folder.cells.mkdir()
    folder.checkpoint(cells[0].id).write_bytes(b"weights")
    tracker = Tracker(study, folder)
    tracker.record(rows[0])
    tracker.sync(rows, [folder.results])
    before = {run.info.run_id for run in runs(folder, "cell")}
    Tracker(study, folder).sync([*rows, row_of(study.cells()[2])])
    tracked = {run.data.tags["cell"]: run for run in runs(folder, "cell")}
    [parent] = runs(folder, "study")
    assert set(tracked) == {cell.id for cell in study.cells()[:3]}
    assert before < {run.info.run_id for run in tracked.values()}
    assert parent.info.status == "FINISHED"
    run = tracked[cells[0].id]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["arm"] == "pooling"
    assert run.data.params["training.steps"] == "10"
    assert run.data.metrics["giou"] == pytest.approx(score(cells[0]))
    assert run.info.end_time - run.info.start_time == 5000
    uri = tracking_uri(folder.path)
    assert curve_of(run, uri) == [(5, 2.0), (10, 1.0)]
    client = MlflowClient(uri)
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["results.parquet"]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == [f"{cells[0].id}.safetensors"]


def test_runs_have_the_tags_that_mlflows_lists_show(tmp_path, study):
    folder = run_folder(tmp_path)
    Tracker(study, folder).sync([row_of(cell) for cell in study.cells()])
    [parent] = runs(folder, "study")
    run = next(run for run in runs(folder, "cell") if run.info.run_name == "sspe (blocks=3, queries=2) seed 1")
    for shown in (parent, run):
        assert shown.data.tags["mlflow.source.name"] == str(tmp_path / "small.yaml")
        assert shown.data.tags["mlflow.user"]
        assert [found.dataset.name for found in shown.inputs.dataset_inputs] == ["scenes"]
    assert parent.data.metrics["tokens/pooling"] == 11.0
    assert parent.data.metrics["giou/sspe"] == pytest.approx(0.05405), "the best point, its mean over seeds"
    assert "| sspe (blocks=3, queries=2) | 2 | 0.054 | 8.0 |" in parent.data.tags["mlflow.note.content"]
    experiment = MlflowClient(tracking_uri(folder.path)).get_experiment_by_name("small")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.tags["mlflow.note.content"] == "Which one is best?"
    view = json.loads(experiment.tags["mlflow.sharedViewState.cells"])
    assert view["orderByKey"] == "metrics.`giou`"


def test_a_cell_that_ran_again_replaces_its_run(tmp_path, study, cells):
    folder = run_folder(tmp_path)
    Tracker(study, folder).sync([row_of(cells[0], "failed", "why")])
    [run] = runs(folder, "cell")
    assert run.info.status == "FAILED"
    assert "Failed: why" in run.data.tags["mlflow.note.content"]
    Tracker(study, folder).sync([{**row_of(cells[0]), "started_at": "2026-01-02T00:00:00+00:00"}])
    [run] = runs(folder, "cell")
    assert run.data.tags["status"] == "done"
    assert run.info.status == "FINISHED"


def test_a_cell_is_shown_while_it_trains(tmp_path, study, cells):
    folder = run_folder(tmp_path)
    tracker = Tracker(study, folder)
    tracker.start(cells[0])
    tracker.log_point(cells[0].id, CURVE[0])
    [run], [parent] = runs(folder, "cell"), runs(folder, "study")
    assert (run.info.status, parent.info.status) == ("RUNNING", "RUNNING")
    assert run.data.tags["status"] == "running"
    assert run.data.params["training.steps"] == "10"
    assert curve_of(run, tracking_uri(folder.path)) == [(5, 2.0)]
    tracker.record(row_of(cells[0]))
    [again] = runs(folder, "cell")
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert curve_of(run, tracking_uri(folder.path)) == [(5, 2.0), (10, 1.0)]


def test_a_resumed_training_continues_its_run_without_duplicate_points(tmp_path, study, cells):
    folder = run_folder(tmp_path)
    killed = Tracker(study, folder)
    killed.start(cells[0])
    killed.log_point(cells[0].id, CURVE[0])
    [run] = runs(folder, "cell")
    resumed = Tracker(study, folder)
    resumed.start(cells[0])
    for point in CURVE:
        resumed.log_point(cells[0].id, point)
    resumed.record(row_of(cells[0]))
    [again] = runs(folder, "cell")
    assert again.info.run_id == run.info.run_id
    assert curve_of(again, tracking_uri(folder.path)) == [(5, 2.0), (10, 1.0)]


def test_a_run_whose_points_differ_from_the_row_is_replaced(tmp_path, study, cells):
    folder = run_folder(tmp_path)
    tracker = Tracker(study, folder)
    tracker.start(cells[0])
    tracker.log_point(cells[0].id, {"step": 5, "loss": 7.0})
    tracker.record(row_of(cells[0]))
    [run] = runs(folder, "cell")
    assert curve_of(run, tracking_uri(folder.path)) == [(5, 2.0), (10, 1.0)]


def test_an_interrupted_study_leaves_no_run_with_status_running(tmp_path, study, cells):
    folder = run_folder(tmp_path)

    class Interrupted(Cells):
        def run(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(study, folder, None, Interrupted(), quiet(), Tracker(study, folder))
    assert [run.info.status for kind in ("cell", "study") for run in runs(folder, kind)] == ["KILLED", "KILLED"]
    Tracker(study, folder).start(cells[0])
    assert [run.info.status for kind in ("cell", "study") for run in runs(folder, kind)] == ["RUNNING", "RUNNING"]


def test_a_study_to_which_seeds_are_added_continues_its_run(tmp_path, study, cells):
    """MLflow refuses to change a parameter, so that of the first call is kept."""
    folder = run_folder(tmp_path)
    Tracker(study, folder).start(cells[0])
    longer = Study.from_yaml(write_study(tmp_path), ["seeds=[0, 1, 2]"])
    Tracker(longer, folder).start(longer.cells()[-1])
    [run] = runs(folder, "study")
    assert run.data.params["seeds"] == "0, 1"
    assert len(runs(folder, "cell")) == 2


def test_two_folders_in_one_experiment_keep_their_own_runs(tmp_path, study, cells):
    one, other = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "other")
    uri = tracking_uri(run_folder(tmp_path).path)
    Tracker(study, one, uri).sync([row_of(cells[0])])
    Tracker(study, other, uri).sync([{**row_of(cells[0]), "started_at": "2026-01-02T00:00:00+00:00"}])
    assert len(runs(one, "cell", uri)) == len(runs(one, "study", uri)) == 2


def test_many_settings_long_values_and_long_curves_fit(tmp_path, study, cells):
    folder = run_folder(tmp_path)
    spec = {"llm": {f"setting_{i}": i for i in range(150)} | {"long": "x" * 9000}, "data": {"name": "scenes"}}
    curve = [{"step": step, "loss": 1.0, "bce": float("nan")} for step in range(1500)]
    Tracker(study, folder).sync([{**row_of(cells[0]), "spec": json.dumps(spec), "curve": json.dumps(curve)}])
    [run] = runs(folder, "cell")
    assert len(run.data.params) == 152
    assert len(curve_of(run, tracking_uri(folder.path))) == 1500
    assert "training/bce" not in run.data.metrics


def test_a_deleted_store_is_filled_again(tmp_path, study, cells):
    folder = run_folder(tmp_path)
    Tracker(study, folder).sync([row_of(cells[0])])
    (folder.path / "mlflow.db").unlink()
    Tracker(study, folder).sync([row_of(cells[0])])
    assert len(runs(folder, "cell")) == 1


def test_a_file_store_takes_the_same_runs(tmp_path, study):
    uri, folder = f"file:{tmp_path / 'mlruns'}", RunFolder(tmp_path / "run")
    tracker = Tracker(study, folder, uri)
    execute(study, folder, None, Cells(), quiet(), tracker)
    tracker.sync(list(folder.rows().values()), folder.outputs())
    assert tracker.shortfall() is None
    assert len(runs(folder, "cell", uri)) == 12
    assert not (folder.path / "mlflow.db").exists()


def test_mlflow_sends_no_telemetry_and_logs_little(tmp_path, study, cells, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    Tracker(study, run_folder(tmp_path)).record(row_of(cells[0]))
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert logging.getLogger("mlflow").level == logging.WARNING


def test_the_flag_overrides_the_study_and_the_study_overrides_the_environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert choose_tracking_uri(None, None) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert choose_tracking_uri(None, None) == "http://environment"
    assert choose_tracking_uri(None, "http://study") == "http://study"
    assert choose_tracking_uri("http://flag", "http://study") == "http://flag"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("htp://host", "unknown scheme 'htp', did you mean http or https?"),
        ("localhost:5000", "use an MLflow server (http://HOST:5000)"),
        ("http//host:5000", "use an MLflow server"),
        ("", "use an MLflow server"),
        ("http://", "has no host"),
        ("http://host:port", "not a valid URL"),
        ("sqlite://x.db", "has no file name"),
        ("sqlite:////nosuch/x.db", "there is no folder /nosuch"),
        ("postgresql://host", "has no database name"),
        (f"file:{__file__}", "is a file"),
    ],
)
def test_an_invalid_uri_is_one_message(uri, expected, monkeypatch):
    assert expected in tracking_uri_problem(uri)
    with pytest.raises(HarnessError, match=r"^--tracking-uri: found "):
        choose_tracking_uri(uri, None)
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(HarnessError, match=r"^MLFLOW_TRACKING_URI: found "):
            choose_tracking_uri(None, None)


def test_a_store_that_cannot_be_opened_ends_the_study_before_a_cell_runs(tmp_path, study, cells):
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(HarnessError, match=r"MLflow cannot use sqlite:///.*file is not a database"):
        Tracker(study, RunFolder(tmp_path / "run"), tracking_uri(tmp_path)).start(cells[0])


def test_a_study_or_its_preset_selects_the_store_without_changing_cells(tmp_path, study):
    settings = "tracking: {uri: http://ann:secret@host:5000, experiment: shared}\n"
    for text, preset in ((STUDY + settings, PRESET), (STUDY, PRESET + settings)):
        tracked = Study.from_yaml(write_study(tmp_path, text, preset))
        assert tracked.settings.tracking.uri == "http://ann:secret@host:5000"
        assert Tracker(tracked, RunFolder(tmp_path / "run")).experiment == "shared"
        assert tracked.fingerprint == study.fingerprint
        assert [cell.id for cell in tracked.cells()] == [cell.id for cell in study.cells()]
        assert tracked.resolved() == study.resolved(), "a report made from it is not stale when only the store changes"
    overridden = Study.from_yaml(write_study(tmp_path), ["tracking.uri=http://ann:secret@host:5000"])
    assert overridden.resolved() == study.resolved()


def test_problems_in_tracking_have_their_location_and_hide_the_password(tmp_path):
    assert problems(tmp_path, STUDY + "tracking: {uri: 'htp://ann:secret@host', name: x}\n") == [
        "small.yaml:16: tracking.uri: found 'htp://***@host'; unknown scheme 'htp', did you mean http or https?; use "
        "an MLflow server (http://HOST:5000), a database (sqlite:///FILE, postgresql+psycopg2://USER@HOST/NAME) "
        "or the folder of a file store (file:DIR)",
        "small.yaml:16: tracking.name: unknown key; known: experiment, uri",
    ]


def test_credentials_are_removed_from_commands_and_messages(monkeypatch):
    settings = ["--storage", "postgresql://bob:hid'd en@db/optuna", f"--tracking-uri={SECRETS}", "--set", "a=b@c"]
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python", "-m", "harness.run", *settings])
    assert command() == (
        "python -m harness.run --storage 'postgresql://***@db/optuna' "
        "'--tracking-uri=http://***@127.0.0.1:1/mlflow?token=***' --set a=b@c"
    )
    assert redact("mistyped ann:secret@host:5000") == "mistyped ***@host:5000"
    assert redact("sqlite:////data/a@b/mlflow.db") == "sqlite:////data/a@b/mlflow.db"
