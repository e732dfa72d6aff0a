"""Rules of expressions about photographs: a naive reader finds the same objects; each margin excludes near misses."""

import re
from collections import Counter

import numpy as np
import pytest

from harness.data.coco_rules import FAMILIES, Absences, ImageFacts, Instance, expressions, space
from harness.data.coco_rules.grammar import MAX_ABSENT, candidates
from harness.data.coco_rules.nouns import are_alike, plural
from harness.data.example import Expression, encode
from harness.data.scenes.stable_rng import StableRng
from tests import drawn_coco
from tests.drawn_coco import CATEGORIES, Drawn

ABSENCES = Absences(CATEGORIES, [frozenset({"dog", "kite"}), frozenset({"dog", "kite", "clock"}), frozenset({"cat"})])
RANKS = {"second": 1, "third": 2, "fourth": 3}
FROM_SIDE = {"left": (1, 1), "right": (1, -1), "top": (0, 1), "bottom": (0, -1)}  # axis of (rows, columns), sign


def facts_of(drawn: Drawn, uncertain: frozenset[str] = frozenset()) -> ImageFacts:
    named = [(name, mask) for (name, _), mask in zip(drawn, drawn_coco.masks(drawn), strict=True) if mask.any()]
    return ImageFacts([Instance(k, name, encode(mask)) for k, (name, mask) in enumerate(named, start=1)], uncertain)


def all_of(drawn: Drawn, uncertain: frozenset[str] = frozenset()) -> dict[str, tuple[int, ...]]:
    """Every expression with its targets."""
    pools = candidates(facts_of(drawn, uncertain), ABSENCES, frozenset())
    return {one.text: one.targets for pool in pools.values() for one in pool}


def interpret(text: str, drawn: Drawn) -> list[int]:
    """Object numbers from pixels alone, without margins and without code of the rules."""
    masks = drawn_coco.masks(drawn)
    names = [name for name, _ in drawn]
    plurals = {"people": "person", "buses": "bus"}

    def numbers(noun: str) -> list[int]:
        return [k for k, name in enumerate(names) if name == noun]

    def middle(k: int, side: str) -> float:
        axis, sign = FROM_SIDE[side]
        return float(np.nonzero(masks[k])[axis].mean()) * sign

    if match := re.fullmatch(r"(all|both) (\w+)", text):
        found = numbers(plurals.get(match[2], match[2].removesuffix("s")))
        assert len(found) == 2 if match[1] == "both" else len(found) > 1
    elif match := re.fullmatch(r"every (\w+)", text):
        found = numbers(match[1])
    elif match := re.fullmatch(r"the (left|right|top|bottom)most (\w+)", text):
        found = [min(numbers(match[2]), key=lambda k: middle(k, match[1]))]
    elif match := re.fullmatch(r"the (second|third|fourth) (\w+) from the (left|right)", text):
        found = [sorted(numbers(match[2]), key=lambda k: middle(k, match[3]))[RANKS[match[1]]]]
    elif match := re.fullmatch(r"the (largest|smallest) (\w+)", text):
        sign = -1 if match[1] == "largest" else 1
        found = [min(numbers(match[2]), key=lambda k: sign * masks[k].sum())]
    elif match := re.fullmatch(r"the (\w+) (left|right) of the (\w+)", text):
        (anchor,) = numbers(match[3])
        found = [k for k in numbers(match[1]) if middle(k, match[2]) < middle(anchor, match[2])]
        assert len(found) == 1
    else:
        found = numbers(text.removeprefix("the "))
        assert len(found) <= 1
    return [k + 1 for k in found]


@pytest.fixture(scope="module")
def scattered() -> list[tuple[Drawn, list[Expression]]]:
    rng = np.random.default_rng(0)
    layouts = [drawn_coco.scatter(int(rng.integers(2, 9)), rng) for _ in range(600)]
    return [
        (drawn, [one for pool in candidates(facts_of(drawn), ABSENCES, frozenset()).values() for one in pool])
        for drawn in layouts
    ]


def test_a_naive_reader_finds_the_same_objects(scattered: list[tuple[Drawn, list[Expression]]]) -> None:
    for drawn, found in scattered:
        for one in found:
            assert tuple(sorted(interpret(one.text, drawn))) == one.targets, f"{drawn}: {one}"


