"""Where objects stand and how large they are, judged with margins: clearly so, clearly not, or unclear.

A margin is kept for the outline and for the visible part of an object alike, so that a reader who measures by eye, or
by another notion of an object's centre, comes to the same verdict. All constants are pixels unless they say otherwise.
"""

from collections.abc import Callable, Sequence

from harness.data.scenes.scene import SIDE, SceneObject

MARGIN = 10  # between the centres of neighbours in an order
SIDE_MARGIN = 16  # from the anchor of a relation to its referent
OTHER_SIDE_MARGIN = 6  # by which every other candidate stands on the anchor's other side
COVERED = 25  # that one object hides of another before "in front of" is said
CORNER, OUTSIDE_CORNER = (
    78,
    104,
)  # a centre within the first of both edges is in the corner, beyond the second it is not
MIDDLE, OUTSIDE_MIDDLE = 26, 52  # the same, from the centre of the image
SIZE_RATIO = 2  # least ratio of areas between the largest and the next

Objects = Sequence[SceneObject]
Verdict = bool | None  # None: unclear

_DIRECTIONS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}  # axis, sign
SIDES = tuple(_DIRECTIONS)


def only(found: Objects, holds: Callable[[SceneObject], Verdict]) -> SceneObject | None:
    """The one object for which it clearly holds, when it clearly does not for all the others."""
    verdicts = [holds(one) for one in found]
    if None in verdicts or verdicts.count(True) != 1:
        return None
    return found[verdicts.index(True)]


def _gap(a: SceneObject, b: SceneObject, side: str) -> int:
    """By how much a stands nearer to that side of the image than b: the least over outlines and visible parts."""
    axis, sign = _DIRECTIONS[side]
    outlines = ((b.x, b.y)[axis] - (a.x, a.y)[axis]) * sign
    return min(outlines, (b.centroid[axis] - a.centroid[axis]) * sign)


def _is_before(a: SceneObject, b: SceneObject, side: str) -> bool:
    """Whether a is clearly nearer to that side than b: by its centre, and by both of its edges."""
    axis, sign = _DIRECTIONS[side]
    edges = ((b.box[axis] - a.box[axis]) * sign, (b.box[axis + 2] - a.box[axis + 2]) * sign)
    return _gap(a, b, side) >= MARGIN and min(edges) >= 0


def at_rank(found: Objects, side: str, rank: int) -> SceneObject | None:
    """The rank-th object (1 is the nearest) counted from a side, when everything else is clearly before or after."""
    for one in found:
        others = [other for other in found if other is not one]
        before = [_is_before(other, one, side) for other in others]
        after = [_is_before(one, other, side) for other in others]
        if sum(before) == rank - 1 and sum(before) + sum(after) == len(others):
            return one
    return None


def on_side(one: SceneObject, anchor: SceneObject, side: str) -> Verdict:
    """True when clearly on that side and more so than across it; False when clearly on the other side."""
    if _gap(anchor, one, side) >= OTHER_SIDE_MARGIN:
        return False
    axis = _DIRECTIONS[side][0]
    across = abs(one.centroid[1 - axis] - anchor.centroid[1 - axis])
    is_clear = _gap(one, anchor, side) >= max(SIDE_MARGIN, across) and _is_before(one, anchor, side)
    return True if is_clear else None


def covers(front: SceneObject, back: SceneObject) -> Verdict:
    """Whether the first object hides a part of the second."""
    pixels = dict(back.hidden_by).get(front.id)
    if pixels is None:
        return False
    return True if pixels >= COVERED else None


def closest(others: Objects, anchor: SceneObject) -> SceneObject | None:
    """The object nearest to the anchor, by a third at least between centres, and also between bounding boxes."""
    near, *rest = sorted(others, key=lambda one: _squared_distance(one, anchor))
    limit = 16 * _squared_distance(near, anchor)
    space = _space(near, anchor) + OTHER_SIDE_MARGIN
    is_clear = all(9 * _squared_distance(one, anchor) >= limit and _space(one, anchor) >= space for one in rest)
    return near if is_clear else None


def _squared_distance(a: SceneObject, b: SceneObject) -> int:
    return (a.centroid[0] - b.centroid[0]) ** 2 + (a.centroid[1] - b.centroid[1]) ** 2


def _space(a: SceneObject, b: SceneObject) -> int:
    """Free pixels between two bounding boxes along the axis that separates them most; negative when they meet."""
    return max(a.box.left - b.box.right, b.box.left - a.box.right, a.box.top - b.box.bottom, b.box.top - a.box.bottom)


def in_corner(one: SceneObject, vertical: str, horizontal: str) -> Verdict:
    """Whether the object's centre lies in that corner of the image."""
    x, y = one.centroid
    return _within(
        (x if horizontal == "left" else SIDE - x, y if vertical == "top" else SIDE - y), CORNER, OUTSIDE_CORNER
    )


def in_middle(one: SceneObject) -> Verdict:
    """Whether the object's centre lies about the middle of the image."""
    return _within([abs(value - SIDE // 2) for value in one.centroid], MIDDLE, OUTSIDE_MIDDLE)


def _within(values: Sequence[int], near: int, far: int) -> Verdict:
    """True when all values are at most near, False when one is at least far."""
    if max(values) >= far:
        return False
    return True if max(values) <= near else None


def smallest(found: Objects) -> SceneObject | None:
    """The object that is clearly smaller than all the others, whether or not hidden parts count."""
    return only(found, lambda one: all(other.visible >= SIZE_RATIO * one.area for other in found if other is not one))


def largest(found: Objects) -> SceneObject | None:
    """The object that is clearly larger than all the others, whether or not hidden parts count."""
    return only(found, lambda one: all(one.visible >= SIZE_RATIO * other.area for other in found if other is not one))
