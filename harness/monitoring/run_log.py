"""The log of a run: `run.log` in the run folder, one JSON object a line, appended by every run of the study."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path


class JsonLines(logging.Formatter):
    """Time, level, logger and event of a record, with the record's `fields` and its traceback where it has them."""

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
    """Loses a line rather than a run: what keeps the log from being written is reported by the run itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Opens the file with the first line."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - named by logging
        """Prints nothing."""


@contextmanager
def run_log(path: Path) -> Iterator[None]:
    """Writes what the harness logs at level info and above to this file."""
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
