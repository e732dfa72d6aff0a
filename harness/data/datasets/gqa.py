"""GQA: questions generated from scene graphs of Visual Genome's images, each with one correct answer.

The balanced questions; papers report testdev. Some of Visual Genome's images are also in COCO, under other ids, so
`mix` refuses GQA together with datasets of COCO's images.

Source: https://cs.stanford.edu/people/dorarad/gqa, https://arxiv.org/abs/1902.09506; scoring:
`harness.evaluation.text_metrics`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from harness.data.example import Example, Question
from harness.data.formats.checking import Finding
from harness.data.formats.reading import MALFORMED, as_text, read_json, what_is_wrong
from harness.data.question_files import ImageQuestions, QuestionCounts, ShortAnswersConfig, check_questions, examples
from harness.errors import DataError

PUBLISHED = {
    "train": QuestionCounts(943000, 72140),
    "val": QuestionCounts(132062, 10234),
    "testdev": QuestionCounts(12578, 398),
}
SOURCE = "questions1.2.zip and images.zip: https://cs.stanford.edu/people/dorarad/gqa/download.html"


class Config(ShortAnswersConfig):
    """Paths of the files, and the form of a question."""

    name: Literal["gqa"] = "gqa"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "testdev")


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by image id.

    Raises:
        DataError: a file is missing or malformed, or the split does not exist.
    """
    return examples(_read(config, split))


def image_ids(config: Config, split: str) -> set[str]:
    """Ids of the images of a split; no image file is opened."""
    return set(_read(config, split))


def check(root: Path) -> Iterator[Finding]:
    """Compares the files under `root` with the published counts."""
    for split, published in PUBLISHED.items():
        yield from check_questions(f"gqa {split}", partial(_read, Config(root=root), split), published, SOURCE)


def _read(config: Config, split: str) -> Mapping[str, ImageQuestions]:
    config.require_split(split)
    path = config.root / f"{split}_balanced_questions.json"
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} contains a {type(content).__name__} instead of a mapping of questions; use GQA's file")
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
        text = config.format_prompt(as_text(entry["question"]))
        return as_text(str(entry["imageId"])), Question(text, family, answer, (answer,), "accuracy")
    except MALFORMED as error:
        raise DataError(
            f"{path}: question {key} is malformed ({what_is_wrong(error)}); it must have imageId, question, answer and "
            "types.structural"
        ) from None
