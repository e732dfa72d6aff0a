"""GQA: questions made from scene graphs of Visual Genome's images, each with one right answer.

The balanced questions, as everybody reports them; testdev is what papers score. Some of Visual Genome's images are
COCO's too, under other numbers, so that `mix` refuses them beside COCO's.

Source: https://cs.stanford.edu/people/dorarad/gqa, https://arxiv.org/abs/1902.09506; scoring:
`harness.evaluation.text_metrics`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.data.example import Example, Question
from harness.data.formats.checking import Finding
from harness.data.formats.reading import MALFORMED, as_text, read_json, what_is_wrong
from harness.data.question_files import ImageQuestions, QuestionCounts, ShortAnswersConfig, check_questions, examples
from harness.errors import DataError, suggest

SPLITS = ("train", "val", "testdev")
PUBLISHED = {
    "train": QuestionCounts(943000, 72140),
    "val": QuestionCounts(132062, 10234),
    "testdev": QuestionCounts(12578, 398),
}
SOURCE = "questions1.2.zip and images.zip: https://cs.stanford.edu/people/dorarad/gqa/download.html"


class Config(ShortAnswersConfig):
    """Where it lies, and how it asks."""

    name: Literal["gqa"] = "gqa"

    @property
    def splits(self) -> tuple[str, ...]:
        """The first is trained on."""
        return SPLITS


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by image id.

    Raises:
        DataError: a file is missing or not what its format promises, or there is no such split.
    """
    return examples(_read(config, split))


def image_ids(config: Config, split: str) -> set[str]:
    """Of the images of a split, of which no file is looked at."""
    return set(_read(config, split))


def check(root: Path) -> Iterator[Finding]:
    """What lies under `root`, held against what is published."""
    for split, published in PUBLISHED.items():
        yield from check_questions(f"gqa {split}", lambda: _read(Config(root=root), split), published, SOURCE)  # noqa: B023


def _read(config: Config, split: str) -> Mapping[str, ImageQuestions]:
    if split not in SPLITS:
        raise DataError(f"gqa has no split {split!r} with answers; {suggest(split, SPLITS)}")
    path = config.root / f"{split}_balanced_questions.json"
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; questions by their id are allowed; take GQA's file")
    of_image: dict[str, list[Question]] = defaultdict(list)
    for key in sorted(content):
        image_id, question = _question(config, path, key, content[key])
        of_image[image_id].append(question)
    return {
        f"gqa/{image_id}": ImageQuestions(config.root / "images" / f"{image_id}.jpg", tuple(of_image[image_id]))
        for image_id in sorted(of_image)
    }


def _question(config: Config, path: Path, key: str, entry: Mapping[str, Any]) -> tuple[str, Question]:
    try:
        answer, family = as_text(entry["answer"]), as_text(entry["types"]["structural"])
        text = config.asks(as_text(entry["question"]))
        return as_text(str(entry["imageId"])), Question(text, family, answer, (answer,), "accuracy")
    except MALFORMED as error:
        raise DataError(
            f"{path}: question {key} is none ({what_is_wrong(error)}); it needs imageId, question, answer and "
            "types.structural"
        ) from None
