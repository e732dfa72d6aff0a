"""The candidate pool: SAM's automatic masks of an image, computed once; every granularity is a filter over them.

Source: Segment Anything, https://arxiv.org/abs/2304.02643, section 5 and appendix B; segment-anything 1.0,
`SamAutomaticMaskGenerator`.
Differs from upstream: each mask has its level and its point; near-duplicates stay in the pool, because the filter's
settings decide which of them to keep; no crops, which would need encodings of their own; the image embedding is an
argument; masks of too low a predicted IoU are not decoded. With equal settings, and duplicates removed as upstream
(`filter.suppress_duplicates`), the masks are upstream's.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from harness.data.frame import Frame
from harness.model.mask_decoder.decoder import ImageEmbedding, MaskDecoder

POINTS_AT_ONCE = 16
"""Small enough that the activations of a chunk of points fit into a processor's cache."""

SLACK = 0.3
"""A mask is discarded before resizing if its stability is below the threshold by more than this.

Resizing raised the stability of 1300 masks of scenes by at most 0.27, and by that much only for masks of a few pixels.
"""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Thresholds of the pool; a filter's own thresholds cannot be lower.

    Args:
        points_per_side: of the square grid of points.
        min_iou: masks must have a predicted IoU above this.
        min_stability: masks must have at least this stability; empty masks are always discarded.
        stability_offset: shift of the mask threshold when stability is measured, in logits.
    """

    points_per_side: int
    min_iou: float
    min_stability: float
    stability_offset: float = 1.0


@dataclass(frozen=True, slots=True)
class CandidateRequest:
    """The masks of a SAM that a superpixel source requires.

    Args:
        model: weight name of the SAM.
        settings: of the pool.
        with_embedding: whether the source also uses the SAM's embedding of the image.
    """

    model: str
    settings: PoolSettings
    with_embedding: bool


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """K masks of one image of h x w pixels.

    Args:
        rles: COCO run lengths, compressed.
        points: (K, 2) row and column of the grid point that prompted each mask.
        levels: (K,) 0 subpart, 1 part, 2 whole.
        predicted_iou: (K,) IoU that SAM predicts for the mask.
        stability: (K,) IoU of the masks at logit thresholds of plus and minus the offset.
    """

    rles: list[dict[str, Any]]
    points: np.ndarray
    levels: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray

    def __len__(self) -> int:
        return len(self.rles)

    def select(self, which: np.ndarray) -> "Candidates":
        """The masks at these indices, or where this is True."""
        indices = np.arange(len(self))[which]
        kept = (values[indices] for values in (self.points, self.levels, self.predicted_iou, self.stability))
        return Candidates([self.rles[i] for i in indices], *kept)

    def masks(self) -> np.ndarray:
        """(K, h, w) bool."""
        return np.ascontiguousarray(coco.decode(self.rles).transpose(2, 0, 1)).astype(bool)

    def areas(self) -> np.ndarray:
        """(K,) pixels."""
        # One by one: `area` of pycocotools 2.0.11 on numpy 2 fails for more than 255 masks.
        return np.array([coco.area(rle) for rle in self.rles], np.int64)

    def boxes(self) -> np.ndarray:
        """(K, 4) left, top, right, bottom of the outermost pixels."""
        left, top, width, height = coco.toBbox(self.rles).reshape(-1, 4).T
        return np.stack([left, top, left + width - 1, top + height - 1], axis=1)

    def to_json(self) -> bytes:
        """A JSON list with one object per mask, with COCO's `segmentation`."""
        rows = [
            {
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "point": point.tolist(),
                "level": int(level),
                "predicted_iou": float(iou),
                "stability": float(stability),
            }
            for rle, point, level, iou, stability in zip(
                self.rles, self.points, self.levels, self.predicted_iou, self.stability, strict=True
            )
        ]
        return json.dumps(rows).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Candidates":
        """The inverse of `to_json`."""
        rows = json.loads(text)
        rles = [{**row["segmentation"], "counts": row["segmentation"]["counts"].encode()} for row in rows]
        return cls(
            rles,
            np.array([row["point"] for row in rows], np.int64).reshape(-1, 2),
            np.array([row["level"] for row in rows], np.int64),
            np.array([row["predicted_iou"] for row in rows], np.float32),
            np.array([row["stability"] for row in rows], np.float32),
        )

    @classmethod
    def joined(cls, parts: Sequence["Candidates"]) -> "Candidates":
        """The concatenation of several sets of candidates."""
        return cls(
            [rle for part in parts for rle in part.rles],
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("points", "levels", "predicted_iou", "stability")
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """The output of a SAM for one image, from which superpixels are selected.

    Args:
        candidates: its automatic masks.
        frame: position of the image in SAM's frame.
        embedding: (P, g, g) on the CPU; None if the source does not use it.
    """

    candidates: Candidates
    frame: Frame
    embedding: Tensor | None


def propose(head: MaskDecoder, embedding: Tensor, frame: Frame, settings: PoolSettings) -> Candidates:
    """All candidates of one image, computed in float32 even under autocast.

    On a CPU every thread processes its own points, because the work for one chunk is too small to share.

    Args:
        head: the mask decoder of a SAM, with three masks per point.
        embedding: (P, g, g) of the image.
        frame: position of the image in SAM's frame.
    """
    side = settings.points_per_side
    grid = np.stack(np.divmod(np.arange(side**2), side), axis=1)
    image_embedding = ImageEmbedding(embedding.unsqueeze(0))
    chunks = np.split(grid, range(POINTS_AT_ONCE, len(grid), POINTS_AT_ONCE))
    num_threads = torch.get_num_threads()
    num_workers = num_threads if embedding.device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            return Candidates.joined(
                list(workers.map(lambda chunk: _decode(head, image_embedding, chunk, frame, settings), chunks))
            )
    finally:
        torch.set_num_threads(num_threads)


@torch.inference_mode()
def _decode(
    head: MaskDecoder, image_embedding: ImageEmbedding, grid: np.ndarray, frame: Frame, settings: PoolSettings
) -> Candidates:
    """The candidates at some points of the grid, (K, 2) row and column."""
    device = image_embedding.coarse.device
    extent = np.array([frame.width, frame.height])
    points = torch.from_numpy((grid[:, ::-1] + 0.5) / settings.points_per_side * extent).float().to(device)
    same = torch.zeros(len(points), dtype=torch.long, device=device)
    with torch.autocast(device.type, enabled=False):
        found = head.at_points(image_embedding, points, same, settings.min_iou)
    stability = _stability(found.logits.cpu().numpy(), settings.stability_offset)
    near = np.flatnonzero(stability >= settings.min_stability - SLACK)
    logits = frame.restore(found.logits[torch.from_numpy(near)]).cpu().numpy()
    stability = _stability(logits, settings.stability_offset)
    stable = np.flatnonzero(stability >= settings.min_stability)
    prompt, level, iou = (x.cpu().numpy()[near[stable]] for x in (found.prompt, found.level, found.predicted_iou))
    decoded = Candidates(encode(logits[stable] > 0), grid[prompt], level, iou, stability[stable])
    return decoded.select(decoded.areas() > 0)


def _stability(logits: np.ndarray, offset: float) -> np.ndarray:
    """(K,) share of the pixels above -offset that are above +offset; 0 if there are none."""
    high, low = (np.array([np.count_nonzero(one) for one in logits > threshold]) for threshold in (offset, -offset))
    return (high / np.maximum(low, 1)).astype(np.float32)


def encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """Masks (K, h, w) bool as COCO run lengths."""
    return coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
