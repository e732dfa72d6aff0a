"""Shared code of datasets of questions: questions by image, and a check of their number."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.data.example import Example, ImageFile, Question
from harness.data.formats.checking import Finding, check_files
from harness.errors import DataError, suggest

SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."
"""The prompt of LLaVA-1.5 and lmms-eval for a short answer."""


class ShortAnswersConfig(BaseModel):
    """Settings that all datasets of short answers share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    splits: ClassVar[tuple[str, ...]]
    root: Path = Field(description="folder of the JSON files and of the folders of images, as they are unpacked")
    template: str = Field(default=SHORT_ANSWER, description="prompt of the model; must contain {question}")

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("template must contain {question}")
        return template

    def format_prompt(self, question: str) -> str:
        """The prompt for a question; all other braces in the template are literal."""
        return self.template.replace("{question}", question)

    def require_split(self, split: str) -> None:
        """Raises a DataError if the split does not exist."""
        if split not in self.splits:
            raise DataError(f"{self.name} has no split {split!r} with answers; {suggest(split, self.splits)}")


@dataclass(frozen=True, slots=True)
class ImageQuestions:
    """The path of an image, which need not exist yet, and the questions about it."""

    path: Path
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class QuestionCounts:
    """Sizes of a split.

    Attributes:
        references: number of reference answers of all questions; None if the number of questions determines it.
    """

    questions: int
    images: int
    references: int | None = None

    def __str__(self) -> str:
        references = "" if self.references is None else f", {self.references} references"
        return f"{self.questions} questions about {self.images} images{references}"


def examples(images: Mapping[str, ImageQuestions]) -> list[Example]:
    """One example per image, in this order; only the header of each file is read.

    Raises:
        DataError: an image is missing or invalid.
    """
    return [Example(key, ImageFile.of(one.path), (), (), one.questions) for key, one in images.items()]


def check_questions(
    subject: str, read: Callable[[], Mapping[str, ImageQuestions]], published: QuestionCounts, source: str
) -> Iterator[Finding]:
    """Checks the files, counts and images of a split.

    Args:
        read: loads the questions without opening images.
        source: where to download the official files.
    """
    try:
        images = read()
    except DataError as error:
        yield Finding(subject, False, f"{error}; {source}")
        return
    questions = [question for one in images.values() for question in one.questions]
    found = QuestionCounts(
        len(questions),
        len(images),
        None if published.references is None else sum(len(question.references) for question in questions),
    )
    if found == published:
        yield Finding(subject, True, f"{found}, as published")
    else:
        yield Finding(subject, False, f"{found}; published are {published}; use the official file")
    yield check_files(subject, [one.path for one in images.values()], source)
