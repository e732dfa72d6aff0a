"""Kills workers, the run and its database at random, and counts what is lost: `python -m benchmarks.chaos`.

100 cells that sleep instead of computing run on 8 workers; stages, rows, samples, checkpoints, leases and queue are
those of real cells. Meanwhile there are 20 SIGKILLs, one full disk, and an MLflow server that never answers. A run that
ends early is started again, as its message asks. Everything stays on this machine; a PostgreSQL server, where its
programs are installed, listens on the loopback only.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from rich.console import Console

from benchmarks.postgresql import Database
from harness import Study
from harness.execution.run_study import Team, execute
from harness.monitoring.progress import LineProgress, Progress
from harness.monitoring.run_log import run_log
from harness.monitoring.tracker import Tracker
from harness.queue.cell_queue import CellQueue
from harness.queue.storage import default_path
from harness.results.columns import SAMPLE_COLUMNS
from harness.results.run_folder import STAGES, Row, RunFolder
from harness.study.study import Cell
from harness.system.environment import describe_environment
from harness.system.exit_code import exit_code
from harness.system.files import write_atomically
from harness.system.lease import Owner, read
from harness.system.shares import Share

NUM_WORKERS, NUM_KILLS, SECONDS = 8, 20, 0.3
NUM_SAMPLES, CHECKPOINT_BYTES = 4, 1 << 16
DEADLINE_S, FULL_S = 900.0, 60.0
KILLED_SHARE = 0.7
"""Share of the cells over which the kills are spread; kills are slower than cells."""
STUDY = {
    "question": "Is any cell lost?",
    "extends": "presets/embedded.yaml",
    "arms": {f"pooling_{side**2}": {"projector": {"name": "pooling", "tokens": side**2}} for side in range(2, 12)},
    "seeds": list(range(10)),
    "objectives": {"giou": "maximize"},
    "baseline": "pooling_36",
}


class QuickCells:
    """Cells that write the files of a real cell, stage by stage, and compute nothing."""

    def check(self, *_: object) -> None:
        """Every configuration passes."""

    def time(self, *_: object) -> bool:
        """There is no model to time."""
        return False

    def run(self, cell: Cell, folder: RunFolder, progress: Progress) -> Row:
        """Continues after the last stage that has a row; writes lines to started.log and ended.log."""
        kept = folder.kept_row(cell.id)
        row: Row = {**kept, **cell.columns, "started_at": datetime.now(UTC).isoformat(), "reason": ""}
        _append(folder.path / "started.log", cell.id)
        for stage in STAGES[STAGES.index(kept["stage"]) + 1 if kept else 0 :]:
            progress.note(stage)
            time.sleep(SECONDS / len(STAGES))
            if stage == "trained":
                write_atomically(folder.checkpoint(cell.id), bytes(CHECKPOINT_BYTES))
            if stage == "scored":
                row["giou"] = 0.5 + cell.seed / 100
            row |= {"status": "done" if stage == STAGES[-1] else "unfinished", "stage": stage}
            folder.write_cell(row, _samples(cell) if stage == "scored" else None)
        _append(folder.path / "ended.log", cell.id)
        return row


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def _samples(cell: Cell) -> pd.DataFrame:
    keys = {**dict.fromkeys(SAMPLE_COLUMNS), "cell": cell.id, "arm": cell.arm, "seed": cell.seed, "iou": 0.5}
    return pd.DataFrame([{**keys, "expression_id": i} for i in range(NUM_SAMPLES)])


def run_once(path: Path, storage: str | None, tracking_uri: str) -> int:
    """One run of the study in this process; returns its exit code."""
    study, folder, console = Study.from_dict(STUDY, name="chaos"), RunFolder(path), Console(stderr=True)
    team = Team([Share(1)] * NUM_WORKERS, QuickCells, console)
    tracker = Tracker(study, folder, tracking_uri)
    with run_log(path / "run.log"):
        outcome = execute(study, folder, storage, QuickCells(), LineProgress(console), tracker, team=team)
    rows = folder.rows()
    tracker.sync([rows[cell.id] for cell in outcome.cells if cell.id in rows], folder.outputs())
    console.print(tracker.shortfall())
    return 1 if outcome.num_failed else 0


class Chaos:
    """One run of the study to its end, under kills.

    Args:
        place: a file system of its own, which is filled once.
    """

    def __init__(self, place: Path, database: Database | None, seed: int) -> None:
        self.name = "postgresql" if database else "journal"
        self.place, self.database, self.chance = place, database, random.Random(seed)
        self.folder = RunFolder(place / self.name)
        self.log = Path(tempfile.gettempdir()) / f"chaos-{self.name}-{seed}.log"
        kinds = Counter(worker=12, run=4, database=4) if database else Counter(worker=15, run=5)
        self.kinds = self.chance.sample(list(kinds.elements()), NUM_KILLS)
        self.kills: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()

    @property
    def storage(self) -> str | None:
        """For `--storage`."""
        return self.database.url if self.database else None

    def run(self, tracking_uri: str) -> str:
        """Returns the figures."""
        started, filler = time.monotonic(), threading.Thread(target=self._fill_disk, daemon=True)
        command = [sys.executable, "-m", "benchmarks.chaos", "--run", str(self.folder.path), tracking_uri]
        command += [self.storage] if self.storage else []
        num_cells = len(Study.from_dict(STUDY, name="chaos").cells())
        with self.log.open("wb") as log:
            while self.codes[0] == 0 and time.monotonic() - started < DEADLINE_S:
                with subprocess.Popen(command, stderr=log, stdout=log) as run:
                    while run.poll() is None:
                        time.sleep(0.05)
                        done = self._num_done()
                        if done * NUM_KILLS >= KILLED_SHARE * num_cells * self.kills.total() + 1:
                            self._kill(run)
                        if done >= num_cells // 2 and filler.ident is None:
                            filler.start()
                self.codes[run.returncode] += 1
        return self._figures(time.monotonic() - started)

    def _num_done(self) -> int:
        log = self.folder.path / "ended.log"
        return len(set(log.read_text(encoding="utf-8").split())) if log.exists() else 0

    def _kill(self, run: "subprocess.Popen[bytes]") -> None:
        """Kill the next process at a random moment."""
        if self.kills.total() == NUM_KILLS:
            return
        kind = self.kinds[self.kills.total()]
        leases = [found for path in self.folder.leases() if (found := read(path)) and not found[0].is_dead]
        if kind == "worker" and not leases:
            return
        time.sleep(self.chance.uniform(0, SECONDS))
        if kind == "database" and self.database:
            self.database.crash(self.chance.uniform(0, 5))
        elif kind == "run":
            if run.poll() is not None:
                return
            run.kill()
        else:
            owner, _ = self.chance.choice(leases)
            if owner.is_dead:
                return
            with suppress(ProcessLookupError):
                os.kill(owner.pid, signal.SIGKILL)
            kind = f"worker {self._phase(owner)}"
        self.kills[kind] += 1

    def _phase(self, owner: Owner) -> str:
        """Where a worker was when it was killed: the last stage of its cell that has a row."""
        for path in self.folder.leases():
            found = read(path)
            if found and found[0] == owner:
                has_row = (self.folder.cells / f"{path.stem}.json").exists()
                return f"after {self.folder.row(path.stem)['stage']}" if has_row else f"before {STAGES[0]}"
        return "between cells"

    def _fill_disk(self) -> None:
        """Leave no space until a run has ended by it, where the folder is a file system of its own."""
        if not os.path.ismount(self.place):
            return
        path, until = self.place / "filler", time.monotonic() + FULL_S
        with path.open("wb", buffering=0) as file:
            while time.monotonic() < until and self._num_messages("no space left") == 0:
                try:
                    file.write(bytes(1 << 12))
                except OSError:
                    time.sleep(0.01)
        path.unlink()

    def _num_messages(self, text: str) -> int:
        return self.log.read_text(encoding="utf-8", errors="replace").count(text)

    def _figures(self, seconds: float) -> str:
        study = Study.from_dict(STUDY, name="chaos")
        planned = {cell.id: cell for cell in study.cells()}
        results, samples = pd.read_parquet(self.folder.results), pd.read_parquet(self.folder.samples)
        done = results[results["status"] == "done"]["cell"].tolist()
        with CellQueue(study, self.storage or default_path(self.folder.path)) as queue:
            trials = Counter(queue.completed())
        ended = Counter((self.folder.path / "ended.log").read_text(encoding="utf-8").split())
        starts = (self.folder.path / "started.log").read_text(encoding="utf-8").split()
        wrong = {
            "rows": len(done) - len({*done}),
            "cells with wrong samples": int((samples.groupby("cell").size() != NUM_SAMPLES).sum()),
            "cells without exactly one complete trial": sum(trials[cell] != 1 for cell in planned),
            "cells computed to the end twice": sum(count > 1 for count in ended.values()),
        }
        lines = [
            f"{self.name}: {len({*done} & planned.keys())} of {len(planned)} cells done in {seconds:.0f} s",
            f"lost {len(planned.keys() - {*done})}; doubled {wrong}",
            f"killed {self.kills.total()}: {dict(sorted(self.kills.items()))}",
            f"{len(starts)} starts of cells; exit codes of runs {dict(self.codes)}",
            f"{self._num_messages('no space left')} ended by the full disk, "
            f"{self._num_messages('storage postgresql')} by the database; "
            f"{self._num_messages('Traceback')} tracebacks in {self.log}",
        ]
        return "\n  ".join(lines)


@contextmanager
def small_disk() -> Iterator[Path]:
    """A folder on a file system of 64 MiB, where this user may mount one; else in the temporary folder."""
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode == 0
    if not is_mounted:
        print("no disk is filled, because this user may not mount one")
    try:
        yield folder
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def compare(storage: str | None, seed: int) -> int:
    """Prints the figures of one storage, or of both; returns the exit code.

    Raises:
        HarnessError: PostgreSQL is not installed.
    """
    environment = describe_environment()
    print(f"{environment['cpu']}, {environment['cores']} cores, seed {seed}, {datetime.now(UTC):%Y-%m-%d}")
    # Connections are accepted by the system, and nobody reads from them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracking_uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        if storage != "postgresql":
            with small_disk() as place:
                print(Chaos(place, None, seed).run(tracking_uri), flush=True)
        if storage != "journal":
            with Database.started() as database, small_disk() as place:
                print(Chaos(place, database, seed).run(tracking_uri), flush=True)
    return 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--storage", choices=("journal", "postgresql"), help="default: both")
    parser.add_argument("--run", nargs="+", metavar="ARG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        folder, tracking_uri, *storage = options.run
        sys.exit(exit_code(lambda: run_once(Path(folder), next(iter(storage), None), tracking_uri)))
    sys.exit(exit_code(lambda: compare(options.storage, options.seed)))


if __name__ == "__main__":
    main()
