"""Every expression is interpreted by a parser that shares no code with the grammar.

It receives the objects' shapes, colours, textures and depth, and derives all else from the id map: centres are means of
visible pixels, sizes are their counts, and there are no margins. Agreement shows that the grammar's margins suffice.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from harness.data.example import Example
from harness.data.scenes import FAMILIES, Config, Scene, load, scene_graph
from harness.data.scenes.scene import SIDE
from harness.data.scenes.shapes import coverage

CONFIG = Config(train_images=300, test_images=60)
RANKS = {"second": 1, "third": 2, "fourth": 3}
REGIONS = {
    "top left corner": (0, 0),
    "top right corner": (SIDE, 0),
    "bottom left corner": (0, SIDE),
    "bottom right corner": (SIDE, SIDE),
    "middle": (SIDE / 2, SIDE / 2),
}


@dataclass(frozen=True)
class Thing:
    """An object in the representation of the interpreter."""

    id: int
    words: frozenset[str]
    x: float
    y: float
    area: int
    outline: np.ndarray


FROM_SIDE: dict[str, Callable[[Thing], float]] = {
    "left": lambda thing: thing.x,
    "right": lambda thing: -thing.x,
    "top": lambda thing: thing.y,
    "bottom": lambda thing: -thing.y,
}
RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda one, anchor: one.x < anchor.x,
    "right of": lambda one, anchor: one.x > anchor.x,
    "above": lambda one, anchor: one.y < anchor.y,
    "below": lambda one, anchor: one.y > anchor.y,
    "in front of": lambda one, anchor: one.id > anchor.id and bool((one.outline & anchor.outline).any()),
    "behind": lambda one, anchor: one.id < anchor.id and bool((one.outline & anchor.outline).any()),
}


def things_of(scene: Scene) -> list[Thing]:
    things = []
    for one in scene.objects:
        first, second = coverage(one.appearance)
        reach = len(first) // 2
        outline = np.zeros((SIDE, SIDE), dtype=bool)
        outline[one.y - reach : one.y + reach, one.x - reach : one.x + reach] = first + second >= 2
        rows, columns = np.nonzero(scene.ids == one.id)
        words = frozenset((one.appearance.shape, one.appearance.colour, one.appearance.texture, "object"))
        things.append(Thing(one.id, words, columns.mean() + 0.5, rows.mean() + 0.5, len(rows), outline))
    return things


def described(words: Sequence[str], things: Sequence[Thing]) -> list[Thing]:
    return [thing for thing in things if set(words) <= thing.words]


def the_one(things: Sequence[Thing]) -> Thing:
    assert len(things) == 1, "the description matches several objects"
    return things[0]


def interpret(text: str, things: Sequence[Thing]) -> list[Thing]:
    """The objects to which the words refer."""
    if match := re.fullmatch(r"(all|every|both) (.+)", text):
        quantifier, rest = match.groups()
        found = described([re.sub(r"(?<=[a-z])(?<!cros)s$|(?<=cross)es$", "", word) for word in rest.split()], things)
        assert len(found) == 2 if quantifier == "both" else len(found) >= 2
        return found
    if match := re.fullmatch(r"the (second|third|fourth) (.+) from the (\w+)", text):
        found = sorted(described(match[2].split(), things), key=FROM_SIDE[match[3]])
        return [found[RANKS[match[1]]]]
    if match := re.fullmatch(r"the (.+) in the (.* corner|middle)", text):
        x, y = REGIONS[match[2]]
        return [min(described(match[1].split(), things), key=lambda one: max(abs(one.x - x), abs(one.y - y)))]
    if match := re.fullmatch(r"the (.+) closest to the (.+)", text):
        anchor = the_one(described(match[2].split(), things))
        others = [one for one in described(match[1].split(), things) if one is not anchor]
        return [min(others, key=lambda one: np.hypot(one.x - anchor.x, one.y - anchor.y))]
    for relation, predicate in RELATIONS.items():
        if match := re.fullmatch(rf"the (.+) {relation} the (.+)", text):
            anchor = the_one(described(match[2].split(), things))
            found = [one for one in described(match[1].split(), things) if one is not anchor and predicate(one, anchor)]
            return [the_one(found)]
    if match := re.fullmatch(r"the (left|right|top|bottom)most (.+)", text):
        return [min(described(match[2].split(), things), key=FROM_SIDE[match[1]])]
    if match := re.fullmatch(r"the (smallest|small|largest|large) (.+)", text):
        sign = 1 if match[1].startswith("small") else -1
        return [min(described(match[2].split(), things), key=lambda one: sign * one.area)]
    found = described(text.removeprefix("the ").split(), things)
    return [the_one(found)] if found else []


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Example, list[Thing]]]:
    examples = load(CONFIG, "train")
    return [(examples[i], things_of(scene_graph(CONFIG, "train", i))) for i in range(len(examples))]


def test_an_independent_interpreter_finds_the_same_targets(pairs: list[tuple[Example, list[Thing]]]) -> None:
    for example, things in pairs:
        for expression in example.expressions:
            found = tuple(sorted(thing.id for thing in interpret(expression.text, things)))
            assert found == expression.targets, f"{example.image_id}: {expression}"


def test_only_absent_expressions_have_no_target_and_only_groups_several(
    pairs: list[tuple[Example, list[Thing]]],
) -> None:
    for example, things in pairs:
        for expression in example.expressions:
            expected = {"absent": range(1), "group": range(2, len(things))}.get(expression.family, range(1, 2))
            assert len(expression.targets) in expected, f"{example.image_id}: {expression}"


def test_a_texture_word_is_necessary(pairs: list[tuple[Example, list[Thing]]]) -> None:
    for example, things in pairs:
        for expression in example.expressions:
            if expression.family == "texture":
                without = expression.text.split()[2:]
                assert len(described(without, things)) > 1, f"{example.image_id}: {expression}"


def test_extremes_and_ranks_keep_ten_pixels(pairs: list[tuple[Example, list[Thing]]]) -> None:
    """One pixel of tolerance, because the interpreter's centres are not rounded."""
    pattern = re.compile(r"the (?:(left|right|top|bottom)most|\w+) (.+?)(?: from the (\w+))?")
    for example, things in pairs:
        for expression in example.expressions:
            match = pattern.fullmatch(expression.text)
            if not match or not (match[1] or match[3]):
                continue
            distance = FROM_SIDE[match[1] or match[3]]
            target = next(thing for thing in things if thing.id in expression.targets)
            others = [thing for thing in described(match[2].split(), things) if thing is not target]
            gap = min(abs(distance(other) - distance(target)) for other in others)
            assert gap > 9, f"{example.image_id}: {expression}"


