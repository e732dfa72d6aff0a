"""Keys of images in the caches. A process decodes an image file once for its key, not once per cache and batch."""

from functools import cache

import numpy as np

from harness.data.example import ImageFile
from harness.system.cache_folder import image_key


def picture_key(picture: np.ndarray | ImageFile) -> str:
    """Hash of an image's size and pixels; that of a file is kept until the file changes.

    Raises:
        DataError: its file is missing or invalid.
    """
    if isinstance(picture, np.ndarray):
        return image_key(picture)
    try:
        status = picture.path.stat()
    except OSError:
        return image_key(picture.read())  # raises the error that names the file
    return _file_key(picture, status.st_mtime_ns, status.st_size)


@cache
def _file_key(picture: ImageFile, modified_ns: int, num_bytes: int) -> str:  # noqa: ARG001 - they identify the content
    return image_key(picture.read())
