"""Leases: renewed while a cell runs, ended by release, death or silence, and lost to another worker."""

import errno
import multiprocessing
import os
import signal
import time

import pytest

from harness.system import lease
from harness.system.lease import Lease, LeaseLostError, Status, Watch, read, this_process


def hold(path, is_held):
    """Hold a lease until the process dies."""
    with Lease(path, Status("cell", "pooling seed 0")):
        is_held.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path):
    """A lease that another process holds, and its process."""
    context = multiprocessing.get_context("spawn")
    path, is_held = tmp_path / "cell.lease", context.Event()
    process = context.Process(target=hold, args=(path, is_held))
    process.start()
    assert is_held.wait(60)
    yield path, process
    process.kill()
    process.join()


def test_a_lease_is_there_while_it_is_held(tmp_path):
    path = tmp_path / "cell.lease"
    assert Watch().has_ended(path)
    with Lease(path, Status("cell", "pooling seed 0", step=3)):
        owner, status = read(path)
        assert (owner, status.step) == (this_process(), 3)
        assert not Watch().has_ended(path)
    assert not path.exists()
    assert Watch().has_ended(path)


def test_the_lease_of_a_killed_process_has_ended_at_once(other):
    path, process = other
    assert not Watch().has_ended(path)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert path.exists()
    assert Watch().has_ended(path)


def test_a_lease_that_is_not_renewed_ends_on_the_clock_of_the_watcher(other, monkeypatch):
    path, process = other
    monkeypatch.setattr(lease.Owner, "is_dead", property(lambda _: False))  # as for a process of another machine
    os.kill(process.pid, signal.SIGSTOP)
    now = 0.0
    watch = Watch(lambda: now)
    assert not watch.has_ended(path)
    now = lease.EXPIRES_S
    assert not watch.has_ended(path)
    now += 1
    assert watch.has_ended(path)


def test_a_renewed_lease_does_not_end(other, monkeypatch):
    path, _ = other
    monkeypatch.setattr(lease.Owner, "is_dead", property(lambda _: False))
    now = 0.0
    watch = Watch(lambda: now)
    assert not watch.has_ended(path)
    changed = path.stat().st_mtime_ns
    deadline = time.monotonic() + 20
    while path.stat().st_mtime_ns == changed and time.monotonic() < deadline:
        time.sleep(0.1)
    now = lease.EXPIRES_S + 1
    assert not watch.has_ended(path)


def test_a_worker_whose_cell_was_taken_over_is_told_and_leaves_the_lease(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_S", 0.05)
    path = tmp_path / "cell.lease"
    with Lease(path, Status("cell", "pooling seed 0")) as mine:
        mine.check()
        path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 1'))
        deadline = time.monotonic() + 20
        while mine._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(LeaseLostError):
            mine.check()
    assert path.exists()


def test_a_worker_whose_cell_was_returned_to_the_queue_is_told_at_once(tmp_path):
    path = tmp_path / "cell.lease"
    with Lease(path, Status("cell", "pooling seed 0")) as mine:
        path.unlink()
        with pytest.raises(LeaseLostError):
            mine.check()
    assert not path.exists()


def test_a_lease_is_renewed_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_S", 0.05)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "cell.lease"
    with Lease(path, Status("cell", "pooling seed 0")) as mine:
        monkeypatch.setattr(lease, "replace_file", no_space)
        for _ in range(2):
            changed, deadline = path.stat().st_mtime_ns, time.monotonic() + 20
            while path.stat().st_mtime_ns == changed and time.monotonic() < deadline:
                time.sleep(0.02)
            assert path.stat().st_mtime_ns > changed
        mine.check()
