"""Label maps: conversion to a partition, and merging of regions."""

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import connected_components


def compact(labels: np.ndarray) -> np.ndarray:
    """The same regions with ids 0..S-1, in the order of their present ids, as int16."""
    positions = labels - labels.min(initial=0)
    ids = np.cumsum(np.bincount(positions.ravel()) > 0) - 1
    return ids[positions].astype(np.int16)


def fill_uncovered(labels: np.ndarray) -> np.ndarray:
    """A partition in which each 4-connected component of uncovered (negative) pixels is a region of its own."""
    components, _ = ndimage.label(labels < 0)
    return compact(np.where(labels < 0, labels.max(initial=-1) + components, labels))


def merge(
    labels: np.ndarray, image: np.ndarray, count: int, max_cost: float = 0.0, within: np.ndarray | None = None
) -> np.ndarray:
    """Merges neighbours until at most `count` regions are left, always the pair of lowest cost.

    The cost is Ward's: the increase of the squared colour error, so small and similar regions are merged first. Ties
    are resolved in favour of lower ids.

    Args:
        labels: (h, w), ids 0..S-1.
        image: (h, w, 3), or of any other number of channels.
        count: maximum number of regions.
        max_cost: pairs of lower cost are merged even if `count` or fewer regions are left.
        within: (h, w) a coarser partition; regions are merged only within its parts, also across fragments of a part.
    """
    num_regions = int(labels.max()) + 1
    area = np.bincount(labels.ravel(), minlength=num_regions).astype(np.float64)
    sums = [np.bincount(labels.ravel(), image[..., c].ravel(), num_regions) for c in range(image.shape[-1])]
    colour = np.stack(sums, axis=-1) / area[:, None]
    touching = _neighbours(labels, num_regions)
    if within is not None:
        touching = _restrict(touching, labels, within)
    owner = np.arange(num_regions)
    costs = np.where(touching, _ward(area[:, None], area, colour[:, None], colour), np.inf)
    cheapest = costs.min(axis=1)
    for num_left in range(num_regions, 1, -1):
        kept = int(cheapest.argmin())
        if cheapest[kept] == np.inf or (num_left <= count and cheapest[kept] >= max_cost):
            break
        removed = int(costs[kept].argmin())
        total = area[kept] + area[removed]
        colour[kept] = (area[kept] * colour[kept] + area[removed] * colour[removed]) / total
        area[kept] = total
        owner[owner == removed] = kept
        neighbours = np.flatnonzero(touching[kept] | touching[removed])
        neighbours = neighbours[(neighbours != kept) & (neighbours != removed)]
        touching[removed] = touching[:, removed] = False
        touching[kept, removed] = False
        touching[kept, neighbours] = touching[neighbours, kept] = True
        costs[removed] = costs[:, removed] = np.inf
        cheapest[removed] = np.inf
        costs[kept, neighbours] = costs[neighbours, kept] = _ward(
            area[kept], area[neighbours], colour[kept], colour[neighbours]
        )
        affected = np.append(neighbours, kept)
        cheapest[affected] = costs[affected].min(axis=1)
    return compact(owner[labels])


def _restrict(touching: np.ndarray, labels: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Only neighbours in the same part; if a part has several fragments, one region of each is linked."""
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
