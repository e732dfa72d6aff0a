"""Kills workers, the run and its database at random, and counts what is lost: `python -m benchmarks.chaos`.

100 cells that take .3 s each instead of training (rows, samples, leases and the queue are real), 8 workers, 20
SIGKILLs, one full disk, and an MLflow server that does not answer. Everything runs on this machine; a PostgreSQL
server, where its programs are installed, listens on the loopback only.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from rich.console import Console

from harness import Study
from harness.execution.run_study import Team, execute
from harness.monitoring.progress import LineProgress, Progress
from harness.monitoring.tracker import Tracker
from harness.results.columns import SAMPLE_COLUMNS
from harness.results.run_folder import Row, RunFolder
from harness.study.study import Cell
from harness.system.lease import read
from harness.system.shares import Share
from harness.worker.worker import Limits

NUM_WORKERS, NUM_KILLS, SECONDS = 8, 20, 0.3
DEADLINE_S = 900.0
UNREACHABLE = "http://127.0.0.1:9"
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
        """A line in started.log, a row after each of two stages, and samples."""
        with (folder.path / "started.log").open("a", encoding="utf-8") as file:
            file.write(f"{cell.id}\n")
        row: Row = {**cell.columns, "started_at": datetime.now(UTC).isoformat(), "reason": "", "failed_stage": ""}
        for stage in ("trained", "illustrated"):
            progress.note(stage)
            time.sleep(SECONDS / 2)
            done = stage == "illustrated"
            row |= {"status": "done" if done else "unfinished", "stage": stage, "giou": 0.5 + cell.seed / 100}
            folder.write_cell(row, _samples(cell) if done else None)
        return row


def _samples(cell: Cell) -> pd.DataFrame:
    keys = {"cell": cell.id, "arm": cell.arm, "seed": cell.seed}
    return pd.DataFrame([{**dict.fromkeys(SAMPLE_COLUMNS), **keys, "expression_id": i, "iou": 0.5} for i in range(4)])


def run_once(folder: Path, storage: str | None) -> int:
    """One run of the study in this process; returns how many cells failed."""
    study, console = Study.from_dict(STUDY, name="chaos"), Console(stderr=True)
    team = Team([Share(1)] * NUM_WORKERS, QuickCells, console)
    tracker = Tracker(study, RunFolder(folder), UNREACHABLE)
    outcome = execute(
        study,
        RunFolder(folder),
        storage,
        QuickCells(),
        LineProgress(console),
        tracker,
        team=team,
        limits=Limits(retries=9),
    )
    return outcome.num_failed


def chaos(folder: Path, storage: str | None, database: "Database | None", seed: int) -> str:
    """Run the study to its end under kills; returns one line of figures."""
    chance, started = random.Random(seed), time.monotonic()
    command = [
        sys.executable,
        "-m",
        "benchmarks.chaos",
        "--run",
        str(folder),
        *(["--storage", storage] if storage else []),
    ]
    runs, kills, next_kill, is_filled = 0, Counter[str](), time.monotonic() + 15, False
    process: subprocess.Popen[bytes] | None = None
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        while time.monotonic() - started < DEADLINE_S:
            if process is None:
                process, runs = subprocess.Popen(command, stderr=log, stdout=log), runs + 1
            code = process.poll()
            if code == 0:
                break
            if code is not None:
                process = None
                continue
            workers = [found[0].pid for path in RunFolder(folder).leases() if (found := read(path))]
            if workers and kills.total() < NUM_KILLS and time.monotonic() >= next_kill:
                kills[_kill(chance, workers, process, database)] += 1
                next_kill = time.monotonic() + chance.uniform(0.5, 2.0)
            if kills.total() == NUM_KILLS // 2 and not is_filled:
                is_filled = True
                _fill_disk(folder)
            time.sleep(0.1)
    return _figures(folder, storage, runs, kills, is_filled, time.monotonic() - started)


def _kill(
    chance: random.Random, workers: list[int], run: "subprocess.Popen[bytes]", database: "Database | None"
) -> str:
    """Kill one process; returns its kind."""
    kind = chance.choices(("worker", "run", "database"), (7, 2, 1 if database else 0))[0]
    if kind == "database" and database is not None:
        database.crash()
        database.start()
    elif kind == "run":
        run.kill()
        run.wait()
    else:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
    return kind


def _fill_disk(folder: Path) -> None:
    """Leave no space for some seconds, where the folder is a file system of its own."""
    if not os.path.ismount(folder.parent):
        return
    filler = folder.parent / "filler"
    try:
        with filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
    except OSError:
        time.sleep(4)
    filler.unlink()


def _figures(folder: Path, storage: str | None, runs: int, kills: Counter[str], is_filled: bool, seconds: float) -> str:
    study = Study.from_dict(STUDY, name="chaos")
    planned = [cell.id for cell in study.cells()]
    results = pd.read_parquet(RunFolder(folder).results)
    samples = pd.read_parquet(RunFolder(folder).samples)
    done = results[results["status"] == "done"]["cell"].tolist()
    starts = len((folder / "started.log").read_text(encoding="utf-8").split())
    name = "journal" if storage is None else "postgresql"
    wrong = int((samples.groupby("cell").size() != 4).sum())
    disk = "full once" if is_filled and os.path.ismount(folder.parent) else "never full"
    return (
        f"{name}: {len({*done} & {*planned})} of {len(planned)} cells done, {len({*planned} - {*done})} lost, "
        f"{len(done) - len({*done})} doubled, {wrong} with a wrong number of samples; killed {dict(kills)}, "
        f"disk {disk}; {runs} runs, {starts} starts of cells, {seconds:.0f} s"
    )


class Database:
    """A PostgreSQL server of its own on a free port of the loopback, run as an ordinary user."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        self.prefix = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []
        self.port = random.Random(os.getpid()).randrange(20_000, 30_000)
        folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        self._call("initdb", "-D", str(folder / "data"), "-U", "chaos", "-A", "trust", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        """For `--storage`."""
        return f"postgresql+psycopg2://chaos@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        data = str(self.folder / "data")
        for _ in range(60):  # after a crash, the server's other processes take a while to end
            with suppress(subprocess.CalledProcessError):
                self._call("pg_ctl", "-D", data, "-o", options, "-l", str(self.folder / "log"), "-w", "start")
                return
            time.sleep(0.5)
        raise RuntimeError(f"the server does not start; see {self.folder / 'log'}")

    def crash(self) -> None:
        """SIGKILL the server."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        time.sleep(1)

    def stop(self) -> None:
        """Stop the server."""
        self._call("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")

    def _call(self, program: str, *arguments: str) -> None:
        command = [*self.prefix, str(self.programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder)


@contextmanager
def small_disk() -> Iterator[Path]:
    """A folder on a file system of 64 MiB, where this user may mount one; else in the temporary folder."""
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode == 0
    try:
        yield folder
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def main() -> None:
    """Both storages, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--run", type=Path, metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        sys.exit(1 if run_once(options.run, options.storage) else 0)
    with small_disk() as folder:
        print(chaos(folder / "journal", None, None, options.seed), flush=True)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        print("postgresql: not run, its programs are not under /usr/lib/postgresql")
        return
    with tempfile.TemporaryDirectory() as place, small_disk() as folder:
        Path(place).chmod(0o755)
        database = Database(Path(place) / "database", found[-1])
        try:
            print(chaos(folder / "postgresql", database.url, database, options.seed), flush=True)
        finally:
            database.stop()


if __name__ == "__main__":
    main()
