"""The square frame that the vision encoder, the superpixels and SAM share.

The longest side is resized to the frame and the rest is padded on the right and at the bottom, as in SAM. Nothing is
cropped, because targets outside of a crop would lower the score of every projector.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Frame:
    """The position of an image in the square frame.

    Args:
        side: R, side of the frame in pixels.
        height, width: of the resized image, in the frame's upper left corner.
        original_height, original_width: of the image before resizing.
    """

    side: int
    height: int
    width: int
    original_height: int
    original_width: int

    @classmethod
    def of(cls, size: tuple[int, ...], side: int) -> "Frame":
        """The frame of an image of this size (h, w)."""
        height, width = size
        scale = side / max(height, width)
        return cls(side, max(1, round(height * scale)), max(1, round(width * scale)), height, width)

    def place_image(self, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 -> (R, R, 3) uint8, zero in the padding."""
        framed = np.zeros((self.side, self.side, 3), np.uint8)
        framed[: self.height, : self.width] = self.resize(image, Image.Resampling.BILINEAR)
        return framed

    def resize(self, image: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        """(h, w) or (h, w, 3) -> the resized image without its padding."""
        if image.shape[:2] == (self.height, self.width):
            return image
        return np.asarray(Image.fromarray(image).resize((self.width, self.height), resampling))

    def place_labels(self, labels: np.ndarray) -> np.ndarray:
        """A label map of the resized image (height, width) -> (R, R) int64, -1 in the padding."""
        framed = np.full((self.side, self.side), -1, np.int64)
        framed[: self.height, : self.width] = labels
        return framed

    def place_mask(self, mask: np.ndarray) -> np.ndarray:
        """(h, w) bool of the original image -> (R, R) bool, False in the padding."""
        framed = np.zeros((self.side, self.side), bool)
        framed[: self.height, : self.width] = self.resize(mask, Image.Resampling.NEAREST)
        return framed

    def valid_mask(self) -> np.ndarray:
        """(R, R) bool, True on the image, False in the padding."""
        valid_mask = np.zeros((self.side, self.side), bool)
        valid_mask[: self.height, : self.width] = True
        return valid_mask

    def patch_mask(self, grid: tuple[int, int]) -> np.ndarray:
        """(N,) bool, True where a patch contains at least one pixel of the image."""
        rows = np.arange(grid[0]) * self.side / grid[0] < self.height
        columns = np.arange(grid[1]) * self.side / grid[1] < self.width
        return (rows[:, None] & columns[None, :]).ravel()

    def restore(self, logits: Tensor) -> Tensor:
        """Mask logits of the frame (M, h, w) -> (M, original_height, original_width).

        As in SAM: resized to the frame, cropped to the image, then resized to the original size.
        """
        framed = F.interpolate(logits.float()[:, None], (self.side, self.side), mode="bilinear", align_corners=False)
        cropped = framed[..., : self.height, : self.width]
        if (self.height, self.width) != (self.original_height, self.original_width):
            size = (self.original_height, self.original_width)
            cropped = F.interpolate(cropped, size, mode="bilinear", align_corners=False)
        return cropped[:, 0]


def to_tensor(framed: list[np.ndarray]) -> Tensor:
    """Framed images (R, R, 3) uint8 -> (B, 3, R, R) float in 0..1."""
    return rearrange(torch.from_numpy(np.stack(framed)), "b h w c -> b c h w").float() / 255
