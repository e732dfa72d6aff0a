"""SHA-256 of weight files and folders, remembered until a file changes."""

import hashlib
import json
import time
from pathlib import Path

from harness.errors import WeightsError, shorten
from harness.system.cache_folder import cache_dir
from harness.system.files import write_atomically

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf", "*.onnx")
MIN_AGE_S = 2
"""Seconds since a file's last change before its hash is remembered: two writes within one tick of the file system's
clock (at most 2 s) leave the same times, so a younger file could change unnoticed."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, computed once and then loaded from a stamp in the cache folder until the file changes.

    The stamp records the file's inode and change time; unlike the modification time, programs cannot set the latter.
    """
    state = _state(path)
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
    stamp = cache_dir() / "stamps" / f"{key}.json"
    if stamp.exists():
        stamped = json.loads(stamp.read_text())
        if stamped["state"] == state:
            return stamped["sha256"]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    is_old_enough = path.stat().st_ctime < time.time() - MIN_AGE_S
    if is_old_enough and _state(path) == state:
        write_atomically(stamp, json.dumps({"path": str(path), "state": state, "sha256": sha256}).encode())
    return sha256


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def weight_files(name: str, folder: Path) -> list[Path]:
    """Weight files of a model folder, then its config.json.

    Raises:
        WeightsError: the folder has no weights or no config.json.
    """
    found = sorted({path for pattern in WEIGHT_FILES for path in folder.glob(pattern)})
    if not found or not (folder / "config.json").exists():
        missing = "config.json" if found else f"weights ({', '.join(WEIGHT_FILES)})"
        raise WeightsError(
            f"{shorten(name)!r} is a folder without {missing}; use a folder as `save_pretrained` writes it"
        )
    return [*found, folder / "config.json"]


def folder_sha256(name: str, folder: Path) -> str:
    """SHA-256 over the names and hashes of a model folder's weight files and config.json."""
    lines = [f"{path.name} {sha256_of(path)}" for path in weight_files(name, folder)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
