"""The journal of the queue contains whole records only, and its lock ends with its process."""

import errno
import multiprocessing
import os
import signal
import time

import pytest

from harness.queue.journal import JournalFile, lock_of
from harness.queue.storage import default_path, repair


def records(path):
    """What a process that opens the journal anew reads."""
    return list(JournalFile(path).read_logs(0))


def test_records_are_read_in_the_order_in_which_two_processes_appended_them(tmp_path):
    path = tmp_path / "optuna.journal"
    one, other = JournalFile(path), JournalFile(path)
    for number in range(4):
        (one, other)[number % 2].append_logs([{"op_code": number}])
    assert [record["op_code"] for record in records(path)] == [0, 1, 2, 3]


def test_a_record_cut_by_a_kill_is_replaced_by_the_next_one_and_is_no_damage(tmp_path):
    path = default_path(tmp_path)
    journal = JournalFile(path)
    journal.append_logs([{"op_code": 0}])
    with path.open("ab") as file:
        file.write(b'{"op_code": 1, "wor')
    assert [record["op_code"] for record in records(path)] == [0]
    repair(tmp_path)
    assert not list(tmp_path.glob("*damaged*"))
    journal.append_logs([{"op_code": 2}])
    assert [record["op_code"] for record in records(path)] == [0, 2]


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "optuna.journal"
    journal = JournalFile(path)
    journal.append_logs([{"op_code": 0}])

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            journal.append_logs([{"op_code": 1}])
    journal.append_logs([{"op_code": 2}])
    assert [record["op_code"] for record in records(path)] == [0, 2]


def hold(path, is_held):
    """Hold the lock until the process dies."""
    lock = lock_of(path)
    lock.acquire()
    is_held.set()
    time.sleep(60)


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
    path, context = tmp_path / "optuna.journal", multiprocessing.get_context("spawn")
    journal, is_held = JournalFile(path), context.Event()
    process = context.Process(target=hold, args=(path, is_held))
    process.start()
    assert is_held.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    started = time.monotonic()
    journal.append_logs([{"op_code": 0}])
    assert time.monotonic() - started < 5
