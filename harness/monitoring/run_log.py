"""The log of a run: `run.log` in the run folder, one JSON object per line; every run of the study appends to it."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path


class JsonLines(logging.Formatter):
    """Formats time, level, logger and message of a record, with its `fields` and traceback if present."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _Handler(logging.FileHandler):
    """Ignores errors of writing the log, so that they do not end a run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line; the file is opened with the first one."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - named by logging
        """Prints nothing."""


@contextmanager
def run_log(path: Path) -> Iterator[None]:
    """Writes log records of the harness at level INFO and above to this file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler, logger = _Handler(path, encoding="utf-8", delay=True), logging.getLogger("harness")
    handler.setFormatter(JsonLines())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