def test_every_family_occurs(scattered: list[tuple[Drawn, list[Expression]]]) -> None:
    counts = Counter(one.family for _, found in scattered for one in found)
    assert set(counts) == set(FAMILIES)
    assert min(counts.values()) >= 10


def test_an_instance_is_measured_as_by_numpy() -> None:
    mask = np.zeros((60, 120), bool)
    mask[10:30, 20:80] = mask[25:40, 60:90] = True
    mask[50:52, 0:2] = True
    one = Instance(1, "dog", encode(mask))
    rows, columns = np.nonzero(mask)
    assert one.area == mask.sum() / mask.size
    assert one.box == (0, 10 / 120, 90 / 120, 52 / 120)
    assert one.centroid == pytest.approx(((columns.mean() + 0.5) / 120, (rows.mean() + 0.5) / 120))
    assert one.is_cut
    assert one.largest_part == (mask.sum() - 4) / mask.sum()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("person", "people"), ("knife", "knives"), ("bus", "buses"), ("wine glass", "wine glasses")),
        *(("mouse", "mice"), ("sheep", "sheep"), ("hair drier", "hair driers"), ("couch", "couches")),
        *(("tv", "tvs"), ("toothbrush", "toothbrushes"), ("skis", "skis"), ("scissors", "scissors")),
        *(("broccoli", "broccoli"), ("child", "children"), ("teddy bear", "teddy bears")),
    ],
)
def test_plurals_are_english(name: str, expected: str) -> None:
    assert plural(name) == expected


def test_alike_are_near_synonyms_and_names_with_the_same_noun() -> None:
    assert are_alike("car", "truck")
    assert are_alike("bear", "teddy bear")
    assert not are_alike("dog", "cat")
    assert not are_alike("dog", "dog")


DOG, OTHER = ("dog", (10, 40, 40, 70)), ("dog", (100, 40, 130, 70))
FAR = ("cat", (60, 20, 90, 50))


def test_one_object_is_named_by_its_category() -> None:
    assert all_of([DOG, FAR])["the dog"] == (1,)
    assert "the dog" not in all_of([DOG, OTHER])


def test_a_crowd_excludes_its_category_and_those_alike() -> None:
    assert "the dog" not in all_of([DOG], frozenset({"dog"}))
    car = ("car", (10, 40, 50, 70))
    assert all_of([car])["the car"] == (1,)
    assert "the car" not in all_of([car], frozenset({"truck"}))


def test_an_object_that_looks_alike_excludes_every_expression() -> None:
    cars = [("car", (5, 40, 35, 70)), ("car", (60, 40, 90, 70))]
    assert {"the leftmost car", "all cars"} <= all_of(cars).keys()
    found = all_of([*cars, ("truck", (120, 40, 150, 70))])
    assert not [text for text in found if "car" in text or "truck" in text]


@pytest.mark.parametrize(
    ("box", "is_named"),
    [
        ((60, 60, 70, 70), True),  # 100 of 19,200 pixels
        ((60, 60, 70, 69), False),  # 90
        ((0, 40, 24, 80), True),  # cut, 24 of 160 pixels wide
        ((0, 40, 23, 80), False),
    ],
)
def test_a_target_is_large_enough_to_be_seen(box: drawn_coco.Box, is_named: bool) -> None:
    assert ("the dog" in all_of([("dog", box)])) == is_named


@pytest.mark.parametrize(("width", "is_named"), [(8, True), (12, False)])
def test_an_object_in_two_parts_is_no_target(width: int, is_named: bool) -> None:
    """A cat covers all rows of the dog, with `width` columns of it on the right side and 32 on the left one."""
    dog, cat = ("dog", (40, 40, 80 + width, 70)), ("cat", (72, 40, 80, 70))
    assert ("the dog" in all_of([dog, cat])) == is_named


@pytest.mark.parametrize(("left", "is_clear"), [(48, True), (46, False)])
def test_a_rank_needs_a_gap_of_ten_224ths(left: int, is_clear: bool) -> None:
    """Centres are 8 or 6 pixels apart; the margin is 10 / 224 of 160 pixels, 7.1."""
    found = all_of([("dog", (40, 10, 70, 40)), ("dog", (left, 70, left + 30, 100))])
    assert ("the leftmost dog" in found) == is_clear
    assert found["the topmost dog"] == (1,)


