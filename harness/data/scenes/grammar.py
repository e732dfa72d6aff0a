"""Referring expressions about a scene, each emitted only where its referent is beyond doubt.

Every family is a generator of candidates in random order. A candidate is kept only if its intended targets satisfy
the words with a margin and every other object fails them with a margin, so that a reader who measures by eye, or by
another notion of an object's centre, finds the same targets. `docs` of the margins: the constants below, in pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from typing import NamedTuple

from harness.data.example import Expression
from harness.data.scenes.dice import Dice
from harness.data.scenes.scene import COLOURS, SIDE, Scene, SceneObject
from harness.data.scenes.shapes import SHAPES, TEXTURES

MARGIN = 10  # between the centres of neighbours in an order
SIDE_MARGIN = 16  # from the anchor of a relation to its referent
OTHER_SIDE_MARGIN = 6  # by which every other candidate stands on the anchor's other side
COVERED = 25  # px that one object hides of another before "in front of" is said
CORNER, OUTSIDE_CORNER = 78, 104  # a centre within the first from both edges is in the corner, past the second not
MIDDLE, OUTSIDE_MIDDLE = 26, 52  # the same, from the centre of the image
SIZE_RATIO = 2  # least ratio of areas between "large" and the next

_PLURAL = {"cross": "crosses"}
_DIRECTIONS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}  # axis, sign
_EXTREMES = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost"}
_SIDES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
_ORDINALS = ("first", "second", "third", "fourth")

Objects = tuple[SceneObject, ...]


class Phrase(NamedTuple):
    """A noun with its adjectives; None where nothing is said."""

    texture: str | None
    colour: str | None
    shape: str | None

    def text(self, plural: bool = False, size: str | None = None) -> str:
        """The words, without article."""
        noun = self.shape or "object"
        if plural:
            noun = _PLURAL.get(noun, noun + "s")
        return " ".join(word for word in (size, self.texture, self.colour, noun) if word)

    def fits(self, one: SceneObject) -> bool:
        """Whether the object is one of those the phrase describes."""
        look = one.look
        return (
            self.texture in (None, look.texture)
            and self.colour in (None, look.colour)
            and self.shape in (None, look.shape)
        )

    def parts(self) -> Iterator["Phrase"]:
        """Every phrase that says less than this one."""
        said = [field for field in self._fields if getattr(self, field)]
        for count in range(1, len(said) + 1):
            for dropped in combinations(said, count):
                yield self._replace(**dict.fromkeys(dropped))


class Facts:
    """A scene's objects and every phrase that describes at least one of them."""

    def __init__(self, scene: Scene) -> None:
        self.objects: Objects = scene.objects
        self.phrases: dict[Phrase, Objects] = {}
        for one in scene.objects:
            look = one.look
            for phrase in product((None, look.texture), (None, look.colour), (None, look.shape)):
                key = Phrase(*phrase)
                self.phrases[key] = (*self.phrases.get(key, ()), one)
        plain = [(phrase, found) for phrase, found in self.phrases.items() if phrase.texture is None]
        self.unique = [(phrase, found[0]) for phrase, found in plain if len(found) == 1 and any(phrase)]
        self.shared = [(phrase, found) for phrase, found in plain if len(found) > 1]


def _expression(text: str, family: str, targets: Sequence[SceneObject]) -> Expression:
    return Expression(text, family, tuple(sorted(one.id for one in targets)))


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


def _attribute(facts: Facts, dice: Dice) -> Iterator[Expression]:
    """Colour, shape and size, as few words as do; then with words more than needed."""
    alone = {phrase for phrase, _ in facts.unique}
    minimal, wordy = [], []
    for phrase, one in facts.unique:
        needs_all = not any(part in alone for part in phrase.parts())
        (minimal if needs_all else wordy).append(_expression(f"the {phrase.text()}", "attribute", [one]))
    for phrase, found in facts.shared:
        by_area = sorted(found, key=lambda one: one.area)
        words = ("small", "large") if phrase.shape else ("smallest", "largest")
        for word, one, order in ((words[0], by_area[0], 1), (words[1], by_area[-1], -1)):
            if _stands_out(one, [other for other in found if other is not one], order):
                minimal.append(_expression(f"the {phrase.text(size=word)}", "attribute", [one]))
    yield from dice.shuffled(minimal)
    yield from dice.shuffled(wordy)


