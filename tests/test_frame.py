"""One frame for everything: nothing cropped, padding known, and the way back to the original size."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from harness.data.frame import Frame, to_tensor


@pytest.mark.parametrize(("shape", "size"), [((100, 200), (32, 64)), ((200, 100), (64, 32)), ((64, 64), (64, 64))])
def test_the_longest_side_fills_the_frame_and_nothing_is_cropped(shape, size):
    image = np.full((*shape, 3), 200, np.uint8)
    frame = Frame.of(image.shape[:2], 64)
    assert (frame.height, frame.width) == size
    placed = frame.place_image(image)
    assert (placed[: size[0], : size[1]] == 200).all()
    assert placed.sum() == 200 * 3 * size[0] * size[1]


def test_labels_have_no_number_in_the_padding():
    frame = Frame.of((10, 20), 20)
    labels = frame.place_labels(np.arange(200).reshape(10, 20))
    assert labels[9, 19] == 199
    assert (labels[10:] == -1).all()


def test_a_patch_counts_if_it_holds_one_pixel_of_the_image():
    frame = Frame.of((21, 40), 40)
    assert frame.patch_mask((4, 4)).reshape(4, 4).all(axis=1).tolist() == [True, True, True, False]
    frame = Frame.of((20, 40), 40)
    assert frame.patch_mask((4, 4)).sum() == 8


def test_restoring_cuts_the_padding_off():
    """A mask that is positive just where the image is fills the original exactly."""
    frame = Frame.of((60, 120), 32)
    logits = torch.full((1, 32, 32), -1.0)
    logits[:, : frame.height, : frame.width] = 1.0
    restored = frame.restore(logits)
    assert restored.shape == (1, 60, 120)
    assert (restored > 0).all()


def test_an_image_of_the_frames_own_size_is_untouched():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    frame = Frame.of(image.shape[:2], 32)
    assert (frame.place_image(image) == image).all()
    logits = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    assert_close(frame.restore(logits), logits)
    assert to_tensor([image]).shape == (1, 3, 32, 32)