def test_a_rank_needs_both_edges_in_order() -> None:
    """The second dog begins left of the first one and ends right of it."""
    found = all_of([("dog", (40, 10, 60, 30)), ("dog", (30, 60, 110, 80))])
    assert "the leftmost dog" not in found
    assert "the rightmost dog" not in found


def test_an_object_within_the_box_of_another_excludes_ranks_but_not_the_group() -> None:
    parts = [("dog", (40, 40, 70, 100)), ("cat", (70, 40, 80, 100)), ("dog", (80, 40, 140, 100))]
    assert "the leftmost dog" in all_of(parts)
    inner = [("dog", (20, 20, 120, 100)), ("dog", (90, 40, 126, 80))]
    found = all_of(inner)
    assert found["all dogs"] == (1, 2)
    assert not [text for text in found if "most" in text or "est" in text]


@pytest.mark.parametrize(("side", "is_clear"), [(54, True), (48, False)])
def test_the_largest_is_three_times_as_large(side: int, is_clear: bool) -> None:
    """30 x 30 is 900 pixels."""
    found = all_of([DOG, ("dog", (60, 20, 60 + side, 20 + side))])
    assert ("the largest dog" in found) == is_clear
    assert ("the smallest dog" in found) == is_clear


def test_the_largest_is_wider_and_higher() -> None:
    assert "the largest dog" not in all_of([DOG, ("dog", (50, 40, 150, 75))])


def test_a_cut_object_is_not_the_smallest() -> None:
    large = ("dog", (60, 20, 140, 100))
    assert "the smallest dog" in all_of([("dog", (10, 40, 40, 70)), large])
    assert "the smallest dog" not in all_of([("dog", (0, 40, 30, 70)), large])


def test_ordinals_count_three_to_five_objects_of_similar_size() -> None:
    row = [("dog", (5 + 30 * k, 40, 25 + 30 * k, 60)) for k in range(5)]
    assert "the second dog from the left" not in all_of(row[:2])
    assert all_of(row[:3])["the second dog from the left"] == (2,)
    assert all_of(row)["the fourth dog from the right"] == (2,)
    sixth = ("dog", (5, 80, 25, 100))
    assert not [text for text in all_of([*row, sixth]) if "from" in text]
    giant = ("dog", (100, 20, 155, 110))
    assert not [text for text in all_of([*row[:2], giant]) if "from" in text]
    tiny = ("dog", (80, 40, 88, 48))
    assert not [text for text in all_of([*row[:2], tiny]) if "from" in text]


@pytest.mark.parametrize(
    ("second", "is_clear"),
    [
        ((100, 40, 130, 70), True),
        ((62, 40, 88, 70), False),  # 0 pixels from the anchor
        ((66, 40, 96, 70), True),  # 6 pixels right of it; 6 / 224 of 160 is 4.3
        ((63, 40, 93, 70), False),  # 3 pixels
    ],
)
def test_all_others_are_clearly_on_the_other_side(second: drawn_coco.Box, is_clear: bool) -> None:
    anchor = ("cat", (60, 80, 90, 110))
    assert ("the dog left of the cat" in all_of([DOG, ("dog", second), anchor])) == is_clear


@pytest.mark.parametrize(
    ("first", "is_clear"),
    [
        ((48, 80, 78, 110), True),  # 12 pixels left of the anchor; 16 / 224 of 160 is 11.4
        ((50, 80, 80, 110), False),
        ((30, 30, 60, 60), False),  # 30 to the left and 50 up
    ],
)
def test_a_relation_is_farther_along_than_across(first: drawn_coco.Box, is_clear: bool) -> None:
    """Masks may overlap here."""
    drawn = [("dog", first), ("dog", (120, 80, 150, 110)), ("clock", (60, 80, 90, 110))]
    instances = [Instance(k, name, encode(_rectangle(box))) for k, (name, box) in enumerate(drawn, start=1)]
    found = candidates(ImageFacts(instances), ABSENCES, frozenset())["relation"]
    assert ("the dog left of the clock" in {one.text for one in found}) == is_clear


