"""Runs a study: `python -m harness.run studies/sspe_sweep.yaml`. The same command again continues where it stopped."""

import argparse
import errno
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError
from harness.system.uris import redact

_CONTINUE = "the same command continues"
LIST_KINDS = ("projectors", "superpixels", "datasets", "metrics", "encoders", "llms", "mask_decoders", "checkpoints")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 1 when cells failed, 2 when the user has something to mend, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    try:
        with _terminates_as_interrupt():
            from harness.execution.commands import run_command  # so that --help starts at once

            return run_command(options)
    except HarnessError as error:
        sys.stderr.write(f"{redact(str(error))}\n")
        return 2
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        sys.stderr.write(f"no space left on the disk ({error}); free some, finished stages are kept, {_CONTINUE}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; finished stages are kept, {_CONTINUE}\n")
        return 130


@contextmanager
def _terminates_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does. Signals can be handled in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.run", description=__doc__)
    parser.add_argument("study", nargs="?", type=Path, metavar="STUDY.yaml")
    parser.add_argument("--plan", action="store_true", help="print the cells and what they will take; run nothing")
    parser.add_argument(
        "--check", action="store_true", help="run every configuration once on two images; train nothing"
    )
    parser.add_argument(
        "--rerun",
        nargs="?",
        const="",
        metavar="ARM",
        help="run finished cells again that were made by other code of the harness; of one arm, or of all",
    )
    parser.add_argument("--report-only", action="store_true", help="build the report again from the tables")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, as in training.steps=100; may be given again",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results, in place of runs/<study>")
    parser.add_argument("--storage", metavar="URL", help="Optuna's storage, in place of SQLite in that folder")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server, database or file store, in place of the study's tracking.uri, of MLFLOW_TRACKING_URI and "
        "of SQLite in that folder",
    )
    parser.add_argument("--list", choices=LIST_KINDS, help="list what a study can name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
