"""MLflow: what the tables say, for its UI. The only module that imports it; everything here can be made again.

Experiment = study, parent run = the study, child run = a cell. Nothing global is touched: no active run, no
default URI. MLflow is imported when the first cell is tracked, because that and a new store take seconds.
"""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.records import METRICS, Row, RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

T = TypeVar("T")

_MAX_PARAMS, _MAX_METRICS, _MAX_VALUE = 100, 1000, 6000
"""What MLflow takes in one batch, and the length of a parameter's value."""
_TAGS = ("arm", "point", "seed", "cell", "status", "trial", "started_at")


def tracking_uri(folder: Path) -> str:
    """The store in a run folder, for `mlflow ui --backend-store-uri`."""
    return f"sqlite:///{(folder / 'mlflow.db').resolve()}"


class Tracker:
    """Keeps a run folder's MLflow store in step with its rows.

    Args:
        study: names the experiment.
    """

    def __init__(self, study: str, folder: RunFolder) -> None:
        self.study = study
        self.folder = folder
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._parent = ""
        self._tracked: dict[str, tuple[str, str]] = {}

    def record(self, row: Row) -> None:
        """Makes the run of a cell, unless it is there; a cell that ran again has its old run replaced."""
        client = self._connect()
        cell, started = row["cell"], str(row.get("started_at"))
        run_id, tracked = self._tracked.get(cell, ("", ""))
        if run_id and tracked == started:
            return
        if run_id:
            client.delete_run(run_id)
        self._tracked[cell] = (self._log(client, row), started)

    def sync(self, rows: Iterable[Row], artifacts: Iterable[Path] = ()) -> None:
        """Makes what is missing, hangs these files on the study's run, and closes it."""
        for row in rows:
            self.record(row)
        client = self._connect()
        for path in artifacts:
            client.log_artifact(self._parent, str(path))
        client.set_terminated(self._parent)

    def _connect(self) -> "MlflowClient":
        """The client, once the experiment and the study's run exist."""
        if self._client is not None:
            return self._client
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when MLflow is imported
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it creates
        client = MlflowClient(tracking_uri=tracking_uri(self.folder.path))
        experiment = client.get_experiment_by_name(self.study)
        artifacts = (self.folder.path / "mlartifacts").resolve().as_uri()
        self._experiment = (
            client.create_experiment(self.study, artifact_location=artifacts)
            if experiment is None
            else experiment.experiment_id
        )
        runs = _all_runs(client, self._experiment)
        parent = next((run for run in runs if run.data.tags.get("kind") == "study"), None)
        if parent is None:
            parent = client.create_run(self._experiment, tags={"kind": "study"}, run_name=self.study)
        self._parent = parent.info.run_id
        self._adopt(client, runs)
        self._client = client
        return client

    def _adopt(self, client: "MlflowClient", runs: "Iterable[Run]") -> None:
        """Knows the cells that are tracked in full; what a kill left half logged goes."""
        for run in runs:
            tags = run.data.tags
            if tags.get("kind") != "cell":
                continue
            if "complete" in tags:
                self._tracked[tags["cell"]] = (run.info.run_id, tags["started_at"])
            else:
                client.delete_run(run.info.run_id)

    def _log(self, client: "MlflowClient", row: Row) -> str:
        """One run with everything a row says; its id."""
        from mlflow.entities import Metric, Param, RunTag

        tags = {tag: str(row.get(tag)) for tag in _TAGS}
        commit = json.loads(row.get("environment") or "{}").get("git_commit")
        tags |= {"kind": "cell", "mlflow.parentRunId": self._parent, "git_commit": str(commit)}
        name = f"{row['arm']} {row['point']} seed {row['seed']}"
        start_ms = int(1000 * datetime.fromisoformat(row["started_at"]).timestamp())
        end_ms = start_ms + int(1000 * (row.get("wall_seconds") or 0))
        run_id = client.create_run(self._experiment, start_ms, tags, name).info.run_id
        params = [Param(key, str(value)[:_MAX_VALUE]) for key, value in flat(json.loads(row.get("spec") or "{}"))]
        for batch in _batches(params, _MAX_PARAMS):
            client.log_batch(run_id, params=batch)
        metrics = [Metric(key, value, end_ms, step) for key, value, step in numbers(row)]
        for chunk in _batches(metrics, _MAX_METRICS):
            client.log_batch(run_id, metrics=chunk)
        client.log_batch(run_id, tags=[RunTag("complete", "true")])
        client.set_terminated(run_id, "FINISHED" if row["status"] == "done" else "FAILED", end_ms)
        return run_id


def flat(spec: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values of nested mappings."""
    for key, value in spec.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def numbers(row: Row) -> Iterator[tuple[str, float, int]]:
    """Every measured number of a row with its step: 0 for results, the training step for points of the curve."""
    for metric in METRICS:
        value = row.get(metric)
        if value is not None:
            yield metric, float(value), 0
    for point in json.loads(row.get("curve") or "[]"):
        for part, value in point.items():
            if part != "step" and math.isfinite(value):
                yield f"training_{part}", float(value), int(point["step"])


def _all_runs(client: "MlflowClient", experiment: str) -> "list[Run]":
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch
