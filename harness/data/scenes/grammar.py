"""Referring expressions about a scene, each generated only if its referent is unambiguous.

Every family is a stream of candidates in random order. A candidate is generated only if its targets clearly satisfy the
description and all other objects clearly do not, by the margins in `space`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

from harness.data.example import Expression
from harness.data.scenes import space
from harness.data.scenes.phrases import Facts, Phrase
from harness.data.scenes.scene import COLOURS, Scene, SceneObject
from harness.data.scenes.shapes import SHAPES, TEXTURES
from harness.data.scenes.stable_rng import StableRng

_EXTREMES = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost"}
_SIDES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
_RELATIONS = (*_SIDES, "closest to", "in front of", "behind")
_ORDINALS = {2: "second", 3: "third", 4: "fourth"}
Candidates = Iterator[Expression]


def _expression(text: str, family: str, targets: Sequence[SceneObject]) -> Expression:
    return Expression(text, family, tuple(sorted(one.id for one in targets)))


def _mixed(rng: StableRng, pools: Sequence[tuple[int, Candidates]]) -> Candidates:
    """Sample from several streams in proportion to their weights until all are exhausted."""
    left = list(pools)
    while left:
        pool = rng.weighted(left, [weight for weight, _ in left])
        found = next(pool[1], None)
        if found is None:
            left.remove(pool)
        else:
            yield found


def _attribute(facts: Facts, rng: StableRng) -> Candidates:
    """Colour, shape and size: mostly minimal descriptions, some redundant ones."""
    alone = {phrase for phrase, _ in facts.unique}
    minimal: list[Expression] = []
    redundant: list[Expression] = []
    for phrase, one in facts.unique:
        is_redundant = any(part in alone for part in phrase.parts())
        (redundant if is_redundant else minimal).append(_expression(f"the {phrase.text()}", "attribute", [one]))
    sized: list[Expression] = []
    for phrase, found in facts.shared:
        small, large = ("small", "large") if phrase.shape else ("smallest", "largest")
        for word, target in ((small, space.smallest(found)), (large, space.largest(found))):
            if target:
                sized.append(_expression(f"the {phrase.text(size=word)}", "attribute", [target]))
    pools = ((60, minimal), (25, sized), (15, redundant))
    return _mixed(rng, [(weight, iter(rng.shuffled(pool))) for weight, pool in pools])


def _texture(facts: Facts, rng: StableRng) -> Candidates:
    """Phrases that identify one object only by its texture."""
    for phrase, found in rng.shuffled(list(facts.phrases.items())):
        without = facts.phrases[phrase._replace(texture=None)]
        if phrase.texture and len(found) == 1 and len(without) > 1:
            yield _expression(f"the {phrase.text()}", "texture", found)


def _absolute(facts: Facts, rng: StableRng) -> Candidates:
    """Positions in the image: extremes, corners and the middle."""
    return _mixed(rng, [(3, _extremes(facts, rng)), (1, _regions(facts, rng))])


def _extremes(facts: Facts, rng: StableRng) -> Candidates:
    for (phrase, found), (side, word) in rng.shuffled(list(product(facts.shared, _EXTREMES.items()))):
        target = space.at_rank(found, side, 1)
        if target:
            yield _expression(f"the {word} {phrase.text()}", "absolute", [target])


def _regions(facts: Facts, rng: StableRng) -> Candidates:
    regions: dict[str, Callable[[SceneObject], space.Verdict]] = {"middle": space.in_middle}
    for vertical, horizontal in product(("top", "bottom"), ("left", "right")):
        corner = partial(space.in_corner, vertical=vertical, horizontal=horizontal)
        regions[f"{vertical} {horizontal} corner"] = corner
    for (phrase, found), (region, is_in_region) in rng.shuffled(list(product(facts.shared, regions.items()))):
        target = space.only(found, is_in_region)
        if target:
            yield _expression(f"the {phrase.text()} in the {region}", "absolute", [target])


def _relation(facts: Facts, rng: StableRng) -> Candidates:
    """An object by its spatial relation to an unambiguously described anchor."""
    return _mixed(rng, [(1, _related(facts, rng, relation)) for relation in _RELATIONS])


def _related(facts: Facts, rng: StableRng, relation: str) -> Candidates:
    for (phrase, found), (anchor_phrase, anchor) in rng.shuffled(list(product(facts.shared, facts.unique))):
        others = [one for one in found if one is not anchor]
        target = _find_related(others, anchor, relation) if len(others) > 1 else None
        if target:
            yield _expression(f"the {phrase.text()} {relation} the {anchor_phrase.text()}", "relation", [target])


def _find_related(others: Sequence[SceneObject], anchor: SceneObject, relation: str) -> SceneObject | None:
    """The only object among `others` that clearly has this relation to the anchor."""
    if relation in _SIDES:
        return space.only(others, partial(space.on_side, anchor=anchor, side=_SIDES[relation]))
    if relation == "in front of":
        return space.only(others, partial(space.covers, back=anchor))
    if relation == "behind":
        return space.only(others, partial(space.covers, anchor))
    return space.closest(others, anchor)


def _ordinal(facts: Facts, rng: StableRng) -> Candidates:
    """Rank from a side, among three to five objects."""
    for (phrase, found), side, rank in rng.shuffled(list(product(facts.shared, space.SIDES, _ORDINALS))):
        target = space.at_rank(found, side, rank) if max(3, rank) <= len(found) <= 5 else None
        if target:
            yield _expression(f"the {_ORDINALS[rank]} {phrase.text()} from the {side}", "ordinal", [target])


def _group(facts: Facts, rng: StableRng) -> Candidates:
    """Several objects that share a description, but not all objects of the scene."""
    for phrase, found in rng.shuffled(list(facts.phrases.items())):
        if not 2 <= len(found) < len(facts.objects):
            continue
        word = rng.pick(("all", "every", "both") if len(found) == 2 else ("all", "every"))
        yield _expression(f"{word} {phrase.text(plural=word != 'every')}", "group", found)


def _absent(facts: Facts, rng: StableRng) -> Candidates:
    """Descriptions that match no object: first with words that all occur in the scene, then with any words."""
    appearances = [one.appearance for one in facts.objects]
    colours = sorted({appearance.colour for appearance in appearances})
    shapes = sorted({appearance.shape for appearance in appearances})
    textures = sorted({appearance.texture for appearance in appearances})
    plausible = [
        *(Phrase(None, colour, shape) for colour, shape in product(colours, shapes)),
        *(Phrase(texture, None, shape) for texture, shape in product(textures, shapes)),
        *(Phrase(texture, colour, None) for texture, colour in product(textures, colours)),
    ]
    anything = [Phrase(*words) for words in product(TEXTURES, COLOURS, SHAPES)]
    for phrases in (plausible, anything):
        for phrase in rng.shuffled(phrases):
            if phrase not in facts.phrases:
                yield _expression(f"the {phrase.text()}", "absent", [])


_FAMILIES: dict[str, tuple[Callable[[Facts, StableRng], Candidates], int]] = {  # and their percentages
    "attribute": (_attribute, 28),
    "texture": (_texture, 12),
    "absolute": (_absolute, 16),
    "relation": (_relation, 16),
    "ordinal": (_ordinal, 10),
    "group": (_group, 10),
    "absent": (_absent, 8),
}
FAMILIES = tuple(_FAMILIES)


def expressions(scene: Scene, count: int, rng: StableRng) -> tuple[Expression, ...]:
    """Exactly `count` different expressions; the share of an exhausted family goes to the others."""
    facts = Facts(scene)
    streams = {family: make(facts, rng) for family, (make, _) in _FAMILIES.items()}
    chosen: dict[str, Expression] = {}
    while len(chosen) < count:
        family = rng.weighted(list(streams), [_FAMILIES[name][1] for name in streams])
        found = next((one for one in streams[family] if one.text not in chosen), None)
        if found is None:
            del streams[family]
        else:
            chosen[found.text] = found
    return tuple(chosen.values())
