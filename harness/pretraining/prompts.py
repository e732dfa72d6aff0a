"""Point and box prompts for the objects of one image, and points that correct a predicted mask.

Source: Segment Anything, https://arxiv.org/abs/2304.02643, appendix A, "Training algorithm".
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from segment_anything.modeling import Sam
from torch import Tensor

BOX_JITTER = 0.1
"""Standard deviation of the noise on box corners, as a share of the sides."""
MAX_BOX_JITTER = 5
"""Largest noise on box corners, in pixels of the frame; SAM uses 20 of 1024."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """K prompts of one image, points before boxes, with n clicks each in round n.

    A point with its padding has as many tokens as the corners of a box, so the decoder processes both kinds together.

    Args:
        masks: (K, R, R) bool, the target of each prompt.
        points: (K, n, 2) clicks as x, y in pixels; the first click of a box prompt is a placeholder.
        labels: (K, n), 1 for a click inside the object, 0 for one outside.
        boxes: (K', 4) of the last K' prompts, x and y of the upper left and the lower right pixel.
    """

    masks: np.ndarray
    points: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray

    @property
    def num_points(self) -> int:
        """Number of point prompts."""
        return len(self.masks) - len(self.boxes)

    def embed(self, sam: Sam) -> Tensor:
        """(K, T, P) prompt tokens."""
        encoder, first = sam.prompt_encoder, self.num_points
        device = encoder.no_mask_embed.weight.device
        points = torch.from_numpy(self.points).float().to(device)
        labels = torch.from_numpy(self.labels).to(device)
        parts = []
        if first:
            parts.append(encoder(points=(points[:first], labels[:first]), boxes=None, masks=None)[0])
        if len(self.boxes):
            boxes = torch.from_numpy(self.boxes).float().to(device)
            # The first click of a box prompt is a placeholder.
            clicks = (points[first:, 1:], labels[first:, 1:]) if self.points.shape[1] > 1 else None
            parts.append(encoder(points=clicks, boxes=boxes, masks=None)[0])
        return torch.cat(parts)

    def corrected(self, predicted: np.ndarray, rng: np.random.Generator | None) -> "Prompts":
        """These prompts with one more click each, where the predicted mask is wrong.

        Args:
            predicted: (K, R, R) bool.
            rng: samples a pixel of the error; None takes the pixel farthest from the error's edge.
        """
        clicks = [_correction(mask, guess, rng) for mask, guess in zip(self.masks, predicted, strict=True)]
        points = np.array([[point] for point, _ in clicks])
        labels = np.array([[label] for _, label in clicks])
        return replace(
            self,
            points=np.concatenate([self.points, points], axis=1),
            labels=np.concatenate([self.labels, labels], axis=1),
        )


def draw(objects: np.ndarray, num_prompts: int, rng: np.random.Generator) -> Prompts:
    """Random points in, and noisy boxes around, the objects of an id map (R, R); every object once before any twice."""
    ids = np.unique(objects[objects > 0])
    repeats = -(-num_prompts // len(ids))
    chosen = np.concatenate([rng.permutation(ids) for _ in range(repeats)])[:num_prompts]
    masks = objects[None] == rng.permutation(chosen)[:, None, None]
    num_boxes = int(rng.binomial(num_prompts, 0.5))
    points = np.array([[_any_pixel(mask, rng)] for mask in masks])
    boxes = np.array([_jittered(box_of(mask), rng) for mask in masks[num_prompts - num_boxes :]]).reshape(-1, 4)
    return Prompts(masks, points, np.ones(points.shape[:2], np.int64), boxes)


def middle_points(masks: np.ndarray) -> Prompts:
    """The point of each mask (K, R, R) farthest from its edge, as in SAM's evaluation with one click."""
    points = np.array([[_middle(mask)] for mask in masks])
    return Prompts(masks, points, np.ones(points.shape[:2], np.int64), np.zeros((0, 4)))


def tight_boxes(masks: np.ndarray) -> Prompts:
    """The box around each mask (K, R, R)."""
    points = np.zeros((len(masks), 1, 2), np.int64)
    return Prompts(masks, points, points[..., 0], np.array([box_of(mask) for mask in masks]))


def box_of(mask: np.ndarray) -> np.ndarray:
    """(4,) x and y of the first and the last pixel of a mask (R, R)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])


def _jittered(box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sides = np.tile(box[2:] - box[:2] + 1, 2)
    return box + np.clip(rng.normal(size=4) * BOX_JITTER * sides, -MAX_BOX_JITTER, MAX_BOX_JITTER)


def _correction(mask: np.ndarray, guess: np.ndarray, rng: np.random.Generator | None) -> tuple[np.ndarray, int]:
    """A pixel (x, y) where the guess is wrong, else any of the mask, and whether it belongs to the mask."""
    wrong = mask != guess
    if not wrong.any():
        wrong = mask
    x, y = _any_pixel(wrong, rng) if rng is not None else _middle(wrong)
    return np.array([x, y]), int(mask[y, x])


def _any_pixel(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pixels = np.flatnonzero(mask)
    y, x = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
    return np.array([x, y])


def _middle(mask: np.ndarray) -> np.ndarray:
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = divmod(int(depth.argmax()), mask.shape[1])
    return np.array([x, y])
