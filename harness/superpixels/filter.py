"""From candidates to superpixels: level-aware scores, duplicate suppression, then "rock, sand, water".

Source: FMA-WSSS, https://arxiv.org/abs/2312.03585; https://github.com/HAL-42/FMA-WSSS, settings `l2_nmsf_s1_rsw3`.
Differs from the paper: candidates come from one encoding of the image, without crops; masks under the smallest area are
dropped and not mended; and the masks become a partition. Overlaps have one rule: of the masks that hold a pixel, one of
the smallest level owns it, and of these the best. (FMA-WSSS lets the largest level win, then the class score, which a
projector has not; but parts are only let in where they are wanted, so here they show.)
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
"""Added to the predicted IoU of wholes when it is held against the threshold."""
WHOLE_RANK_BONUS = 1.0
"""Added to it when duplicates compete, so that a whole beats any part."""
MAX_BOX_IOU = 0.7


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """Granularity.

    Args:
        points_per_side: of the grid whose masks are looked at; no more than the pool's.
        min_iou: predicted IoU must be above; for wholes, above this less a bonus.
        min_stability: stability must reach this.
        max_overlap: a part is added where its share inside any mask kept before is below; above 1, always.
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
    """(K,) bool, whether points (K, 2) of the pool's grid are on a coarser one: of each of its cells, the middle one.

    Where `pool_side` is an odd multiple of `side`, this is the grid that SAM itself would ask; else the nearest to it.
    """
    chosen = ((np.arange(side) + 0.5) * pool_side / side).astype(int)
    rows, columns = np.isin(points, chosen).T
    return rows & columns


def suppress_duplicates(
    candidates: Candidates, whole_bonus: float = 0.0, max_box_iou: float = MAX_BOX_IOU
) -> np.ndarray:
    """Indices of the masks left when boxes that overlap too much keep the best of them, best first."""
    rank = candidates.predicted_iou + np.float32(whole_bonus) * (candidates.levels == WHOLE)
    boxes = torch.from_numpy(candidates.boxes()).float()
    return nms(boxes, torch.from_numpy(rank), max_box_iou).numpy()


def rock_sand_water(candidates: Candidates, max_overlap: float) -> np.ndarray:
    """(K,) bool: all wholes, then the parts that fit between them, then the subparts that fit between all those.

    A mask fits if its share inside every single mask kept before its level is below `max_overlap`.
    """
    levels = candidates.levels
    kept = levels == WHOLE
    for level in (PART, SUBPART):
        poured = np.flatnonzero(levels == level)
        rocks = [candidates.rles[i] for i in np.flatnonzero(kept)]
        if rocks and len(poured):
            # With `iscrowd`, the intersection is divided by the area of the first mask alone.
            inside = coco.iou([candidates.rles[i] for i in poured], rocks, [True] * len(rocks))
            poured = poured[inside.max(axis=1) < max_overlap]
        kept[poured] = True
    return kept


def label_map(candidates: Candidates, height: int, width: int) -> np.ndarray:
    """(h, w) number of the mask that owns a pixel, -1 where there is none.

    Subparts own before parts and parts before wholes; within a level, the mask with the best score, predicted IoU times
    stability.
    """
    labels = np.full((height, width), -1, np.int32)
    if len(candidates):
        masks = candidates.masks()
        for number in np.lexsort((candidates.predicted_iou * candidates.stability, -candidates.levels)):
            labels[masks[number]] = number
    return labels


def absorb_fragments(labels: np.ndarray, min_area: float) -> np.ndarray:
    """Gives fragments under `min_area` pixels, covered or not, to what is nearest; larger ones stay as they are."""
    fragments = measure.label(labels, background=labels.min() - 1, connectivity=1)
    sizes = np.bincount(fragments.ravel())
    is_crumb = (sizes < min(min_area, sizes.max()))[fragments]
    if not is_crumb.any():
        return labels
    nearest = ndimage.distance_transform_edt(is_crumb, return_distances=False, return_indices=True)
    return labels[tuple(nearest)]
