"""How good an answer in words is, by the rules of the dataset that the question is from.

- `vqa_accuracy`: VQAv2's, with ten references. An answer is worth min(1, n / 3) for the n other annotators who gave it,
  averaged over leaving out each of the ten. Only where the ten disagree are they and the answer normalised; lmms-eval
  always does. Source: GT-Vision-Lab/VQA@a013f00, vqaEval.py, oddities included.
- `accuracy`: 1 for the one right answer, else 0. GQA's own eval.py compares text as it is; here case and the space and
  punctuation around an answer do not count, as in lmms-eval, since LLMs write them.
- `cider`: CIDEr-D of each caption, by pycocoevalcap; 1.0 is what papers print as 100. Document frequencies are those of
  the references scored together. Its tokenizer of the Penn Treebank needs Java; here words are what is between spaces
  once the punctuation that it drops is gone. They are other words where a caption has an apostrophe (it splits man 's
  and do n't), a number or a short form with a mark in it (it keeps 10:30 and u.s.) or brackets (it keeps -lrb-), so
  that figures are not exactly those of papers. METEOR and SPICE need Java as well and are not computed.
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
"""The official script hands a flag over where the number of replacements belongs, and the flag is 32."""
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
"""The official table; without the words in it that begin with a capital, since it is asked for words in lower case."""
_MARKS = re.compile(r"--|''|[.?!,:;`()\[\]{}\"]")
_MARKS_BETWEEN_SPACES = frozenset({"'", "-"})


def score(generated_text: Sequence[str], questions: Sequence[Question]) -> list[float]:
    """The score of each answer; what is scored alike is scored together."""
    scores = [0.0] * len(questions)
    for scoring in dict.fromkeys(question.scoring for question in questions):
        positions = [place for place, question in enumerate(questions) if question.scoring == scoring]
        found = SCORINGS[scoring](
            [generated_text[place] for place in positions], [questions[place].references for place in positions]
        )
        for place, value in zip(positions, found, strict=True):
            scores[place] = value
    return scores


def vqa_accuracy(generated_text: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """VQAv2's accuracy of each answer, against the answers of its annotators."""
    return [_agreement(answer, given) for answer, given in zip(generated_text, references, strict=True)]


def accuracy(generated_text: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Whether each answer is one of its references."""
    return [
        float(_plain(answer) in {_plain(right) for right in given})
        for answer, given in zip(generated_text, references, strict=True)
    ]


def cider(generated_text: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption against its references; 0 where no reference of any has a word."""
    scorer = CiderScorer()
    words = [[caption_words(one) for one in given] for given in references]
    if not any(any(given) for given in words):
        return [0.0] * len(generated_text)
    for caption, given in zip(generated_text, words, strict=True):
        scorer += (caption_words(caption), given)
    _, scores = scorer.compute_score()
    return [float(value) for value in scores]


SCORINGS: Mapping[str, Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]] = {
    "vqa_accuracy": vqa_accuracy,
    "accuracy": accuracy,
    "cider": cider,
}
"""By the name that questions carry."""


def _agreement(answer: str, given: Sequence[str]) -> float:
    answer, given = _trimmed(answer), [_trimmed(one) for one in given]
    if len(set(given)) > 1:
        answer, given = vqa_words(answer), [vqa_words(one) for one in given]
    matches = [one == answer for one in given]
    return sum(min(1.0, (sum(matches) - own) / 3) for own in matches) / len(matches)


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_words(text: str) -> str:
    """An answer without punctuation and articles, numbers as digits, contractions with their apostrophe."""
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
    """A caption as words in lower case with single spaces between them, punctuation left out."""
    words = _MARKS.sub(" ", caption.lower()).split()
    return " ".join(word for word in words if word not in _MARKS_BETWEEN_SPACES)
