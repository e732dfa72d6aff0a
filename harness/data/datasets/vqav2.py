"""VQAv2: questions about COCO's images, each with the answers of ten people.

The training target is the most common answer. The answers of test and test-dev are not public, so the splits are train
and val.

Source: https://visualqa.org, https://arxiv.org/abs/1612.00837; scoring: `harness.evaluation.text_metrics`.
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

ANNOTATORS = 10
PUBLISHED = {"train": QuestionCounts(443757, 82783), "val": QuestionCounts(214354, 40504)}
SOURCE = (
    "questions and annotations (v2_*_mscoco_{train,val}2014_*.json): https://visualqa.org/download.html; images "
    "(train2014, val2014): https://cocodataset.org/#download"
)


class Config(ShortAnswersConfig):
    """Paths of the files, and the form of a question."""

    name: Literal["vqav2"] = "vqav2"
    splits: ClassVar[tuple[str, ...]] = ("train", "val")


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by ascending image id.

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
        yield from check_questions(f"vqav2 {split}", partial(_read, Config(root=root), split), published, SOURCE)


def _read(config: Config, split: str) -> Mapping[str, ImageQuestions]:
    config.require_split(split)
    texts = _by_question(config.root / f"v2_OpenEnded_mscoco_{split}2014_questions.json", "questions")
    annotations = _by_question(config.root / f"v2_mscoco_{split}2014_annotations.json", "annotations")
    alone = sorted(texts.keys() ^ annotations.keys())
    if alone:
        has, lacks = ("an annotation", "question") if alone[0] in annotations else ("a question", "annotation")
        raise DataError(
            f"{config.root}: {split} has {has} {alone[0]} without its {lacks}, and {len(alone) - 1} more like it; "
            "use both files of one release"
        )
    of_image: dict[int, list[Question]] = defaultdict(list)
    for key in sorted(texts):
        image_id, question = _question(config, split, key, texts[key], annotations[key])
        of_image[image_id].append(question)
    folder = config.root / f"{split}2014"
    return {
        f"coco/{image_id}": ImageQuestions(folder / f"COCO_{split}2014_{image_id:012d}.jpg", tuple(of_image[image_id]))
        for image_id in sorted(of_image)
    }


def _by_question(path: Path, name: str) -> Mapping[int, Mapping[str, Any]]:
    content = read_json(path)
    try:
        return {int(entry["question_id"]): entry for entry in content[name]}
    except MALFORMED as error:
        raise DataError(
            f"{path} is no file of VQAv2: it must have a list `{name}` whose entries have a question_id "
            f"({what_is_wrong(error)})"
        ) from None


def _question(
    config: Config, split: str, key: int, text: Mapping[str, Any], annotation: Mapping[str, Any]
) -> tuple[int, Question]:
    try:
        references = tuple(as_text(one["answer"]) for one in annotation["answers"])
        question = Question(
            config.format_prompt(as_text(text["question"])),
            as_text(annotation["answer_type"]),
            as_text(annotation["multiple_choice_answer"]),
            references,
            "vqa_accuracy",
        )
        image_id = int(text["image_id"])
    except MALFORMED as error:
        raise DataError(
            f"{config.root}: question {key} of {split} is malformed ({what_is_wrong(error)}); it must have question, "
            "image_id, answers, answer_type and multiple_choice_answer"
        ) from None
    if len(references) != ANNOTATORS:
        raise DataError(
            f"{config.root}: question {key} of {split} has {len(references)} answers instead of {ANNOTATORS}; use "
            "the official annotations"
        )
    return image_id, question