def _stands_out(one: SceneObject, others: Sequence[SceneObject], order: int) -> bool:
    """Whether an object is clearly smaller (order 1) or larger (-1) than all others, hidden parts counted or not."""
    if order == 1:
        return all(o.visible >= SIZE_RATIO * one.area for o in others)
    return all(one.visible >= SIZE_RATIO * o.area for o in others)


def _texture(facts: Facts, dice: Dice) -> Iterator[Expression]:
    """Phrases that pick out one object only by its texture."""
    for phrase, found in dice.shuffled(list(facts.phrases.items())):
        without = facts.phrases[phrase._replace(texture=None)]
        if phrase.texture and len(found) == 1 and len(without) > 1:
            yield _expression(f"the {phrase.text()}", "texture", found)


def _absolute(facts: Facts, dice: Dice) -> Iterator[Expression]:
    """Places in the image: extremes, corners and the middle."""
    places = [*_EXTREMES, *product(("top", "bottom"), ("left", "right")), "middle"]
    for (phrase, found), place in dice.shuffled(list(product(facts.shared, places))):
        if isinstance(place, tuple):
            where = f"{phrase.text()} in the {place[0]} {place[1]} corner"
            target = _only(found, lambda one, place=place: _in_corner(one, *place))
        elif place == "middle":
            where = f"{phrase.text()} in the middle"
            target = _only(found, _in_middle)
        else:
            where = f"{_EXTREMES[place]} {phrase.text()}"
            target = _at_rank(found, place, 1)
        if target:
            yield _expression(f"the {where}", "absolute", [target])


def _only(found: Objects, holds: Callable[[SceneObject], bool | None]) -> SceneObject | None:
    """The one object for which it clearly holds, when it clearly does not for the others; None means unclear."""
    verdicts = [holds(one) for one in found]
    if None in verdicts or verdicts.count(True) != 1:
        return None
    return found[verdicts.index(True)]


def _within(values: Sequence[int], near: int, far: int) -> bool | None:
    """True when all values are at most near, False when one is at least far, else unclear."""
    if max(values) >= far:
        return False
    return True if max(values) <= near else None


def _in_corner(one: SceneObject, vertical: str, horizontal: str) -> bool | None:
    x, y = one.centroid
    distances = (x if horizontal == "left" else SIDE - x, y if vertical == "top" else SIDE - y)
    return _within(distances, CORNER, OUTSIDE_CORNER)


