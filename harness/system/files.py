"""Atomic writes: files are written under a temporary name and then renamed."""

import errno
import io
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

_LITTLE_BYTES = 1 << 20
"""A disk with less free space than this is full."""


def find(name: str | Path) -> Path | None:
    """The file or folder of this name, with `~` expanded; None if it does not exist or the name is invalid."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, `~` of an unknown user
        return None


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def partial_path(path: Path) -> Path:
    """A unique temporary path in the folder of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path, then renames the file to `path`.

    Raises:
        OSError: the disk is full. It replaces errors of torch and safetensors that do not name the cause.
    """
    partial = partial_path(path)
    try:
        write(partial)
        partial.replace(path)
    except Exception as error:
        is_named = os.strerror(errno.ENOSPC) in str(error)  # safetensors has removed its part of the file by now
        is_met = is_named or shutil.disk_usage(path.parent).free < _LITTLE_BYTES
        if is_disk_full(error) or not is_met:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary folder, then renames it to `path` unless another process has created that."""
    partial = partial_path(path)
    partial.mkdir()
    try:
        write(partial)
        partial.replace(path)
    except OSError:
        if not path.exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_atomically(path: Path, content: bytes | np.ndarray) -> None:
    """Writes bytes, or an array as .npy."""
    if isinstance(content, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, content, allow_pickle=False)
        content = buffer.getvalue()
    replace_file(path, lambda partial: partial.write_bytes(content))
