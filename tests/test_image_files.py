"""Image files load upright, as with OpenCV, unless their annotations are for the stored orientation."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from harness.data.__main__ import main
from harness.data.datasets import reasonseg
from harness.data.example import ImageFile, read_image
from harness.errors import DataError
from harness.superpixels.__main__ import read as read_for_sheet
from tests import datasets

STORED = np.zeros((24, 40, 3), np.uint8)
STORED[:8, :8] = 255
"""A white corner on black: the eight orientations differ in its position or in the shape of the image."""


def write(path: Path, orientation: int, pixels: np.ndarray = STORED) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, exif=exif.tobytes())
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_an_image_loads_as_with_opencv(suffix: str, orientation: int, tmp_path: Path) -> None:
    path = write(tmp_path / f"x.{suffix}", orientation)
    found = ImageFile.of(path)
    image = found.read()
    assert image.shape == (found.height, found.width, 3) == ((40, 24, 3) if orientation > 4 else (24, 40, 3))
    if suffix in ("jpg", "png"):  # OpenCV 5.0 ignores the orientation of a WebP and fails at that of a TIFF
        expected = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        # The two decoders round differently.
        np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=3)


@pytest.mark.parametrize("orientation", [6, 8])
def test_an_image_stays_as_stored_if_only_that_has_the_annotated_size(orientation: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", orientation)
    assert np.array_equal(ImageFile(path, 24, 40).read(), STORED)
    assert ImageFile(path, 40, 24).read().shape == (40, 24, 3)
    for size in ((24, 40), (40, 24)):
        assert ImageFile(path, *size).actual() == ImageFile(path, *size)
    with pytest.raises(DataError, match="has 24 x 40 pixels, but its annotations are for 24 x 41"):
        ImageFile(path, 41, 24).read()


def test_an_image_that_fits_both_ways_is_upright(tmp_path: Path) -> None:
    square = STORED[:24, :24]
    path = write(tmp_path / "x.png", 6, square)
    assert np.array_equal(ImageFile(path, 24, 24).read(), np.rot90(square, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"no exif"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_leaves_an_image_as_stored(suffix: str, exif: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(STORED).save(path, exif=exif)
    assert ImageFile.of(path).read().shape == STORED.shape


def test_check_accepts_annotations_of_either_orientation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = datasets.made()
    datasets.write_refer(tmp_path, examples, ["train", "val", "testA", "testB"])
    path = tmp_path / "refcoco" / "instances.json"
    content = json.loads(path.read_text())
    for number, (height, width) in enumerate([(24, 40), (40, 24)]):
        content["images"][number].update(height=height, width=width)
        write(tmp_path / datasets.IMAGES / content["images"][number]["file_name"], 6)
        for one in content["annotations"]:
            if one["image_id"] == content["images"][number]["id"]:
                one["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    path.write_text(json.dumps(content))
    main(["check", "refer", "--root", str(tmp_path)])
    assert "ok refcoco (unc): all 4 image files exist" in capsys.readouterr().out


def test_polygons_of_reasonseg_are_rendered_on_the_upright_image(tmp_path: Path) -> None:
    """LISA renders them on images from OpenCV."""
    shapes = [{"label": "target", "points": [[2, 30], [10, 30], [10, 38], [2, 38]]}]
    datasets.write_reasonseg(tmp_path, "a", STORED, {"shapes": shapes, "text": ["what"], "is_sentence": False})
    write(tmp_path / "ReasonSeg" / "test" / "a.jpg", 6)
    (example,) = reasonseg.load(reasonseg.Config(root=tmp_path), "test")
    assert example.size == example.image.shape[:2] == (40, 24)
    assert example.mask(example.expressions[0])[30:39, 2:11].all()


def test_the_sheet_of_superpixels_does_not_clip_sixteen_bits(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert np.array_equal(read_for_sheet(tmp_path / "x.png", 8)[..., 0], values >> 8)


def test_a_decompression_bomb_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.png", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (read_image, ImageFile.of, lambda one: read_for_sheet(one, 8)):
        with pytest.raises(DataError, match=r"x.png cannot be read as an image \(Image size"):
            read(path)
