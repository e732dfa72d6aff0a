"""Predicates on positions and sizes of objects, with margins: an object, or None if unclear.

Source: the margins of positions are those of `scenes`, in shares of the longest side; the other bounds were chosen on
contact sheets of photographs. A position is clear only by the box and by the centroid, and only if both edges agree, so
that it does not depend on the definition of an object's centre.
"""

from collections.abc import Sequence
from itertools import combinations

from harness.data.coco_rules.facts import Box, Instance

MARGIN = 10 / 224  # between the centres of objects with neighbouring ranks
SIDE_MARGIN = 16 / 224  # from the anchor of a relation to its target
OTHER_SIDE_MARGIN = 6 / 224  # by which every other candidate is on the anchor's other side
SIZE_RATIO = 3  # smallest ratio of areas between the largest object and the next
EXTENT_RATIO = 1.25  # the same for width and height
MIN_AREA = 0.005  # of a target, as a share of the image
MIN_CUT_EXTENT = 0.15  # smallest width and height of a target that the edge of the image cuts
MAX_SHARED = 0.5  # largest share of the box of an object that another object's box covers
MIN_PART = 0.8  # share of a target's pixels in its largest connected part
COUNTED_RATIO = 6  # largest ratio of areas of objects that are counted

Instances = Sequence[Instance]

_DIRECTIONS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}  # axis, sign


def is_recognisable(one: Instance) -> bool:
    """Whether enough of the object is inside the image."""
    return not one.is_cut or min(one.box.width, one.box.height) >= MIN_CUT_EXTENT


def is_seen(one: Instance) -> bool:
    """Whether the object is large enough and whole enough to be a target of its own."""
    return is_recognisable(one) and one.area >= MIN_AREA and one.largest_part >= MIN_PART


def are_apart(found: Instances) -> bool:
    """Whether no object lies within the box of another, as happens if one object is labelled as two."""
    return all(_shared(a.box, b.box) <= MAX_SHARED for a, b in combinations(found, 2))


def _shared(a: Box, b: Box) -> float:
    """Share of the smaller box that the other covers."""
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    return max(width, 0) * max(height, 0) / min(a.width * a.height, b.width * b.height)


def can_count(found: Instances) -> bool:
    """Whether all objects are large and whole enough to be counted, and of similar size."""
    areas = [one.area for one in found]
    return all(map(is_seen, found)) and max(areas) <= COUNTED_RATIO * min(areas)


def _gap(a: Instance, b: Instance, side: str) -> float:
    """How much nearer to that side of the image a is than b: the minimum over centres of boxes and centroids."""
    axis, sign = _DIRECTIONS[side]
    boxes = (b.box[axis] + b.box[axis + 2] - a.box[axis] - a.box[axis + 2]) / 2 * sign
    return min(boxes, (b.centroid[axis] - a.centroid[axis]) * sign)


def is_before(a: Instance, b: Instance, side: str) -> bool:
    """Whether a is clearly nearer to that side than b: by its centres, and by both of its edges."""
    axis, sign = _DIRECTIONS[side]
    edges = ((b.box[axis] - a.box[axis]) * sign, (b.box[axis + 2] - a.box[axis + 2]) * sign)
    return _gap(a, b, side) >= MARGIN and min(edges) >= 0


def at_rank(found: Instances, side: str, rank: int) -> Instance | None:
    """The object of this rank (1 is the nearest) from a side, if all others are clearly before or after it."""
    for one in found:
        others = [other for other in found if other is not one]
        before = sum(is_before(other, one, side) for other in others)
        after = sum(is_before(one, other, side) for other in others)
        if before == rank - 1 and before + after == len(others):
            return one if is_seen(one) else None
    return None


def on_side(found: Instances, anchor: Instance, side: str) -> Instance | None:
    """The only object on that side of the anchor, if all others are clearly on the other side."""
    inside = [one for one in found if _is_on_side(one, anchor, side)]
    outside = [one for one in found if _gap(anchor, one, side) >= OTHER_SIDE_MARGIN]
    is_clear = len(inside) == 1 and len(outside) == len(found) - 1
    return inside[0] if is_clear and is_seen(inside[0]) else None


def _is_on_side(one: Instance, anchor: Instance, side: str) -> bool:
    """Whether the object is clearly on that side, and farther along its axis than across."""
    axis = _DIRECTIONS[side][0]
    across = abs(one.centroid[1 - axis] - anchor.centroid[1 - axis])
    return _gap(one, anchor, side) >= max(SIDE_MARGIN, across) and is_before(one, anchor, side)


def largest(found: Instances) -> Instance | None:
    """The object that is clearly larger than all others, in area and in both extents."""
    for one in found:
        if all(_is_larger(one, other) for other in found if other is not one):
            return one if is_seen(one) else None
    return None


def smallest(found: Instances) -> Instance | None:
    """The object that is clearly smaller than all others, in area and in both extents, and not cut by the edge."""
    for one in found:
        if all(_is_larger(other, one) for other in found if other is not one):
            return one if is_seen(one) and not one.is_cut else None
    return None


def _is_larger(a: Instance, b: Instance) -> bool:
    extents = (a.box.width / b.box.width, a.box.height / b.box.height)
    return a.area >= SIZE_RATIO * b.area and min(extents) >= EXTENT_RATIO
