"""Keys of images in the caches: equal to the hash of the pixels, and kept for a file until it changes."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cache.picture_key import picture_key
from harness.data.example import ImageFile
from harness.errors import DataError
from harness.system.cache_folder import image_key

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 6, 10, 3), np.uint8)


def write(path: Path, pixels: np.ndarray, modified_ns: int) -> None:
    """A BMP file, whose number of bytes depends on its size in pixels only."""
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(modified_ns, modified_ns))


def test_a_file_has_the_key_of_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.bmp"
    write(path, PIXELS[0], 10**18)
    assert picture_key(ImageFile(path, 6, 10)) == picture_key(PIXELS[0]) == image_key(PIXELS[0])


def test_a_file_is_decoded_again_only_after_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.bmp"
    picture = ImageFile(path, 6, 10)
    write(path, PIXELS[0], 10**18)
    assert picture_key(picture) == image_key(PIXELS[0])
    # With the size and the time of the former file, other pixels are not noticed, because nothing is decoded.
    write(path, PIXELS[1], 10**18)
    assert picture_key(picture) == image_key(PIXELS[0])
    write(path, PIXELS[1], 10**18 + 1)
    assert picture_key(picture) == image_key(PIXELS[1])


def test_a_file_that_is_removed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.bmp"
    picture = ImageFile(path, 6, 10)
    write(path, PIXELS[0], 10**18)
    picture_key(picture)
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing"):
        picture_key(picture)
