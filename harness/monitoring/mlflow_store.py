"""An MLflow server, database or file store with one experiment. The only module that imports MLflow.

No global state of MLflow is changed, such as the active run or the default URI. MLflow is imported when a store is
opened, because the import takes seconds.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from harness.errors import HarnessError
from harness.monitoring.run_contents import RunContents
from harness.system.uris import DATABASES, redact, scheme_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

_MAX_PARAMS, _MAX_METRICS, _MAX_VALUE = 100, 1000, 6000
"""Largest batches of MLflow's API, and the longest value of a parameter."""
_CONNECT_TIMEOUT_SECONDS = 5
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it prints the password of a URI
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_CONNECT_TIMEOUT_SECONDS),
}
"""Environment variables for MLflow; those that are already set are kept. `Tracker` does the retries."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run in the store.

    Args:
        cell: id of its cell; empty for the run of the study.
        version: of the cell's row; empty while the cell runs.
    """

    id: str
    cell: str
    version: str
    is_complete: bool


class MlflowStore:
    """The calls to MLflow that a tracker makes. Each may raise any error of the store's client.

    Args:
        experiment: name; created if it does not exist.
        tags: of the experiment; existing tags are kept.
        artifacts: folder for files if the store is a database.

    Raises:
        HarnessError: the experiment was deleted, or the driver of a database is missing.
    """

    def __init__(self, uri: str, experiment: str, tags: Mapping[str, str], artifacts: Path) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if scheme_of(uri) in DATABASES:
            _check_database(uri)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs each table that it creates
        self.client = MlflowClient(tracking_uri=uri)
        is_database = scheme_of(uri) in {"sqlite", *DATABASES}
        location = artifacts.resolve().as_uri() if is_database else None
        self.experiment = _open_experiment(self.client, experiment, tags, location, redact(uri))

    def find(self, tags: Mapping[str, str]) -> list[StoredRun]:
        """The runs with all of these tags, oldest first."""
        wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        found, token = [], None
        while True:
            order = ["attributes.start_time ASC", "attributes.run_id ASC"]
            page = self.client.search_runs([self.experiment], wanted, order_by=order, page_token=token)
            for run in page:
                own = run.data.tags
                is_complete = "complete" in own
                found.append(StoredRun(run.info.run_id, own.get("cell", ""), own.get("version", ""), is_complete))
            token = page.token
            if not token:
                return found

    def create(self, contents: RunContents, parent: str | None, start_ms: int | None = None) -> str:
        """Creates a run with status RUNNING and returns its id; `describe` adds its parameters."""
        tags = contents.tags | ({} if parent is None else {"mlflow.parentRunId": parent})
        return self.client.create_run(self.experiment, start_ms, tags, contents.name).info.run_id

    def describe(self, run: str, contents: RunContents) -> None:
        """Logs the dataset, and the parameters that the run lacks: MLflow refuses to change one, such as the seeds."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        known = self.client.get_run(run).data.params
        params = [Param(key, str(value)[:_MAX_VALUE]) for key, value in contents.params.items() if key not in known]
        for batch in _batches(params, _MAX_PARAMS):
            self.client.log_batch(run, params=batch, synchronous=True)
        if contents.data:
            settings = json.dumps(contents.data)
            dataset = Dataset(str(contents.data["name"]), contents.data_digest, "code", settings)
            context = [InputTag("mlflow.data.context", "training, evaluation")]
            self.client.log_inputs(run, [DatasetInput(dataset, context)])

    def history(self, run: str, metric: str) -> list[tuple[int, float]]:
        """All logged steps and values of a metric."""
        return [(point.step, point.value) for point in self.client.get_metric_history(run, metric)]

    def latest(self, run: str) -> dict[str, float]:
        """The last value of every metric."""
        return dict(self.client.get_run(run).data.metrics)

    def log(self, run: str, metrics: Iterable[tuple[str, float, int]], time_ms: int) -> None:
        """Logs metrics as (name, value, step)."""
        from mlflow.entities import Metric

        values = (Metric(name, value, time_ms, step) for name, value, step in metrics)
        for batch in _batches(values, _MAX_METRICS):
            self.client.log_batch(run, metrics=batch, synchronous=True)

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        """Sets tags."""
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(*tag) for tag in tags.items()], synchronous=True)

    def attach(self, run: str, path: Path) -> None:
        """Adds a file or a folder to the artifacts of a run; a file on the same file system is hard-linked."""
        if path.is_dir():
            self.client.log_artifacts(run, str(path), path.name)
        elif not self._link(run, path):
            self.client.log_artifact(run, str(path))

    def _link(self, run: str, path: Path) -> bool:
        """Creates a hard link in the run's folder of artifacts; returns whether that succeeded."""
        from mlflow.utils.file_utils import local_file_uri_to_path

        uri = self.client.get_run(run).info.artifact_uri or ""
        if not uri.startswith(("file:", "/")):
            return False
        link = Path(local_file_uri_to_path(uri)) / path.name
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            os.link(path, link)
        except OSError:
            return False
        return True

    def set_running(self, run: str) -> None:
        """Reopens a run."""
        self.client.update_run(run, status="RUNNING")

    def close(self, run: str, status: str, time_ms: int | None = None) -> None:
        """Ends a run with the status FINISHED, FAILED or KILLED."""
        self.client.set_terminated(run, status, time_ms)

    def delete(self, run: str) -> None:
        """Marks a run as deleted."""
        self.client.delete_run(run)


def is_final(error: Exception) -> bool:
    """Whether repeating the call would fail too, because the store rejected it."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return 400 <= status < 500 and status not in {408, 429}
    return isinstance(error, HarnessError | ImportError)


def _open_experiment(
    client: "MlflowClient", name: str, tags: Mapping[str, str], location: str | None, shown_uri: str
) -> str:
    """The id of the experiment of this name, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, location, dict(tags))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process has created it
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise HarnessError(
            f"the MLflow experiment {name!r} on {shown_uri} is deleted; restore it, or set another name in the study's "
            "tracking.experiment"
        )
    for key, value in tags.items():
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return experiment.experiment_id


def _check_database(uri: str) -> None:
    """Connects once, because MLflow itself retries for minutes.

    Raises:
        HarnessError: the database driver is not installed.
    """
    url = make_url(uri)
    takes_timeout = url.get_driver_name() in {"psycopg2", "psycopg", "pymysql", "mysqldb"}
    try:
        options: dict[str, Any] = {"connect_timeout": _CONNECT_TIMEOUT_SECONDS} if takes_timeout else {}
        engine = create_engine(url, connect_args=options)
    except ImportError as error:
        raise HarnessError(
            f"the MLflow database {redact(uri)} requires the driver {url.get_driver_name()}, which is not installed; "
            f"install it with pip ({error})"
        ) from None
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch
