"""Reading of cached arrays and hashes of images."""

from pathlib import Path

import numpy as np
from PIL import Image

from harness.cache.reading import example_key, read_arrays
from harness.data.example import Example, ImageFile
from harness.system.cache_folder import image_key


def _saved(folder: Path, *arrays: np.ndarray) -> list[Path]:
    paths = [folder / f"{number}.npy" for number in range(len(arrays))]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return paths


def test_arrays_equal_those_of_numpy(tmp_path):
    generator = np.random.default_rng(0)
    arrays = [generator.random((5, 3)).astype(np.float16) for _ in range(3)]
    paths = _saved(tmp_path, *arrays, np.asfortranarray(arrays[0] + 1))
    found = read_arrays(paths)
    assert found.dtype == np.float16
    assert np.array_equal(found, np.stack([np.load(path) for path in paths]))


def test_a_header_of_another_version_is_parsed(tmp_path):
    arrays = [np.arange(6.0).reshape(2, 3), np.ones((2, 3))]
    paths = _saved(tmp_path, *arrays)
    with paths[1].open("wb") as file:
        np.lib.format.write_array(file, arrays[1], version=(2, 0))
    assert np.array_equal(read_arrays(paths), np.stack(arrays))


def test_the_key_of_an_array_is_the_hash_of_the_image():
    first, second = np.zeros((4, 5, 3), np.uint8), np.ones((4, 5, 3), np.uint8)
    for picture in (first, second, first):
        assert example_key(Example("one", picture, (), ())) == image_key(picture)


def test_an_array_in_the_place_of_a_deleted_one_has_its_own_key():
    """Arrays of equal size are allocated in the same place again and again."""
    for value in range(20):
        picture = np.full((4, 5, 3), value, np.uint8)
        assert example_key(Example("one", picture, (), ())) == image_key(picture)
        del picture


def test_the_key_of_a_file_follows_its_content(tmp_path):
    path = tmp_path / "image.png"
    keys = []
    for value in (0, 200):
        image = np.full((4, 5, 3), value, np.uint8)
        image[0, :value] = 7
        Image.fromarray(image).save(path)
        example = Example("one", ImageFile(path, 4, 5), (), ())
        assert example_key(example) == example_key(example) == image_key(image)
        keys.append(example_key(example))
    assert keys[0] != keys[1]
