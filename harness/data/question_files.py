"""What datasets of questions have in common: questions by image, and a check of how many there are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.data.example import Example, ImageFile, Question
from harness.data.formats.checking import Finding, check_files
from harness.errors import DataError

SHORT_ANSWER = "{question}\nAnswer the question using a single word or phrase."
"""How LLaVA-1.5 and lmms-eval ask for one."""


class ShortAnswersConfig(BaseModel):
    """What the datasets of short answers have in common: where they lie, and how they ask."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    root: Path = Field(description="folder of the JSON files and of the images' folders, as they are unpacked")
    template: str = Field(default=SHORT_ANSWER, description="what the model is asked; must contain {question}")

    @field_validator("template")
    @classmethod
    def _asks(cls, template: str) -> str:
        if "{question}" not in template:
            raise ValueError("template must contain {question}")
        return template

    def asks(self, question: str) -> str:
        """What the model is asked; all other braces are text."""
        return self.template.replace("{question}", question)


@dataclass(frozen=True, slots=True)
class ImageQuestions:
    """An image's file, which need not be there yet, and what is asked about it."""

    path: Path
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class QuestionCounts:
    """How much of a split there is.

    Attributes:
        references: what answers are held against, of all questions together; None where it follows from the questions.
    """

    questions: int
    images: int
    references: int | None = None

    def __str__(self) -> str:
        references = "" if self.references is None else f", {self.references} references"
        return f"{self.questions} questions about {self.images} images{references}"


def examples(images: Mapping[str, ImageQuestions]) -> list[Example]:
    """One example an image, in this order, by its id; only the head of each file is read, for its size.

    Raises:
        DataError: an image is missing or none.
    """
    return [Example(key, ImageFile.of(one.path), (), (), one.questions) for key, one in images.items()]


def check_questions(
    subject: str, read: Callable[[], Mapping[str, ImageQuestions]], published: QuestionCounts, source: str
) -> Iterator[Finding]:
    """Files, counts and images of a split.

    Args:
        read: reads the questions; opens no image.
        source: where the files officially come from.
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
        yield Finding(subject, False, f"{found}; published are {published}; take the official file")
    yield check_files(subject, [one.path for one in images.values()], source)
