"""Predicates on positions and sizes of objects, with margins: True, False, or None if unclear.

Margins apply to both the outline and the visible part of an object, so that a verdict does not depend on the definition
of an object's centre. Constants are in pixels unless noted otherwise.
"""

from collections.abc import Callable, Sequence

from harness.data.scenes.scene import SIDE, SceneObject

MARGIN = 10  # between the centres of objects with neighbouring ranks
SIDE_MARGIN = 16  # from the anchor of a relation to its referent
OTHER_SIDE_MARGIN = 6  # by which every other candidate is on the anchor's other side
COVERED = 25  # pixels that one object must occlude of another to be "in front of" it
# A centre is in a corner up to the first distance from both edges, and is not from the second on.
CORNER, OUTSIDE_CORNER = 78, 104
MIDDLE, OUTSIDE_MIDDLE = 26, 52  # the same for the distance from the centre of the image
SIZE_RATIO = 2  # smallest ratio of areas between the largest object and the next

Objects = Sequence[SceneObject]
Verdict = bool | None  # None: unclear

_DIRECTIONS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}  # axis, sign
SIDES = tuple(_DIRECTIONS)


def only(found: Objects, predicate: Callable[[SceneObject], Verdict]) -> SceneObject | None:
    """The one object for which the predicate is True, if it is False for all others."""
    verdicts = [predicate(one) for one in found]
    if None in verdicts or verdicts.count(True) != 1:
        return None
    return found[verdicts.index(True)]


def _gap(a: SceneObject, b: SceneObject, side: str) -> int:
    """How much nearer to that side of the image a is than b: the minimum over outlines and visible parts."""
    axis, sign = _DIRECTIONS[side]
    outlines = ((b.x, b.y)[axis] - (a.x, a.y)[axis]) * sign
    return min(outlines, (b.centroid[axis] - a.centroid[axis]) * sign)


def _is_before(a: SceneObject, b: SceneObject, side: str) -> bool:
    """Whether a is clearly nearer to that side than b: by its centre, and by both of its edges."""
    axis, sign = _DIRECTIONS[side]
    edges = ((b.box[axis] - a.box[axis]) * sign, (b.box[axis + 2] - a.box[axis + 2]) * sign)
    return _gap(a, b, side) >= MARGIN and min(edges) >= 0


def at_rank(found: Objects, side: str, rank: int) -> SceneObject | None:
    """The object of this rank (1 is the nearest) from a side, if all others are clearly before or after it."""
    for one in found:
        others = [other for other in found if other is not one]
        before = [_is_before(other, one, side) for other in others]
        after = [_is_before(one, other, side) for other in others]
        if sum(before) == rank - 1 and sum(before) + sum(after) == len(others):
            return one
    return None


def on_side(one: SceneObject, anchor: SceneObject, side: str) -> Verdict:
    """True if clearly on that side, and farther along its axis than across; False if clearly on the other side."""
    if _gap(anchor, one, side) >= OTHER_SIDE_MARGIN:
        return False
    axis = _DIRECTIONS[side][0]
    across = abs(one.centroid[1 - axis] - anchor.centroid[1 - axis])
    is_clear = _gap(one, anchor, side) >= max(SIDE_MARGIN, across) and _is_before(one, anchor, side)
    return True if is_clear else None


def covers(front: SceneObject, back: SceneObject) -> Verdict:
    """Whether the first object occludes a part of the second."""
    pixels = dict(back.hidden_by).get(front.id)
    if pixels is None:
        return False
    return True if pixels >= COVERED else None


def closest(others: Objects, anchor: SceneObject) -> SceneObject | None:
    """The object nearest to the anchor, by at least a third between centres, and also between bounding boxes."""
    near, *rest = sorted(others, key=lambda one: _squared_distance(one, anchor))
    limit = 16 * _squared_distance(near, anchor)
    space = _space(near, anchor) + OTHER_SIDE_MARGIN
    is_clear = all(9 * _squared_distance(one, anchor) >= limit and _space(one, anchor) >= space for one in rest)
    return near if is_clear else None


def _squared_distance(a: SceneObject, b: SceneObject) -> int:
    return (a.centroid[0] - b.centroid[0]) ** 2 + (a.centroid[1] - b.centroid[1]) ** 2


def _space(a: SceneObject, b: SceneObject) -> int:
    """Free pixels between two bounding boxes along the axis that separates them most; negative if they intersect."""
    return max(a.box.left - b.box.right, b.box.left - a.box.right, a.box.top - b.box.bottom, b.box.top - a.box.bottom)


def in_corner(one: SceneObject, vertical: str, horizontal: str) -> Verdict:
    """Whether the object's centre is in that corner of the image."""
    x, y = one.centroid
    return _within(
        (x if horizontal == "left" else SIDE - x, y if vertical == "top" else SIDE - y), CORNER, OUTSIDE_CORNER
    )


def in_middle(one: SceneObject) -> Verdict:
    """Whether the object's centre is near the middle of the image."""
    return _within([abs(value - SIDE // 2) for value in one.centroid], MIDDLE, OUTSIDE_MIDDLE)


def _within(values: Sequence[int], near: int, far: int) -> Verdict:
    """True if all values are at most `near`, False if one is at least `far`."""
    if max(values) >= far:
        return False
    return True if max(values) <= near else None


def smallest(found: Objects) -> SceneObject | None:
    """The object that is clearly smaller than all others, with or without occluded parts."""
    return only(found, lambda one: all(other.visible >= SIZE_RATIO * one.area for other in found if other is not one))


def largest(found: Objects) -> SceneObject | None:
    """The object that is clearly larger than all others, with or without occluded parts."""
    return only(found, lambda one: all(one.visible >= SIZE_RATIO * other.area for other in found if other is not one))
