"""Exit codes of the commands that run cells."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.errors import HarnessError
from harness.system.files import is_disk_full
from harness.system.uris import redact

_RESUME = "run the same command again to resume"


def exit_code(action: Callable[[], int]) -> int:
    """The code that a command returns; 2 for an error of the user and for a full disk, 130 if interrupted.

    SIGTERM is handled as Ctrl-C. Errors of the user are one sentence on standard error.
    """
    try:
        with _terminates_as_interrupt():
            return action()
    except (HarnessError, OSError) as error:
        text = sentence_of(error)
        if text is None:
            raise
        sys.stderr.write(f"{text}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; finished stages are kept; {_RESUME}\n")
        return 130


def sentence_of(error: HarnessError | OSError) -> str | None:
    """What to tell the user about an error of the user or a full disk; None for another error."""
    if isinstance(error, HarnessError):
        return redact(str(error))
    if is_disk_full(error):
        return f"no space left on the disk ({error}); finished stages are kept; free some space, then {_RESUME}"
    return None


@contextmanager
def _terminates_as_interrupt() -> Iterator[None]:
    """Handles SIGTERM as Ctrl-C. Signal handlers can be set in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)
