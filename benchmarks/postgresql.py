"""A PostgreSQL server for benchmarks: its own data, a free port of the loopback, run as an ordinary user."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from harness.errors import HarnessError

_START_S = 60.0


class Database:
    """A running server.

    Args:
        folder: for its data and log; exists.
        programs: the folder of `initdb` and `pg_ctl`.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self.programs = folder, programs
        self.prefix = ["runuser", "-u", "nobody", "--"] if os.geteuid() == 0 else []
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._call("initdb", "-D", str(folder / "data"), "-U", "benchmark", "-A", "trust", "--no-sync")
        self.start()

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Self]:
        """A server that is stopped at the end, with its data removed.

        Raises:
            HarnessError: PostgreSQL is not installed.
        """
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            raise HarnessError("no PostgreSQL server under /usr/lib/postgresql; install one, or use the journal only")
        with tempfile.TemporaryDirectory() as place:
            database = cls(Path(place), found[-1])
            try:
                yield database
            finally:
                database._call("pg_ctl", "-D", str(database.folder / "data"), "-m", "immediate", "stop")

    @property
    def url(self) -> str:
        """For `--storage`."""
        return f"postgresql+psycopg2://benchmark@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            HarnessError: it does not start.
        """
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        data, until = str(self.folder / "data"), time.monotonic() + _START_S
        while True:
            try:
                self._call("pg_ctl", "-D", data, "-o", options, "-l", str(self.folder / "log"), "-w", "start")
                return
            except subprocess.CalledProcessError:  # after a crash, processes of the server take a while to end
                if time.monotonic() > until:
                    raise HarnessError(f"the server does not start:\n{(self.folder / 'log').read_text()}") from None
                time.sleep(0.5)

    def crash(self, seconds: float) -> None:
        """SIGKILL the server, and start it again after a pause."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        time.sleep(seconds)
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        command = [*self.prefix, str(self.programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder)
