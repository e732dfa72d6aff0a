"""The families of expressions about a photograph, and the choice of some of them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product

from harness.data.coco_rules import space
from harness.data.coco_rules.facts import ImageFacts, Instance
from harness.data.coco_rules.nouns import are_alike, can_be_named, is_counted, is_single, plural
from harness.data.example import Expression
from harness.data.scenes.stable_rng import StableRng

_EXTREMES = {"left": "leftmost", "right": "rightmost", "top": "topmost", "bottom": "bottommost"}
_ORDINALS = {2: "second", 3: "third", 4: "fourth"}
_RELATIONS = {"left of": "left", "right of": "right"}
MAX_COUNTED = 5
"""Largest number of objects of which an ordinal counts one, as in `scenes`."""
MAX_GROUP = 10
"""Largest number of objects of a group; of more than about ten, COCO may label some as one crowd."""
MIN_OTHER_AREA = 0.003
"""Smallest area of each object of a group and of the anchor of a relation, as a share of the image."""
MAX_ABSENT = 2
"""Largest number of absent categories per image. There are at most as many as other expressions, but at least one."""
_PLAUSIBLE = 8
"""Number of absent categories to choose from: those that occur most often with the categories of the image."""


class Absences:
    """Categories that an image lacks, those that often occur together with its own first.

    Args:
        categories: names of all labelled categories.
        training_images: the set of categories of each training image.
    """

    def __init__(self, categories: Iterable[str], training_images: Iterable[frozenset[str]]) -> None:
        self._categories = sorted(set(filter(can_be_named, categories)))
        self._images: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        for present in training_images:
            self._images.update(present)
            self._pairs.update(product(present, present))

    def of(self, present: frozenset[str]) -> list[str]:
        """Categories with no object in the image and none that looks alike, the most plausible first."""
        absent = [
            name
            for name in self._categories
            if name not in present and not any(are_alike(name, other) for other in present)
        ]
        return sorted(absent, key=lambda name: (-self._plausibility(name, present), -self._images[name], name))

    def _plausibility(self, name: str, present: frozenset[str]) -> float:
        """The mean share of the training images with a present category that also show this one."""
        shares = [self._pairs[name, other] / self._images[other] for other in present if self._images[other]]
        return sum(shares) / max(len(shares), 1)


def _one(text: str, family: str, target: Instance | None) -> Iterator[Expression]:
    if target is not None:
        yield Expression(text, family, (target.id,))


def _shared(facts: ImageFacts) -> Iterator[tuple[str, list[Instance]]]:
    """Countable categories with several objects, none of which may be a part of another."""
    for name, found in facts.by_category().items():
        if len(found) > 1 and is_counted(name) and space.are_apart(found):
            yield name, found


def _unique(facts: ImageFacts) -> Iterator[tuple[str, Instance]]:
    """Categories of one object."""
    for name, found in facts.by_category().items():
        if len(found) == 1 and is_single(name):
            yield name, found[0]


def _category(facts: ImageFacts) -> Iterator[Expression]:
    for name, target in _unique(facts):
        yield from _one(f"the {name}", "category", target if space.is_seen(target) else None)


def _absolute(facts: ImageFacts) -> Iterator[Expression]:
    for (name, found), (side, word) in product(_shared(facts), _EXTREMES.items()):
        yield from _one(f"the {word} {name}", "absolute", space.at_rank(found, side, 1))


def _size(facts: ImageFacts) -> Iterator[Expression]:
    for name, found in _shared(facts):
        yield from _one(f"the largest {name}", "size", space.largest(found))
        yield from _one(f"the smallest {name}", "size", space.smallest(found))


def _ordinal(facts: ImageFacts) -> Iterator[Expression]:
    for (name, found), side, (rank, word) in product(_shared(facts), ("left", "right"), _ORDINALS.items()):
        if max(3, rank) <= len(found) <= MAX_COUNTED and space.can_count(found):
            yield from _one(f"the {word} {name} from the {side}", "ordinal", space.at_rank(found, side, rank))


def _relation(facts: ImageFacts) -> Iterator[Expression]:
    anchors = [(name, anchor) for name, anchor in _unique(facts) if anchor.area >= MIN_OTHER_AREA]
    for (name, found), (anchor_name, anchor) in product(_shared(facts), anchors):
        for words, side in _RELATIONS.items():
            yield from _one(f"the {name} {words} the {anchor_name}", "relation", space.on_side(found, anchor, side))


def _group(facts: ImageFacts) -> Iterator[Expression]:
    for name, found in facts.by_category().items():
        are_clear = all(one.area >= MIN_OTHER_AREA and space.is_recognisable(one) for one in found)
        if not (can_be_named(name) and are_clear and 2 <= len(found) <= MAX_GROUP):
            continue
        wordings = [f"all {plural(name)}"]
        if is_counted(name):
            wordings += [f"every {name}", *([f"both {plural(name)}"] if len(found) == 2 else [])]
        for words in wordings:
            yield Expression(words, "group", tuple(one.id for one in found))


_RULES: Mapping[str, Callable[[ImageFacts], Iterator[Expression]]] = {
    "category": _category,
    "absolute": _absolute,
    "size": _size,
    "ordinal": _ordinal,
    "relation": _relation,
    "group": _group,
}
FAMILIES = (*_RULES, "absent")


def candidates(facts: ImageFacts, absences: Absences, also_present: frozenset[str]) -> dict[str, list[Expression]]:
    """Every expression beyond doubt about an image, by family.

    Args:
        also_present: categories that may be seen though they are not labelled as objects.
    """
    found = {family: list(rule(facts)) for family, rule in _RULES.items()}
    absent = absences.of(facts.present | also_present)[:_PLAUSIBLE]
    return {**found, "absent": [Expression(f"the {name}", "absent", ()) for name in absent]}


def expressions(
    facts: ImageFacts,
    absences: Absences,
    count: int,
    rng: StableRng,
    also_present: frozenset[str] = frozenset(),
) -> tuple[Expression, ...]:
    """At most `count` expressions, one of each family in turn; one wording per group, and few absent categories."""
    pools = candidates(facts, absences, also_present)
    shuffled = {family: rng.shuffled(pool) for family, pool in pools.items()}
    shuffled["group"] = list({one.targets: one for one in shuffled["group"]}.values())
    num_others = sum(len(pool) for family, pool in shuffled.items() if family != "absent")
    shuffled["absent"] = shuffled["absent"][: max(1, min(num_others, MAX_ABSENT))]
    return tuple(_in_turn(rng.shuffled(list(shuffled.values())))[:count])


def _in_turn(pools: Sequence[Sequence[Expression]]) -> list[Expression]:
    """The first of each pool, then the second of each, and so on."""
    longest = max(map(len, pools))
    return [pool[position] for position in range(longest) for pool in pools if position < len(pool)]
