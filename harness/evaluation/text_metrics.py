"""Scores of generated answers, by the rules of the dataset of the question.

- `vqa_accuracy`: VQAv2's accuracy, with ten references. The score is min(1, n / 3) for n equal answers among nine
  annotators, averaged over the ten ways to leave one out. Answers are normalised only if the ten disagree, whereas
  lmms-eval always normalises. Source: GT-Vision-Lab/VQA@a013f00, vqaEval.py, including its peculiarities.
- `accuracy`: 1 if the answer equals a reference, otherwise 0. GQA's eval.py compares the text unchanged; here case and
  the spaces and punctuation around an answer are ignored, as in lmms-eval, because LLMs generate them.
- `cider`: CIDEr-D of each caption, by pycocoevalcap; papers print 1.0 as 100. Document frequencies come from the
  references that are scored together. The Penn Treebank tokenizer of papers requires Java. Here words are separated by
  spaces after its punctuation is removed, which differs for apostrophes (it splits man 's and do n't), numbers and
  abbreviations with punctuation (it keeps 10:30 and u.s.) and brackets (it keeps -lrb-). Scores therefore differ
  slightly from those of papers. METEOR and SPICE require Java too and are not computed.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence

from pycocoevalcap.cider.cider_scorer import CiderScorer

from harness.data.example import Question

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_A_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32
"""The official script passes a flag of value 32 as the maximum number of replacements."""
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_ARTICLES = frozenset({"a", "an", "the"})
_WITH_APOSTROPHES = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd "
    "there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've "
    "when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
)
_WITH_TWO = (
    "couldn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've "
    "there'd've they'd've we'd've who'd've wouldn't've you'd've hadn't've"
)
_CONTRACTIONS = {
    **{word.replace("'", ""): word for word in _WITH_APOSTROPHES.split()},
    **{word.replace("'", "", 1): word for word in _WITH_TWO.split()},
    **{"".join(word.rsplit("'", 1)): word for word in _WITH_TWO.split()},
    **{
        "yall'll": "y'all'll",
        "y'allll": "y'all'll",
        "ow's'at": "'ow's'at",
        "'ows'at": "'ow's'at",
        "'ow'sat": "'ow's'at",
    },
    **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
    "somebody'd": "somebodyd",
}
"""The official table without its capitalised entries, because all words are in lower case."""
_MARKS = re.compile(r"--|''|[.?!,:;`()\[\]{}\"]")
_MARKS_BETWEEN_SPACES = frozenset({"'", "-"})


def score(generated_text: Sequence[str], questions: Sequence[Question]) -> list[float]:
    """The score of each answer; answers with the same scoring are scored together."""
    scores = [0.0] * len(questions)
    for scoring in dict.fromkeys(question.scoring for question in questions):
        indices = [index for index, question in enumerate(questions) if question.scoring == scoring]
        found = SCORINGS[scoring](
            [generated_text[index] for index in indices], [questions[index].references for index in indices]
        )
        for index, value in zip(indices, found, strict=True):
            scores[index] = value
    return scores


def vqa_accuracy(generated_text: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """VQAv2's accuracy of each answer, compared with the answers of its annotators."""
    return [_agreement(answer, expected) for answer, expected in zip(generated_text, references, strict=True)]


def accuracy(generated_text: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Whether each answer is one of its references."""
    return [
        float(_plain(answer) in {_plain(reference) for reference in expected})
        for answer, expected in zip(generated_text, references, strict=True)
    ]


def cider(generated_text: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption; 0 if all references are without words."""
    scorer = CiderScorer()
    words = [[caption_words(reference) for reference in expected] for expected in references]
    if not any(any(expected) for expected in words):
        return [0.0] * len(generated_text)
    for caption, expected in zip(generated_text, words, strict=True):
        scorer += (caption_words(caption), expected)
    _, scores = scorer.compute_score()
    return [float(value) for value in scores]


SCORINGS: Mapping[str, Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]] = {
    "vqa_accuracy": vqa_accuracy,
    "accuracy": accuracy,
    "cider": cider,
}
"""By name of the metric."""


def _agreement(answer: str, expected: Sequence[str]) -> float:
    answer, expected = _trimmed(answer), [_trimmed(one) for one in expected]
    if len(set(expected)) > 1:
        answer, expected = vqa_words(answer), [vqa_words(one) for one in expected]
    matches = [one == answer for one in expected]
    return sum(min(1.0, (sum(matches) - own) / 3) for own in matches) / len(matches)


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_words(text: str) -> str:
    """An answer without punctuation and articles, with numbers as digits and apostrophes in contractions."""
    is_run_together = _COMMA_IN_A_NUMBER.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        is_at_a_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if is_at_a_space or is_run_together else " ")
    plain = _FULL_STOP.sub("", plain, count=_MOST_FULL_STOPS)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _plain(text: str) -> str:
    return text.strip(string.whitespace + string.punctuation).lower()


def caption_words(caption: str) -> str:
    """The words of a caption in lower case without punctuation, separated by single spaces."""
    words = _MARKS.sub(" ", caption.lower()).split()
    return " ".join(word for word in words if word not in _MARKS_BETWEEN_SPACES)