def _in_middle(one: SceneObject) -> bool | None:
    return _within([abs(value - SIDE // 2) for value in one.centroid], MIDDLE, OUTSIDE_MIDDLE)


def _at_rank(found: Objects, side: str, rank: int) -> SceneObject | None:
    """The rank-th object (1 is the nearest) counted from a side, when everything else is clearly before or after."""
    for one in found:
        others = [other for other in found if other is not one]
        before = [_is_before(other, one, side) for other in others]
        after = [_is_before(one, other, side) for other in others]
        if sum(before) == rank - 1 and sum(before) + sum(after) == len(others):
            return one
    return None


def _relation(facts: Facts, dice: Dice) -> Iterator[Expression]:
    """An object by where it stands to another that is named beyond doubt."""
    words = [*_SIDES, "closest to", "in front of", "behind"]
    for (phrase, found), (anchor_phrase, anchor), relation in dice.shuffled(
        list(product(facts.shared, facts.unique, words))
    ):
        others = tuple(one for one in found if one is not anchor)
        if len(others) < 2:
            continue
        target = related(others, anchor, relation)
        if target:
            yield _expression(f"the {phrase.text()} {relation} the {anchor_phrase.text()}", "relation", [target])


def related(others: Objects, anchor: SceneObject, relation: str) -> SceneObject | None:
    """The only one of the others that clearly stands in that relation to the anchor."""
    if relation in _SIDES:
        return _only(others, lambda one: _on_side(one, anchor, _SIDES[relation]))
    if relation == "in front of":
        return _only(others, lambda one: _covers(one, anchor))
    if relation == "behind":
        return _only(others, lambda one: _covers(anchor, one))
    return _closest(others, anchor)


def _on_side(one: SceneObject, anchor: SceneObject, side: str) -> bool | None:
    """True when clearly on that side and more so than across it; False when clearly on the other side."""
    if _gap(anchor, one, side) >= OTHER_SIDE_MARGIN:
        return False
    axis = _DIRECTIONS[side][0]
    across = abs(one.centroid[1 - axis] - anchor.centroid[1 - axis])
    gap = _gap(one, anchor, side)
    return True if gap >= max(SIDE_MARGIN, across) and _is_before(one, anchor, side) else None


def _covers(front: SceneObject, back: SceneObject) -> bool | None:
    pixels = dict(back.hidden_by).get(front.id, 0)
    return True if pixels >= COVERED else False if pixels == 0 else None


def _closest(others: Objects, anchor: SceneObject) -> SceneObject | None:
    """The object nearest to the anchor, by a third at least between centres, and also between bounding boxes."""
    near, *rest = sorted(others, key=lambda one: _squared_distance(one, anchor))
    limit = _squared_distance(near, anchor)
    clear = all(9 * _squared_distance(one, anchor) >= 16 * limit for one in rest)
    between = _space(near, anchor)
    return near if clear and all(_space(one, anchor) >= between + OTHER_SIDE_MARGIN for one in rest) else None


def _squared_distance(a: SceneObject, b: SceneObject) -> int:
    return (a.centroid[0] - b.centroid[0]) ** 2 + (a.centroid[1] - b.centroid[1]) ** 2


def _space(a: SceneObject, b: SceneObject) -> int:
    """Free pixels between two bounding boxes along the axis that separates them most; negative when they meet."""
    return max(a.box.left - b.box.right, b.box.left - a.box.right, a.box.top - b.box.bottom, b.box.top - a.box.bottom)


def _ordinal(facts: Facts, dice: Dice) -> Iterator[Expression]:
    """Counting from a side, among three to five."""
    for (phrase, found), side, rank in dice.shuffled(list(product(facts.shared, _DIRECTIONS, (2, 3, 4)))):
        if not max(3, rank) <= len(found) <= 5:
            continue
        target = _at_rank(found, side, rank)
        if target:
            yield _expression(f"the {_ORDINALS[rank - 1]} {phrase.text()} from the {side}", "ordinal", [target])


def _group(facts: Facts, dice: Dice) -> Iterator[Expression]:
    """Several objects that share a description, and never the whole scene."""
    for phrase, found in dice.shuffled(list(facts.phrases.items())):
        if not 2 <= len(found) < len(facts.objects):
            continue
        word = dice.pick(("all", "every", "both") if len(found) == 2 else ("all", "every"))
        yield _expression(f"{word} {phrase.text(plural=word != 'every')}", "group", found)


def _absent(facts: Facts, dice: Dice) -> Iterator[Expression]:
    """Descriptions of nothing in the scene: first of words that all occur in it, then of any."""
    looks = [one.look for one in facts.objects]
    colours, shapes = {look.colour for look in looks}, {look.shape for look in looks}
    textures = {look.texture for look in looks}
    plausible = [
        *(Phrase(None, colour, shape) for colour in sorted(colours) for shape in sorted(shapes)),
        *(Phrase(texture, None, shape) for texture in sorted(textures) for shape in sorted(shapes)),
        *(Phrase(texture, colour, None) for texture in sorted(textures) for colour in sorted(colours)),
    ]
    anything = [Phrase(texture, colour, shape) for texture in TEXTURES for colour in COLOURS for shape in SHAPES]
    for phrase in (*dice.shuffled(plausible), *dice.shuffled(anything)):
        if phrase not in facts.phrases:
            yield _expression(f"the {phrase.text()}", "absent", [])


# family: (how to make it, share out of 100)
FAMILIES: dict[str, tuple[Callable[[Facts, Dice], Iterator[Expression]], int]] = {
    "attribute": (_attribute, 28),
    "texture": (_texture, 12),
    "absolute": (_absolute, 16),
    "relation": (_relation, 16),
    "ordinal": (_ordinal, 10),
    "group": (_group, 10),
    "absent": (_absent, 8),
}


def expressions(scene: Scene, count: int, dice: Dice) -> tuple[Expression, ...]:
    """Exactly `count` different expressions; a family that runs out in this scene leaves its share to the others."""
    facts = Facts(scene)
    sources = {family: make(facts, dice) for family, (make, _) in FAMILIES.items()}
    chosen: dict[str, Expression] = {}
    while len(chosen) < count:
        family = dice.weighted(list(sources), [FAMILIES[name][1] for name in sources])
        found = next((one for one in sources[family] if one.text not in chosen), None)
        if found is None:
            del sources[family]
        else:
            chosen[found.text] = found
    return tuple(chosen.values())
