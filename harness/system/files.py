"""Files that are there are whole: written under another name, then moved into place in one step."""

import io
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np


def find(name: str | Path) -> Path | None:
    """The file or folder of this name, `~` written out; None where there is none, or where no path can be so named."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, `~` of an unknown user
        return None


def partial_path(path: Path) -> Path:
    """A name beside `path`, its own to this call, to write under before the file or folder is moved into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` make the file under another name, then moves it into place."""
    partial = partial_path(path)
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` fill a folder of another name, then moves it into place, unless another process was faster."""
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
