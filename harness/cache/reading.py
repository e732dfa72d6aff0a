"""Fast reading of cached arrays: names of files without hashing an image again, and files without their headers."""

import io
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from harness.data.example import Example, ImageFile
from harness.system.cache_folder import image_key

MAX_FILE_KEYS = 2**18
"""Image files whose hashes are kept."""
_array_keys: dict[int, str] = {}
"""By the identity of an array; an entry is removed with its array."""


def example_key(example: Example) -> str:
    """`image_key` of an example's image, computed once per image of a process, or again if its file has changed.

    Raises:
        DataError: the image file is missing or invalid.
    """
    picture = example.picture
    if isinstance(picture, ImageFile):
        try:
            status = picture.path.stat()
        except OSError:
            return image_key(example.image)
        return _file_key(picture, status.st_mtime_ns, status.st_size)
    key = _array_keys.get(id(picture))
    if key is None:
        key = _array_keys[id(picture)] = image_key(picture)
        weakref.finalize(picture, _array_keys.pop, id(picture), None).atexit = False
    return key


@lru_cache(MAX_FILE_KEYS)
def _file_key(picture: ImageFile, modified_ns: int, size: int) -> str:  # noqa: ARG001 - a changed file is another key
    return image_key(picture.read())


def read_arrays(paths: Sequence[Path]) -> np.ndarray:
    """The arrays of .npy files of one shape and dtype, stacked.

    The header of a file is parsed only where it differs from that of the first file.
    """
    content = paths[0].read_bytes()
    first = np.load(io.BytesIO(content))
    header = content[: len(content) - first.nbytes]
    stacked = np.empty((len(paths), *first.shape), first.dtype)
    stacked[0] = first
    for number, path in enumerate(paths[1:], start=1):
        content = path.read_bytes()
        if len(content) == len(header) + first.nbytes and content.startswith(header):
            stacked[number] = np.frombuffer(content, first.dtype, offset=len(header)).reshape(first.shape)
        else:
            stacked[number] = np.load(io.BytesIO(content))
    return stacked
