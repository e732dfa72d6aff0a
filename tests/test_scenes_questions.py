"""Questions and captions, compared with answers from the id map and the appearances only."""

import re
from collections import Counter

import numpy as np
import pytest

from harness.data.example import Question
from harness.data.scenes import Config, Scene, caption, questions_about, scene_graph

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QuestionsOfScenes = list[tuple[Scene, tuple[Question, ...]]]


@pytest.fixture(scope="module")
def questions_of_scenes() -> QuestionsOfScenes:
    return [(scene_graph(Config(), "train", i), questions_about(Config(), "train", i)) for i in range(250)]


def matching(text: str, scene: Scene) -> list[int]:
    words = {re.sub(r"(?<!cros)s$", "", word.replace("crosses", "cross")) for word in text.split()}
    return [
        one.id
        for one in scene.objects
        if words <= {one.appearance.shape, one.appearance.colour, one.appearance.texture, "object"}
    ]


def centre(scene: Scene, number: int) -> tuple[float, float]:
    rows, columns = np.nonzero(scene.ids == number)
    return columns.mean(), rows.mean()


def compare(a: int, words: str, b: int, scene: Scene) -> bool:
    if words == "larger than":
        return bool((scene.ids == a).sum() > (scene.ids == b).sum())
    (ax, ay), (bx, by) = centre(scene, a), centre(scene, b)
    return {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[words]


def answer(text: str, scene: Scene) -> str:
    """The correct answer, from the words and the scene."""
    if match := re.fullmatch(r"how many (.+) are there", text):
        return NUMBERS[len(matching(match[1], scene))]
    if match := re.fullmatch(r"is there an? (.+)", text):
        return "yes" if matching(match[1], scene) else "no"
    if match := re.fullmatch(r"are there more (.+) than (.+)", text):
        return "yes" if len(matching(match[1], scene)) > len(matching(match[2], scene)) else "no"
    if match := re.fullmatch(r"what (colour|shape) is the (.+)|what (texture) does the (.+) have", text):
        (number,) = matching(match[2] or match[4], scene)
        return getattr(scene.objects[number - 1].appearance, match[1] or match[3])
    match = re.fullmatch(r"is the (.+) (larger than|left of|right of|above|below) the (.+)", text)
    assert match, text
    (a,), (b,) = matching(match[1], scene), matching(match[3], scene)
    return "yes" if compare(a, match[2], b, scene) else "no"


def test_an_independent_interpreter_finds_the_same_answers(questions_of_scenes: QuestionsOfScenes) -> None:
    for scene, found in questions_of_scenes:
        for question in found:
            assert answer(question.text, scene) == question.answer, question


def test_every_family_occurs_and_yes_and_no_are_balanced(questions_of_scenes: QuestionsOfScenes) -> None:
    found = [question for _, questions in questions_of_scenes for question in questions]
    assert {question.family for question in found} == {"counting", "existence", "attribute", "comparison"}
    for kind in ("existence", "comparison"):
        answers = Counter(question.answer for question in found if question.family == kind)
        assert set(answers) == {"yes", "no"}
        assert answers["yes"] / answers.total() == pytest.approx(0.5, abs=0.1)


def test_questions_of_an_image_differ(questions_of_scenes: QuestionsOfScenes) -> None:
    assert all(len({question.text for question in found}) == len(found) for _, found in questions_of_scenes)


def test_a_caption_names_every_object_once(questions_of_scenes: QuestionsOfScenes) -> None:
    for scene, _ in questions_of_scenes:
        counted = 0
        for part in re.split(r", | and ", caption(scene)):
            article, _, phrase = part.partition(" ")
            number = 1 if article in ("a", "an") else NUMBERS.index(article)
            assert len(matching(phrase, scene)) == number, caption(scene)
            counted += number
        assert counted == len(scene.objects)
