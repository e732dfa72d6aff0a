"""`python -m harness.superpixels`: a sheet of any image, and clear errors."""

import numpy as np
import pytest
from PIL import Image

from harness.superpixels import get
from harness.superpixels.__main__ import COUNTS, granularities, main, tile
from harness.superpixels.granularity import NAMES


def test_a_sheet_has_one_row_per_image_and_one_column_per_granularity(tmp_path):
    sizes = {"wide.png": (40, 20), "tall.jpg": (15, 30)}
    for name, size in sizes.items():
        Image.new("RGB", size, "green").save(tmp_path / name)
    main(
        [
            *(str(tmp_path / name) for name in sizes),
            "--out",
            f"{tmp_path}/out/sheet.png",
            "--source",
            "grid",
            "--side",
            "56",
        ]
    )
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width == (1 + len(COUNTS)) * (2 * 56 + 12) + 12
        assert sheet.height == (2 * 28 + 42) + (2 * 56 + 42) + 12


def test_named_granularities_are_columns():
    assert list(granularities(get("sam"), None)) == list(NAMES)
    assert {config.model for config in granularities(get("sam"), "a.pth").values()} == {"a.pth"}


def test_a_superpixel_is_outlined_and_shows_its_mean_colour():
    labels = np.zeros((20, 20), np.int64)
    labels[:, 10:] = 1
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = [200, 100, 0]
    rendered = tile(image, labels)
    assert rendered.shape == (40, 40, 3)
    assert (rendered[20, 35] == [200, 100, 0]).all()
    assert (rendered[20, 2] == 0).all()
    assert (rendered[20] == 255).all(axis=-1).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.png"], "no.png is missing; correct the path"),
        (["broken.png"], "broken.png cannot be read as an image"),
        (["good.png", "--model", "sam-vit-b", "--source", "slic"], "--model cannot take effect, slic uses no model"),
        (["good.png", "--source", "slick"], "invalid choice"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    with pytest.raises(SystemExit) as raised:
        main(["--source", "grid", *arguments, "--out", "sheet.png"])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err
