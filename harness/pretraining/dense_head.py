"""An auxiliary head, used during training only: it predicts the box of the object at each position of the embedding.

The mask loss of a prompt supervises one object; this loss supervises all objects at once, which gives an image encoder
with random weights a training signal at every position of every image. The head is not part of the written model.

Source: box distances as in FCOS, https://arxiv.org/abs/1904.01355, section 3.1.
"""

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from harness.pretraining.prompts import box_of

CELLS = 4
"""Cells per side of a patch."""
UNIT = 32.0
"""Pixels per unit of a predicted distance."""


class DenseHead(nn.Module):
    """Predicts for each cell whether it shows an object, and the distances to the sides of the object's visible box."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, 5 * CELLS**2, 1)

    def loss(self, embedding: Tensor, objects: np.ndarray) -> Tensor:
        """The loss of image embeddings (B, P, g, g) with id maps (B, R, R)."""
        outputs = rearrange(self.project(embedding), "b (c i j) h w -> c b (h i) (w j)", c=5, i=CELLS, j=CELLS)
        targets, is_object = (
            torch.from_numpy(part).to(embedding.device) for part in _targets(objects, len(outputs[0, 0]))
        )
        found = F.binary_cross_entropy_with_logits(outputs[0], is_object.float())
        return found + F.smooth_l1_loss(outputs[1:][:, is_object], targets[:, is_object], beta=0.1)


def _targets(objects: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (4, B, h, h) to the left, top, right and bottom of the box, float32, and (B, h, h) bool; h = side."""
    step = objects.shape[-1] // side
    cells = objects[:, step // 2 :: step, step // 2 :: step]
    boxes = np.zeros((len(objects), int(objects.max()) + 1, 4), np.float32)
    for image, ids in enumerate(objects):
        for one in np.unique(ids[ids > 0]):
            boxes[image, one] = box_of(ids == one)
    box = np.stack([boxes[image][ids] for image, ids in enumerate(cells)])
    at = np.arange(side, dtype=np.float32) * step + step // 2
    x, y = at[None, None, :], at[None, :, None]
    distances = np.stack([x - box[..., 0], y - box[..., 1], box[..., 2] - x, box[..., 3] - y]) / UNIT
    return distances, cells > 0
