"""Divides missing outputs between the processes that fill one cache, so that each output is computed once.

A process locks an output before it computes it, by a lock file next to the output. The operating system releases the
lock when the process ends, also if it is killed. Files are replaced atomically: if a network file system shows the
output of another machine late, it is computed again and replaced by the same content.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock, Timeout

from harness.system.cache_folder import OnProgress
from harness.system.files import write_atomically

POLL_SECONDS = 0.2
"""Time between two looks at outputs that other processes have locked."""
OnWait = Callable[[], None]
"""Called repeatedly while all missing outputs are being computed by other processes."""
Item = TypeVar("Item")


def compute_missing(
    outputs: Iterable[tuple[Path, Item]],
    compute: Callable[[Sequence[Item]], Iterable[bytes | np.ndarray]],
    batch_size: int,
    on_progress: OnProgress,
    on_wait: OnWait | None = None,
) -> None:
    """Compute and write the files that do not exist; return when all exist, whichever process wrote them.

    Outputs that another process has locked are left to it. If it ends without writing them, they are computed here.
    Batches are full, except for the last one and while several processes compute neighbouring items.

    A compute function may call `compute_missing` for the outputs that its own are made from. The kinds of output must
    then have an order without cycles; otherwise two processes could wait for each other.

    Args:
        outputs: path of each file, and the item from which it is computed; a path may occur several times.
        compute: returns the contents of a batch's files, in order; each is written when it is returned.
        batch_size: largest number of items computed at once, and of locks held at once.
        on_progress: called with the number of files that exist, of those that were missing at the start.
    """
    missing = {path: item for path, item in outputs if not path.exists()}
    total = len(missing)
    walk = iter(list(missing))
    while missing:
        num_before = len(missing)
        with ExitStack() as locks:
            batch = _lock_batch(walk, missing, batch_size, locks)
            if batch:
                contents = compute([missing[path] for path in batch])
                for path, content in zip(batch, contents, strict=True):
                    write_atomically(path, content)
                    del missing[path]
        if len(missing) < num_before:
            on_progress(total - len(missing), total)
        if len(batch) == batch_size:
            continue
        if missing and not batch:
            if on_wait is not None:
                on_wait()
            time.sleep(POLL_SECONDS)
        walk = iter(list(missing))


def _lock_batch(walk: Iterator[Path], missing: dict[Path, Item], batch_size: int, locks: ExitStack) -> list[Path]:
    """Lock the next missing outputs that no other process has locked; `locks` releases them.

    Outputs that exist by now are removed from `missing`.
    """
    batch: list[Path] = []
    for path in walk:
        lock = None if path.exists() else _try_lock(path)
        # The previous holder of the lock may have written the output before it released the lock.
        if path.exists():
            del missing[path]
            if lock is not None:
                _unlock(lock)
        elif lock is not None:
            locks.callback(_unlock, lock)
            batch.append(path)
            if len(batch) == batch_size:
                break
    return batch


def _try_lock(path: Path) -> FileLock | None:
    """Lock an output; None if another process holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _unlock(lock: FileLock) -> None:
    # Another process may create and lock a file of the same name before this lock is released. It then finds the
    # output written, because it checks after locking. A lock on the removed file is refused by filelock; where a
    # network file system hides the removal, the same check applies.
    with suppress(PermissionError):  # on Windows an open file cannot be removed; filelock removes it on release
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