def test_absent_words_occur_in_the_scene_nearly_always(pairs: list[tuple[Example, list[Thing]]]) -> None:
    plausible = []
    for example, things in pairs:
        known_words = frozenset().union(*(thing.words for thing in things))
        plausible += [
            set(expression.text.split()[1:]) <= known_words
            for expression in example.expressions
            if expression.family == "absent"
        ]
    assert np.mean(plausible) > 0.95


def test_every_image_has_the_configured_number_of_different_expressions() -> None:
    for count in (1, 8, 12):
        examples = load(Config(train_images=40, expressions_per_image=count), "train")
        assert all(len({one.text for one in example.expressions}) == count for example in examples)
        assert all(len(example.expressions) == count for example in examples)


def test_families_have_about_their_shares(pairs: list[tuple[Example, list[Thing]]]) -> None:
    shares = {"attribute": 28, "texture": 12, "absolute": 16, "relation": 16, "ordinal": 10, "group": 10, "absent": 8}
    counts = Counter(expression.family for example, _ in pairs for expression in example.expressions)
    assert set(counts) == set(shares) == set(FAMILIES)
    for family, share in shares.items():
        assert counts[family] / counts.total() == pytest.approx(share / 100, abs=0.03), family


def test_words_are_few_lower_case_and_known_to_the_training_split(pairs: list[tuple[Example, list[Thing]]]) -> None:
    words = {word for example, _ in pairs for expression in example.expressions for word in expression.text.split(" ")}
    assert len(words) <= 64
    assert all(re.fullmatch("[a-z]+", word) for word in words)
    test_words = {w for example in load(CONFIG, "test") for one in example.expressions for w in one.text.split(" ")}
    assert test_words <= words
