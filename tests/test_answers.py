"""Scores of generated answers: values computed by hand, and CIDEr-D in a plain loop."""

import math
from collections import Counter

import pytest

from harness.data.example import Question
from harness.evaluation.text_metrics import SCORINGS, accuracy, caption_words, cider, score, vqa_accuracy, vqa_words
from harness.results.metrics import ANSWER_METRICS


def ten(*answers: str) -> list[str]:
    """The answers of ten annotators; the last answer is repeated."""
    return [*answers, *[answers[-1]] * (10 - len(answers))]


@pytest.mark.parametrize(
    ("generated", "references", "expected"),
    [
        ("red", ten("red"), 1.0),
        ("blue", ten("red"), 0.0),
        (
            "red",
            ten("red", "blue"),
            9 * (1 / 3) / 10,
        ),  # the annotator with this answer is among the other nine in nine of ten cases
        ("red", ten("red", "red", "blue"), (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("red", ten("red", "red", "red", "blue"), (3 * 2 / 3 + 7 * 1) / 10),
        ("red", ten("red", "red", "red", "red", "blue"), 1.0),
        ("", ten("red"), 0.0),
        (" red\n", ten("red"), 1.0),
        ("two", ten("2\n", "2 ", "2"), 0.0),  # spaces around answers are no disagreement
        # without normalisation, because all ten agree
        ("Red", ten("red"), 0.0),
        ("the red", ten("red"), 0.0),
        ("two", ten("2"), 0.0),
        # with normalisation, because the ten disagree
        ("The Red.", ten("red", "a red", "red", "blue"), (3 * 2 / 3 + 7 * 1) / 10),
        ("two", ten("2", "Two", "two", "three"), (3 * 2 / 3 + 7 * 1) / 10),
        ("none", ten("0", "zero", "none", "three"), (3 * 2 / 3 + 7 * 1) / 10),
    ],
)
def test_vqa_accuracy_by_hand(generated: str, references: list[str], expected: float) -> None:
    assert vqa_accuracy([generated], [references]) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red, round  ball!", "red round ball"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("10,000", "10000"),
        ("x-ray, 10,000", "xray 10000"),
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("dont know", "don't know"),
        ("don't know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("none", "0"),
        ("the", ""),
    ],
)
def test_words_are_normalised_as_in_the_official_script(text: str, expected: str) -> None:
    assert vqa_words(text) == expected


def test_accuracy_ignores_case_and_surrounding_punctuation_only() -> None:
    generated = ["Red.", " red ", "'red'!", "dark red", "", "reds", "re-d"]
    assert accuracy(generated, [["red"]] * 7) == [1, 1, 1, 0, 0, 0, 0]


def test_caption_words_exclude_punctuation() -> None:
    assert caption_words('A man\'s "red" hat, on-board (twice)... Yes!') == "a man's red hat on-board twice yes"
    assert caption_words("") == ""


def naive_cider(generated: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D from its paper: clipped tf-idf cosines of one to four words, a penalty on length, times ten."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for caption, expected in zip(generated, references, strict=True):
        total = 0.0
        for n in range(1, 5):
            frequency = Counter(gram for others in references for gram in {g for one in others for g in grams(one, n)})

            def weigh(counts: Counter[tuple[str, ...]], frequency: Counter = frequency) -> dict[tuple[str, ...], float]:
                return {g: k * (math.log(len(references)) - math.log(max(1, frequency[g]))) for g, k in counts.items()}

            ours = weigh(grams(caption, n))
            for one in expected:
                theirs = weigh(grams(one, n))
                norms = math.sqrt(sum(v * v for v in ours.values()) * sum(v * v for v in theirs.values()))
                overlap = sum(min(v, theirs.get(g, 0.0)) * theirs.get(g, 0.0) for g, v in ours.items())
                apart = sum(grams(caption, 2).values()) - sum(grams(one, 2).values())
                total += (overlap / norms if norms else 0.0) * math.exp(-(apart**2) / 72) / len(expected)
        scores.append(10 * total / 4)
    return scores


def test_cider_equals_the_formula_of_its_paper() -> None:
    generated = ["a red ball on the grass", "two dogs run", "a cat"]
    references = [
        ["a red ball lies on the grass", "a ball on grass"],
        ["two dogs run in a park", "two dogs running"],
        ["a cat", "a small cat sleeps"],
    ]
    assert cider(generated, references) == pytest.approx(naive_cider(generated, references))
    assert cider(generated, references)[0] > cider([generated[1], *generated[1:]], references)[0]


def test_captions_without_words_score_zero() -> None:
    assert cider(["a cat"], [["..."]]) == [0.0]
    assert cider([], []) == []
    found = cider(["", "a red ball", "two dogs"], [["a cat"], ["a red ball"], ["..."]])
    assert found[0] == found[2] == 0
    assert found[1] > 0


def test_answers_are_scored_by_the_scoring_of_their_question_in_order() -> None:
    questions = [
        Question("what", "all", "red", ("red",), "accuracy"),
        Question("describe", "caption", "a red ball", ("a red ball",), "cider"),
        Question("which", "all", "red", tuple(ten("red")), "vqa_accuracy"),
        Question("describe", "caption", "a cat", ("a cat",), "cider"),
    ]
    found = score(["red", "a red ball", "blue", "a dog"], questions)
    assert found[0] == 1
    assert found[2] == 0
    assert [found[1], found[3]] == cider(["a red ball", "a dog"], [["a red ball"], ["a cat"]])
    assert score([], []) == []


def test_every_scoring_has_a_column() -> None:
    assert set(SCORINGS) == set(ANSWER_METRICS)
