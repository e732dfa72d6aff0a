"""Questions with answers, and a caption, from the same scene graph as the referring expressions."""

from collections.abc import Callable
from itertools import product

from harness.data.example import Question
from harness.data.scenes import space
from harness.data.scenes.phrases import Facts, Phrase
from harness.data.scenes.scene import COLOURS, Scene
from harness.data.scenes.shapes import SHAPES
from harness.data.scenes.stable_rng import StableRng

QUESTION_FAMILIES = ("counting", "existence", "attribute", "comparison")
CAPTION_FAMILY = "caption"
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIDES = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}


def _question(text: str, answer: str, family: str) -> Question:
    """A question with one correct answer, a single word."""
    return Question(text, family, answer, (answer,), "accuracy")


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _counting(facts: Facts, rng: StableRng) -> list[Question]:
    """Counts of two kinds of objects in the scene, and sometimes of a random kind."""
    present = [phrase for phrase in facts.phrases if phrase.texture is None]
    missing = [Phrase(None, rng.pick(COLOURS), rng.pick(SHAPES))]
    phrases = dict.fromkeys([*rng.shuffled(present)[:2], *(missing if rng.percent(25) else [])])
    return [
        _question(f"how many {p.text(plural=True)} are there", _NUMBERS[len(facts.phrases.get(p, ()))], "counting")
        for p in phrases
    ]


def _existence(facts: Facts, rng: StableRng) -> list[Question]:
    """One question with the answer yes and one with no; the latter uses words that occur in the scene if possible."""
    appearances = [one.appearance for one in facts.objects]
    present = [phrase for phrase in facts.phrases if phrase.texture is None and phrase.colour and phrase.shape]
    mixed = [Phrase(None, a.colour, b.shape) for a, b in product(appearances, appearances)]
    anything = [Phrase(None, colour, shape) for colour, shape in product(COLOURS, SHAPES)]
    missing = next(p for p in (*rng.shuffled(mixed), *rng.shuffled(anything)) if p not in facts.phrases)
    return [
        _question(f"is there {_article(phrase.text())} {phrase.text()}", _yes(phrase in facts.phrases), "existence")
        for phrase in (rng.pick(present), missing)
    ]


def _attribute(facts: Facts, rng: StableRng) -> list[Question]:
    """Attributes of unambiguously described objects."""
    found = []
    for phrase, one in facts.unique:
        if phrase.colour is None:
            found.append(_question(f"what colour is the {phrase.text()}", one.appearance.colour, "attribute"))
        if phrase.shape is None:
            found.append(_question(f"what shape is the {phrase.text()}", one.appearance.shape, "attribute"))
        found.append(_question(f"what texture does the {phrase.text()} have", one.appearance.texture, "attribute"))
    return rng.shuffled(found)[:2]


def _comparison(facts: Facts, rng: StableRng) -> list[Question]:
    """Counts of two kinds, and sizes and positions of two objects; only if the difference is clear."""
    kinds = [Phrase(None, None, shape) for shape in sorted({one.appearance.shape for one in facts.objects})]
    kinds += [Phrase(None, colour, None) for colour in sorted({one.appearance.colour for one in facts.objects})]
    more = [
        _question(
            f"are there more {a.text(plural=True)} than {b.text(plural=True)}",
            _yes(len(facts.phrases[a]) > len(facts.phrases[b])),
            "comparison",
        )
        for a, b in product(kinds, kinds)
        if a != b
    ]
    pairs = []
    for (a_phrase, a), (b_phrase, b) in product(facts.unique, facts.unique):
        a_text, b_text = a_phrase.text(), b_phrase.text()
        larger = None if a is b else space.largest([a, b])
        if larger:
            pairs.append(_question(f"is the {a_text} larger than the {b_text}", _yes(larger is a), "comparison"))
        for words, side in _SIDES.items():
            verdict = None if a is b else space.on_side(a, b, side)
            if verdict is not None:
                pairs.append(_question(f"is the {a_text} {words} the {b_text}", _yes(verdict), "comparison"))
    return [*_balanced(more, rng)[:1], *_balanced(pairs, rng)[:1]]


def _balanced(found: list[Question], rng: StableRng) -> list[Question]:
    """The questions in random order; the first has the answer yes with a probability of one half, if there is one."""
    first = _yes(rng.percent(50))
    return sorted(rng.shuffled(found), key=lambda question: question.answer != first)


_KINDS: tuple[Callable[[Facts, StableRng], list[Question]], ...] = (_counting, _existence, _attribute, _comparison)


def questions(scene: Scene, rng: StableRng) -> tuple[Question, ...]:
    """About two questions of each kind, fewer if a scene has no unambiguous one."""
    facts = Facts(scene)
    return tuple(question for kind in _KINDS for question in kind(facts, rng))


def caption_request(scene: Scene) -> Question:
    """The request for a caption, with the caption from the scene graph."""
    text = caption(scene)
    return Question("describe the image", CAPTION_FAMILY, text, (text,), "cider")


def caption(scene: Scene) -> str:
    """A description of the scene, nearest objects first; objects of equal appearance are counted together."""
    counts: dict[Phrase, int] = {}
    for one in reversed(scene.objects):
        phrase = Phrase(one.appearance.texture, one.appearance.colour, one.appearance.shape)
        counts[phrase] = counts.get(phrase, 0) + 1
    parts = []
    for phrase, count in counts.items():
        article = _article(phrase.text()) if count == 1 else _NUMBERS[count]
        parts.append(f"{article} {phrase.text(plural=count > 1)}")
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
