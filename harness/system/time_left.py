"""Counts of computed images as text, with an estimate of the time that is left."""

import time
from collections.abc import Callable

from harness.system.cache_folder import OnProgress

MIN_SECONDS = 10.0
"""Seconds after which the time left is estimated."""


def counted(content: str, log: Callable[[str], None]) -> OnProgress:
    """Log counts such as `patches 512/2971, about 12:40 left`, from the mean rate since this call."""
    started = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        seconds = time.monotonic() - started
        left = f", about {clock_time(seconds / done * (total - done))} left" if seconds >= MIN_SECONDS else ""
        log(f"{content} {done}/{total}{left if done < total else ''}")

    return on_progress


def clock_time(seconds: float) -> str:
    """Minutes and seconds, as in 12:40; with hours from an hour on, as in 1:02:40."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
