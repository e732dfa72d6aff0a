"""Label maps: making any of them a partition, and making a partition coarser."""

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import connected_components


def compact(labels: np.ndarray) -> np.ndarray:
    """The same regions with ids 0..S-1, in the order of the old ids, as int16."""
    _, ids = np.unique(labels, return_inverse=True)
    return ids.reshape(labels.shape).astype(np.int16)


def fill_uncovered(labels: np.ndarray) -> np.ndarray:
    """A partition: what is uncovered (negative) becomes regions of its own, one per 4-connected component."""
    components, _ = ndimage.label(labels < 0)
    return compact(np.where(labels < 0, labels.max(initial=-1) + components, labels))


def merge(
    labels: np.ndarray, image: np.ndarray, count: int, max_cost: float = 0.0, within: np.ndarray | None = None
) -> np.ndarray:
    """Joins neighbours until at most `count` regions are left, always the pair whose union costs least.

    The cost is Ward's: how much the squared colour error grows, so small and similar regions go first. Equal costs are
    settled by the lower ids.

    Args:
        labels: (h, w), ids 0..S-1.
        image: (h, w, 3), or of any other number of channels.
        count: regions to keep.
        max_cost: joins that cost less are made below `count` too.
        within: (h, w) a coarser partition, of which each part can become one region again; no region leaves its part.
    """
    num_regions = int(labels.max()) + 1
    area = np.bincount(labels.ravel(), minlength=num_regions).astype(np.float64)
    sums = [np.bincount(labels.ravel(), image[..., c].ravel(), num_regions) for c in range(image.shape[-1])]
    colour = np.stack(sums, axis=-1) / area[:, None]
    touching = _neighbours(labels, num_regions)
    if within is not None:
        touching = _inside(touching, labels, within)
    owner = np.arange(num_regions)
    costs = np.where(touching, _ward(area[:, None], area, colour[:, None], colour), np.inf)
    cheapest = costs.min(axis=1)
    for num_left in range(num_regions, 1, -1):
        kept = int(cheapest.argmin())
        if cheapest[kept] == np.inf or (num_left <= count and cheapest[kept] >= max_cost):
            break
        gone = int(costs[kept].argmin())
        total = area[kept] + area[gone]
        colour[kept] = (area[kept] * colour[kept] + area[gone] * colour[gone]) / total
        area[kept] = total
        owner[owner == gone] = kept
        neighbours = np.flatnonzero(touching[kept] | touching[gone])
        neighbours = neighbours[(neighbours != kept) & (neighbours != gone)]
        touching[gone] = touching[:, gone] = False
        touching[kept, gone] = False
        touching[kept, neighbours] = touching[neighbours, kept] = True
        costs[gone] = costs[:, gone] = np.inf
        cheapest[gone] = np.inf
        costs[kept, neighbours] = costs[neighbours, kept] = _ward(
            area[kept], area[neighbours], colour[kept], colour[neighbours]
        )
        affected = np.append(neighbours, kept)
        cheapest[affected] = costs[affected].min(axis=1)
    return compact(owner[labels])


def _inside(touching: np.ndarray, labels: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Only neighbours of the same part; where a part is in several fragments, one region of each is linked."""
    part = np.zeros(len(touching), within.dtype)
    part[labels] = within
    is_same = part[:, None] == part
    touching = touching & is_same
    _, fragments = connected_components(touching)
    _, first = np.unique(fragments, return_index=True)
    touching[np.ix_(first, first)] = is_same[np.ix_(first, first)]
    np.fill_diagonal(touching, False)
    return touching


def _ward(area: np.ndarray, other_area: np.ndarray, colour: np.ndarray, other_colour: np.ndarray) -> np.ndarray:
    return area * other_area / (area + other_area) * ((colour - other_colour) ** 2).sum(axis=-1)


def _neighbours(labels: np.ndarray, num_regions: int) -> np.ndarray:
    """(S, S) bool, which regions share a pixel edge."""
    touching = np.zeros((num_regions, num_regions), dtype=bool)
    for first, second in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        touching[first, second] = touching[second, first] = True
    np.fill_diagonal(touching, False)
    return touching
