"""The candidate pool: SAM's automatic masks of an image, made once; every granularity is a filter over them.

Source: Segment Anything, https://arxiv.org/abs/2304.02643, section 5 and appendix B; segment-anything 1.0,
`SamAutomaticMaskGenerator`.
Differs from upstream: each mask remembers its level and its point; near-duplicates stay in the pool, because which of
them survives depends on the settings of the filter; no crops, which would need encodings of their own; the image
embedding is given, not computed; masks of too low a predicted IoU are not drawn at all. With equal settings, and
duplicates removed as upstream does (`filter.suppress_duplicates`), the masks are upstream's.
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
"""Few enough that what points make of the image stays in a processor's cache."""

SLACK = 0.3
"""Masks whose stability before they are resized to the image falls short by more than this are left out at once.

Of the 1300 masks of some scenes none gained more than 0.27 by resizing, and those that gained so much had a few pixels.
"""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What is worth keeping for some granularity or other; all of it bounds what a filter can ask for.

    Args:
        points_per_side: of the square grid of points.
        min_iou: masks with a predicted IoU of no more are left out.
        min_stability: masks that are less stable are left out, and empty ones always.
        stability_offset: by how much the cut-off moves, in logits, when stability is measured.
    """

    points_per_side: int
    min_iou: float
    min_stability: float
    stability_offset: float = 1.0


@dataclass(frozen=True, slots=True)
class CandidateRequest:
    """What a superpixel source asks of a SAM.

    Args:
        model: weight name of the SAM.
        settings: which masks are kept.
        with_embedding: whether the source also reads the SAM's embedding of the image.
    """

    model: str
    settings: PoolSettings
    with_embedding: bool


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """K masks of one image of h x w pixels.

    Args:
        rles: COCO run lengths, compressed.
        points: (K, 2) the number (row, column) of the grid point that each answers.
        levels: (K,) 0 subpart, 1 part, 2 whole.
        predicted_iou: (K,) how good SAM thinks the mask is.
        stability: (K,) IoU of the mask's cuts at logits of plus and minus the offset.
    """

    rles: list[dict[str, Any]]
    points: np.ndarray
    levels: np.ndarray
    predicted_iou: np.ndarray
    stability: np.ndarray

    def __len__(self) -> int:
        return len(self.rles)

    def select(self, which: np.ndarray) -> "Candidates":
        """Those at these indices, or where this is True."""
        indices = np.arange(len(self))[which]
        kept = (values[indices] for values in (self.points, self.levels, self.predicted_iou, self.stability))
        return Candidates([self.rles[i] for i in indices], *kept)

    def masks(self) -> np.ndarray:
        """(K, h, w) bool."""
        return np.ascontiguousarray(coco.decode(self.rles).transpose(2, 0, 1)).astype(bool)

    def areas(self) -> np.ndarray:
        """(K,) pixels."""
        # One by one: pycocotools 2.0.11 on numpy 2 fails when it is asked about more than 255.
        return np.array([coco.area(rle) for rle in self.rles], np.int64)

    def boxes(self) -> np.ndarray:
        """(K, 4) left, top, right, bottom of the outermost pixels."""
        left, top, width, height = coco.toBbox(self.rles).reshape(-1, 4).T
        return np.stack([left, top, left + width - 1, top + height - 1], axis=1)

    def to_json(self) -> bytes:
        """A list of objects, one a mask, with COCO's `segmentation`."""
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
        """What `to_json` wrote."""
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
        """All of these, in order."""
        return cls(
            [rle for part in parts for rle in part.rles],
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("points", "levels", "predicted_iou", "stability")
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """What SAM makes of one image; superpixels are chosen from it.

    Args:
        candidates: its automatic masks.
        frame: where the image lies in SAM's frame.
        embedding: (P, g, g) on the CPU; None where the superpixels need no embedding.
    """

    candidates: Candidates
    frame: Frame
    embedding: Tensor | None


def propose(head: MaskDecoder, embedding: Tensor, frame: Frame, settings: PoolSettings) -> Candidates:
    """All candidates of one image, in float32 also where others around it are asked in half of that.

    On a CPU every core asks about points of its own: what a few points need is too little for all cores to share.

    Args:
        head: of a SAM, with its three masks a point.
        embedding: (P, g, g) of the image.
        frame: where the image lies in SAM's frame.
    """
    side = settings.points_per_side
    grid = np.stack(np.divmod(np.arange(side**2), side), axis=1)
    looked_at = ImageEmbedding(embedding.unsqueeze(0))
    chunks = np.split(grid, range(POINTS_AT_ONCE, len(grid), POINTS_AT_ONCE))
    num_threads = torch.get_num_threads()
    num_workers = num_threads if embedding.device.type == "cpu" else 1
    try:
        with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as workers:
            return Candidates.joined(
                list(workers.map(lambda some: _ask(head, looked_at, some, frame, settings), chunks))
            )
    finally:
        torch.set_num_threads(num_threads)


@torch.inference_mode()
def _ask(
    head: MaskDecoder, looked_at: ImageEmbedding, grid: np.ndarray, frame: Frame, settings: PoolSettings
) -> Candidates:
    """The candidates at some points of the grid, (K, 2) row and column."""
    device = looked_at.coarse.device
    extent = np.array([frame.width, frame.height])
    points = torch.from_numpy((grid[:, ::-1] + 0.5) / settings.points_per_side * extent).float().to(device)
    same = torch.zeros(len(points), dtype=torch.long, device=device)
    with torch.autocast(device.type, enabled=False):
        found = head.at_points(looked_at, points, same, settings.min_iou)
    stability = _stability(found.logits.cpu().numpy(), settings.stability_offset)
    near = np.flatnonzero(stability >= settings.min_stability - SLACK)
    logits = frame.restore(found.logits[torch.from_numpy(near)]).cpu().numpy()
    stability = _stability(logits, settings.stability_offset)
    stable = np.flatnonzero(stability >= settings.min_stability)
    prompt, level, iou = (x.cpu().numpy()[near[stable]] for x in (found.prompt, found.level, found.predicted_iou))
    answers = Candidates(encode(logits[stable] > 0), grid[prompt], level, iou, stability[stable])
    return answers.select(answers.areas() > 0)


def _stability(logits: np.ndarray, offset: float) -> np.ndarray:
    """(K,) share of the pixels above -offset that are above +offset; 0 where there are none."""
    high, low = (np.array([np.count_nonzero(one) for one in logits > threshold]) for threshold in (offset, -offset))
    return (high / np.maximum(low, 1)).astype(np.float32)


def encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """Masks (K, h, w) bool as COCO run lengths."""
    return coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