def _rectangle(box: drawn_coco.Box) -> np.ndarray:
    left, top, right, bottom = box
    mask = np.zeros(drawn_coco.SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_relation_needs_a_single_anchor_and_several_objects() -> None:
    anchor = ("cat", (60, 40, 90, 70))
    assert "the dog left of the cat" in all_of([DOG, OTHER, anchor])
    assert "the dog left of the cat" not in all_of([DOG, anchor])
    assert "the dog left of the cat" not in all_of([DOG, OTHER, anchor, ("cat", (60, 90, 90, 110))])


@pytest.mark.parametrize(("side", "is_clear"), [(8, True), (7, False)])
def test_a_group_has_no_tiny_object(side: int, is_clear: bool) -> None:
    """64 and 49 of 19,200 pixels; the bound is 57.6."""
    assert ("all dogs" in all_of([DOG, ("dog", (100, 40, 100 + side, 40 + side))])) == is_clear


def test_a_group_has_no_object_that_is_nearly_outside_the_image_and_at_most_ten() -> None:
    assert "all dogs" not in all_of([DOG, ("dog", (0, 80, 12, 110))])
    row = [("dog", (4 + 14 * k, 40, 14 + 14 * k, 60)) for k in range(11)]
    assert "all dogs" in all_of(row[:10])
    assert "all dogs" not in all_of(row)


def test_both_needs_two_objects() -> None:
    assert {"all dogs", "every dog", "both dogs"} <= all_of([DOG, OTHER]).keys()
    assert "both dogs" not in all_of([DOG, OTHER, ("dog", (60, 90, 90, 110))])


def test_bunches_are_grouped_but_not_counted_and_tables_are_not_named() -> None:
    bananas = [("banana", (5, 40, 35, 70)), ("banana", (60, 40, 90, 70))]
    found = all_of(bananas)
    assert [text for text in found if "banana" in text] == ["all bananas"]
    assert "the banana" not in all_of(bananas[:1])
    assert not [text for text in all_of([("dining table", (5, 40, 60, 70))]) if "table" in text]
    assert "dining table" not in Absences(["dining table", "dog"], []).of(frozenset())


def test_absent_categories_are_neither_present_nor_alike_and_begin_with_frequent_companions() -> None:
    found = ABSENCES.of(frozenset({"dog"}))
    assert found[:2] == ["kite", "clock"]
    assert "dog" not in found
    assert {"truck", "bus"} & set(ABSENCES.of(frozenset({"car"}))) == set()
    assert "kite" not in all_of([DOG], frozenset({"kite"}))


def test_families_take_turns_and_absent_categories_are_few() -> None:
    row = [("dog", (5 + 30 * k, 40, 25 + 30 * k, 60)) for k in range(4)]
    facts = facts_of([*row, ("clock", (70, 80, 100, 110))])
    few = expressions(facts, ABSENCES, 4, StableRng((0,)))
    assert len({one.family for one in few}) == 4
    many = expressions(facts, ABSENCES, 1000, StableRng((0,)))
    counts = Counter(one.family for one in many)
    assert counts["absent"] == MAX_ABSENT
    assert counts["group"] == 1
    assert len({one.text for one in many}) == len(many)
    assert many[:4] == few
    assert expressions(facts, ABSENCES, 1000, StableRng((1,))) != many


def test_absent_categories_are_at_most_as_many_as_other_expressions() -> None:
    for drawn, expected in (([], 1), ([DOG], 1), ([DOG, FAR], 2)):
        found = expressions(facts_of(drawn), ABSENCES, 1000, StableRng((0,)))
        assert Counter(one.family for one in found)["absent"] == expected


def test_categories_that_may_be_seen_are_not_absent() -> None:
    pool = candidates(facts_of([DOG]), ABSENCES, frozenset({"kite"}))["absent"]
    assert "the kite" not in {one.text for one in pool}
    assert "the clock" in {one.text for one in pool}


def test_margins_of_positions_are_those_of_scenes() -> None:
    from harness.data.scenes import space as scenes_space
    from harness.data.scenes.scene import SIDE

    for name in ("MARGIN", "SIDE_MARGIN", "OTHER_SIDE_MARGIN"):
        assert getattr(space, name) * SIDE == getattr(scenes_space, name)
