"""An MLflow server on the loopback interface has the same runs as a file store, also if it is unreachable at first."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pandas as pd
import pytest
from mlflow import MlflowClient

from harness import run
from harness.errors import HarnessError
from harness.execution import session
from harness.execution.run_study import execute
from harness.monitoring import tracker as tracking
from harness.monitoring.study_runs import LOSS
from harness.monitoring.tracker import Tracker, tracking_uri
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from tests.small_study import CURVE, Cells, NoReports, quiet, row_of, run_folder, write_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # in MLflow's own tables
]
WAIT_SECONDS = 120


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A server with its data in this folder; its URL."""
    folder = folder / "server"
    folder.mkdir()
    store = tracking_uri(run_folder(folder).path)
    files = folder / "served"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", str(files)]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not answers(url):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(WAIT_SECONDS)


def answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as response:
            return response.status == 200
    except (URLError, OSError):
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server"), free_port()) as url:
        yield url


def runs(url: str, experiment: str, kind: str):
    client = MlflowClient(url)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], f"tags.kind = '{kind}'")


def curve_of(found, url: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in MlflowClient(url).get_metric_history(found.info.run_id, LOSS))


def write_report(folder: RunFolder) -> None:
    folder.write_if_changed(folder.report, "page")


class Watching(Cells):
    """Cells that query the server while they train."""

    def __init__(self, url: str, experiment: str) -> None:
        super().__init__()
        self.url, self.experiment = url, experiment
        self.seen: list[tuple[str, list[tuple[int, float]]]] = []

    def run(self, cell, folder, progress):
        progress.step(CURVE[0], 10)
        [found] = [each for each in runs(self.url, self.experiment, "cell") if each.data.tags["cell"] == cell.id]
        self.seen.append((found.info.status, curve_of(found, self.url)))
        return super().run(cell, folder, progress)


def test_a_server_has_every_cell_while_it_trains_and_the_report_at_the_end(server, tmp_path, capsys, monkeypatch):
    cells = Watching(server, "live")
    monkeypatch.setattr(session, "_cells", lambda: cells)
    monkeypatch.setattr(session, "ReportProcess", NoReports)
    monkeypatch.setattr(session, "build_report", write_report)
    path, folder = write_study(tmp_path), RunFolder(tmp_path / "run")
    secret = server.replace("//", "//ann:se%40cret@")
    arguments = [str(path), "--out", str(folder.path), "--tracking-uri", secret, "--set", "tracking.experiment=live"]
    arguments += ["--set", "seeds=[0]"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "harness.run", *arguments])
    assert run.main(arguments) == 0
    assert cells.seen == 6 * [("RUNNING", [(5, 2.0)])]
    found = runs(server, "live", "cell")
    assert {each.info.status for each in found} == {"FINISHED"}
    assert all(curve_of(each, server) == [(5, 2.0), (10, 1.0)] for each in found)
    [parent] = runs(server, "live", "study")
    assert parent.info.status == "FINISHED"
    client = MlflowClient(server)
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"results.parquet", "samples.parquet", "study.resolved.yaml", "environment.json", "report"} <= files
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "report")] == ["report/index.html"]
    printed = capsys.readouterr()
    assert f"MLflow: http://***@{server.removeprefix('http://')}/#/experiments/" in printed.out
    assert run.main(arguments) == 0
    assert len(runs(server, "live", "cell")) == 6, "the same command again makes none"
    kept = [file for file in folder.path.rglob("*") if file.suffix in {".json", ".yaml", ".db"}]
    assert len(kept) > 6
    texts = [printed.out, printed.err, *(file.read_bytes().decode(errors="ignore") for file in kept)]
    texts += [str(value) for value in pd.read_parquet(folder.results).to_numpy().ravel()]
    texts += [json.dumps(dict(each.data.tags)) for each in [*found, parent]]
    assert not [text for text in texts if "se%40cret" in text or "se@cret" in text]


def test_an_unreachable_server_ends_no_study_and_the_next_run_sends_the_rest(tmp_path, capsys, monkeypatch):
    port = free_port()
    monkeypatch.setattr(session, "_cells", lambda: Cells(fails=("bbox_mlp",)))
    monkeypatch.setattr(session, "ReportProcess", NoReports)
    monkeypatch.setattr(session, "build_report", write_report)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    path, folder = write_study(tmp_path), RunFolder(tmp_path / "run")
    arguments = [str(path), "--out", str(folder.path), "--set", "seeds=[0]"]
    assert run.main(arguments) == 1
    printed = capsys.readouterr().out
    away = f"7 runs are not yet in MLflow at http://127.0.0.1:{port} (Connection refused)"
    assert f"{away}; run the same command again to send the rest" in printed
    assert len(pd.read_parquet(folder.results)) == 6
    monkeypatch.setattr(session, "_cells", lambda: Cells())
    with mlflow_server(tmp_path, port) as url:
        assert run.main(arguments) == 0
        assert "not yet in MLflow" not in capsys.readouterr().out
        found = runs(url, "small", "cell")
        assert len(found) == len({each.data.tags["cell"] for each in found}) == 6
        assert all(curve_of(each, url) == [(5, 2.0), (10, 1.0)] for each in found)
        assert [each.info.status for each in runs(url, "small", "study")] == ["FINISHED"]


def test_points_that_could_not_be_sent_are_sent_with_the_next(server, tmp_path, monkeypatch):
    study, folder = Study.from_yaml(write_study(tmp_path), ["tracking.experiment=gap"]), RunFolder(tmp_path / "run")
    cell = study.cells()[0]
    tracker = Tracker(study, folder, server)
    tracker.start(cell)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    with monkeypatch.context() as away:
        away.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        away.delenv("NO_PROXY", raising=False)
        away.delenv("no_proxy", raising=False)
        tracker.log_point(cell.id, CURVE[0])
    [found] = runs(server, "gap", "cell")
    assert curve_of(found, server) == []
    tracker.log_point(cell.id, CURVE[1])
    assert curve_of(found, server) == [(5, 2.0), (10, 1.0)]


def test_a_server_that_never_responds_delays_a_study_by_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "MAX_LOST_SECONDS", 2.0)
    monkeypatch.setattr(tracking, "SYNC_PAUSE_SECONDS", 0.0)
    study, folder = Study.from_yaml(write_study(tmp_path)), RunFolder(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Tracker(study, folder, f"http://127.0.0.1:{silent.getsockname()[1]}")
        cell = study.cells()[0]
        tracker.start(cell)
        started = time.monotonic()
        for step in range(100):
            tracker.log_point(cell.id, {"step": step, "loss": 1.0})
        assert time.monotonic() - started < 4
        tracker.sync([row_of(cell)])
    assert tracker.shortfall().startswith("2 runs are not yet in MLflow")


def test_a_server_other_than_mlflow_ends_the_study_before_a_cell_runs(tmp_path):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401, "no")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        study, cells = Study.from_yaml(write_study(tmp_path)), Cells()
        tracker = Tracker(study, RunFolder(tmp_path / "run"), f"http://ann:secret@127.0.0.1:{other.server_port}")
        with pytest.raises(HarnessError, match=r"MLflow cannot use http://\*\*\*@127.*401") as caught:
            execute(study, RunFolder(tmp_path / "run"), None, cells, quiet(), tracker)
        other.shutdown()
    assert "secret" not in str(caught.value)
    assert cells.ran == []
