"""From candidates to superpixels: scores by level, duplicate suppression, then FMA-WSSS's "rock, sand, water".

Source: FMA-WSSS, https://arxiv.org/abs/2312.03585; https://github.com/HAL-42/FMA-WSSS, settings `l2_nmsf_s1_rsw3`.
Differs from the paper: candidates come from one encoding of the image, without crops; masks below the smallest area are
discarded and not repaired; and the masks become a partition. A pixel in several masks belongs to the mask of the
smallest level, and among these to the one with the best score. (FMA-WSSS prefers the largest level, then the class
score, which does not exist here. The filter keeps parts only where they are wanted, so they must stay visible.)
"""

from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco
from scipy import ndimage
from skimage import measure
from torchvision.ops import nms

from harness.superpixels.candidates import Candidates

WHOLE, PART, SUBPART = 2, 1, 0
WHOLE_IOU_BONUS = 0.1
"""Added to the predicted IoU of wholes before comparison with the threshold."""
WHOLE_RANK_BONUS = 1.0
"""Added to it in duplicate suppression, so that a whole is preferred to any part."""
MAX_BOX_IOU = 0.7


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """The settings of a granularity.

    Args:
        points_per_side: of the grid whose masks are used; at most the pool's.
        min_iou: predicted IoU must be above this; for wholes, above this minus a bonus.
        min_stability: stability must reach this.
        max_overlap: a part is kept if its share inside every mask kept before is below this; above 1, always.
        min_area: in pixels.
    """

    points_per_side: int
    min_iou: float
    min_stability: float
    max_overlap: float
    min_area: float


def choose(candidates: Candidates, settings: FilterSettings, pool_points_per_side: int) -> Candidates:
    """The masks that become superpixels; they may still overlap."""
    is_good = (
        on_grid(candidates.points, pool_points_per_side, settings.points_per_side)
        & (candidates.predicted_iou + WHOLE_IOU_BONUS * (candidates.levels == WHOLE) > settings.min_iou)
        & (candidates.stability >= settings.min_stability)
    )
    good = candidates.select(is_good)
    good = good.select(good.areas() >= settings.min_area)
    distinct = good.select(suppress_duplicates(good, WHOLE_RANK_BONUS))
    return distinct.select(rock_sand_water(distinct, settings.max_overlap))


def on_grid(points: np.ndarray, pool_side: int, side: int) -> np.ndarray:
    """(K,) bool, whether points (K, 2) of the pool's grid are on a coarser one, made of the middle of its cells.

    If `pool_side` is an odd multiple of `side`, this is SAM's own grid of that size; otherwise the nearest to it.
    """
    selected = ((np.arange(side) + 0.5) * pool_side / side).astype(int)
    rows, columns = np.isin(points, selected).T
    return rows & columns


def suppress_duplicates(
    candidates: Candidates, whole_bonus: float = 0.0, max_box_iou: float = MAX_BOX_IOU
) -> np.ndarray:
    """Indices of the masks left after non-maximum suppression of their boxes, best first."""
    rank = candidates.predicted_iou + np.float32(whole_bonus) * (candidates.levels == WHOLE)
    boxes = torch.from_numpy(candidates.boxes()).float()
    return nms(boxes, torch.from_numpy(rank), max_box_iou).numpy()


def rock_sand_water(candidates: Candidates, max_overlap: float) -> np.ndarray:
    """(K,) bool: all wholes, then the parts that fit between them, then the subparts that fit between all of these.

    A mask fits if its share inside every mask kept at the levels above is below `max_overlap`.
    """
    levels = candidates.levels
    kept = levels == WHOLE
    for level in (PART, SUBPART):
        added = np.flatnonzero(levels == level)
        kept_rles = [candidates.rles[i] for i in np.flatnonzero(kept)]
        if kept_rles and len(added):
            # With `iscrowd`, the intersection is divided by the area of the first mask alone.
            shares = coco.iou([candidates.rles[i] for i in added], kept_rles, [True] * len(kept_rles))
            added = added[shares.max(axis=1) < max_overlap]
        kept[added] = True
    return kept


def label_map(candidates: Candidates, height: int, width: int) -> np.ndarray:
    """(h, w) index of the mask to which a pixel belongs, -1 if there is none.

    Subparts take precedence over parts and parts over wholes; within a level, the mask with the best score, which is
    predicted IoU times stability.
    """
    labels = np.full((height, width), -1, np.int32)
    if len(candidates):
        masks = candidates.masks()
        for number in np.lexsort((candidates.predicted_iou * candidates.stability, -candidates.levels)):
            labels[masks[number]] = number
    return labels


def absorb_fragments(labels: np.ndarray, min_area: float) -> np.ndarray:
    """Merges fragments below `min_area` pixels, covered or not, into the nearest larger fragment."""
    fragments = measure.label(labels, background=labels.min() - 1, connectivity=1)
    sizes = np.bincount(fragments.ravel())
    is_small = (sizes < min(min_area, sizes.max()))[fragments]
    if not is_small.any():
        return labels
    nearest = ndimage.distance_transform_edt(is_small, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]
