"""A PostgreSQL server as the queue: calls wait while it is away, and end with one sentence if it stays away."""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.postgresql import Database as Server
from harness.errors import HarnessError
from harness.queue import database
from harness.queue.cell_queue import CellQueue
from harness.queue.database import join_database
from harness.study.study import Study
from tests.small_study import row_of, write_study

pytest.importorskip("psycopg2")
HAS_SERVER = any(Path("/usr/lib/postgresql").glob("*/bin"))
NOBODY = "postgresql+psycopg2://ann:secret@127.0.0.1:1/optuna"


@pytest.fixture(scope="module")
def server():
    """A server on the loopback."""
    with Server.started() as running:
        yield running


@pytest.fixture
def study(tmp_path):
    return Study.from_yaml(write_study(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SERVER, reason="no PostgreSQL server is installed")
def test_a_worker_waits_for_a_server_that_comes_back_and_no_cell_is_lost(server, study):
    with CellQueue(study, server.url) as queue:
        queue.fill({})
        crash = threading.Thread(target=server.crash, args=(3.0,))
        claims = []
        while (claim := queue.claim()) is not None:
            if len(claims) == 2:
                crash.start()
                time.sleep(0.5)
            claims.append(claim)
            queue.name(claim)
            queue.tell(claim, row_of(claim.cell))
        crash.join()
        assert Counter(queue.completed()) == Counter(cell.id for cell in study.cells())


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SERVER, reason="no PostgreSQL server is installed")
def test_a_server_that_stays_away_is_one_sentence_for_every_further_call(server, study, monkeypatch):
    with CellQueue(study, server.url) as queue:
        queue.fill({})
        monkeypatch.setattr(database, "PATIENCE_S", 2.0)
        pid = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        started = time.monotonic()
        for _ in range(3):
            with pytest.raises(HarnessError, match=r"^the storage \S+ has not answered for 2 s .*start the server"):
                queue.running()
        assert time.monotonic() - started < 10
        server.start()
        assert queue.running() == {}


def test_a_server_that_is_away_when_a_worker_joins_is_waited_for_but_not_when_a_run_starts(study, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE_S", 2.0)
    started = time.monotonic()
    with pytest.raises(HarnessError, match="cannot be opened"):
        CellQueue(study, NOBODY)
    assert time.monotonic() - started < 1.5
    with pytest.raises(HarnessError, match="has not answered for 2 s") as caught:
        join_database(NOBODY)
    assert "secret" not in str(caught.value)
