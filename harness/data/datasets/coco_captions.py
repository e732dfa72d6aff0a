"""COCO captions: about five captions per image, in the official split or in Karpathy's.

Each caption is a training example; scoring compares one generated caption per image with all of its captions.

Source: https://cocodataset.org, https://arxiv.org/abs/1504.00325; Karpathy's split, https://arxiv.org/abs/1412.2306
(its images named restval are part of train); scoring: `harness.evaluation.text_metrics`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.data.example import Example, Question
from harness.data.formats.checking import Finding
from harness.data.formats.reading import MALFORMED, as_text, read_json, what_is_wrong
from harness.data.question_files import ImageQuestions, QuestionCounts, check_questions, examples
from harness.errors import DataError, suggest

SplitBy = Literal["official", "karpathy"]
SPLITS: Mapping[SplitBy, tuple[str, ...]] = {"official": ("train", "val"), "karpathy": ("train", "val", "test")}
"""The first is the training split."""
PUBLISHED: Mapping[tuple[SplitBy, str], QuestionCounts] = {
    ("official", "train"): QuestionCounts(414113, 82783),
    ("official", "val"): QuestionCounts(40504, 40504, 202654),
    ("karpathy", "train"): QuestionCounts(566747, 113287),
    ("karpathy", "val"): QuestionCounts(5000, 5000, 25010),
    ("karpathy", "test"): QuestionCounts(5000, 5000, 25010),
}
"""One question per caption in training, and one per image elsewhere."""
SOURCE = (
    "annotations (captions_{train,val}2014.json) and images (train2014, val2014): https://cocodataset.org/#download; "
    "dataset_coco.json: caption_datasets.zip of https://cs.stanford.edu/people/karpathy/deepimagesent"
)


class Config(BaseModel):
    """Paths of the files, the split, and the prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["coco_captions"] = "coco_captions"
    root: Path = Field(
        description="folder of annotations/captions_*.json or dataset_coco.json, and of train2014 and val2014"
    )
    split_by: SplitBy = Field(default="official", description="papers on captioning report karpathy")
    prompt: str = Field(
        default="Provide a one-sentence caption for the provided image.",
        description="text of the question to the model",
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; training uses the first."""
        return SPLITS[self.split_by]

    @property
    def families(self) -> tuple[str, ...]:
        """The only family of its questions."""
        return ("caption",)


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
    """Compares the files under `root` with the published counts; one of the two splits may be missing."""
    is_any_here = any(_file(root, *key).exists() for key in PUBLISHED)
    for (split_by, split), published in PUBLISHED.items():
        config = Config(root=root, split_by=split_by)
        subject = f"coco_captions ({split_by}) {split}"
        if is_any_here and not _file(root, split_by, split).exists():
            yield Finding(subject, None, f"not found: {_file(root, split_by, split)} is missing; {SOURCE}")
            continue
        yield from check_questions(subject, partial(_read, config, split), published, SOURCE)


def _read(config: Config, split: str) -> Mapping[str, ImageQuestions]:
    if split not in config.splits:
        raise DataError(f"coco_captions has no split {split!r} by {config.split_by}; {suggest(split, config.splits)}")
    captions = (_official if config.split_by == "official" else _karpathy)(config.root, split)
    return {
        f"coco/{image_id}": ImageQuestions(path, _questions(config.prompt, texts, each=split == config.splits[0]))
        for image_id, (path, texts) in sorted(captions.items())
    }


def _file(root: Path, split_by: SplitBy, split: str) -> Path:
    return root / ("dataset_coco.json" if split_by == "karpathy" else f"annotations/captions_{split}2014.json")


def _questions(prompt: str, captions: Sequence[str], *, each: bool) -> tuple[Question, ...]:
    """One question per caption if `each`, otherwise one question with all captions as references."""
    if each:
        return tuple(Question(prompt, "caption", caption, (caption,), "cider") for caption in captions)
    return (Question(prompt, "caption", captions[0], tuple(captions), "cider"),)


def _official(root: Path, split: str) -> Mapping[int, tuple[Path, list[str]]]:
    path = _file(root, "official", split)
    content = read_json(path)
    captions: dict[int, list[str]] = defaultdict(list)
    try:
        names = {int(image["id"]): as_text(image["file_name"]) for image in content["images"]}
        for entry in content["annotations"]:
            captions[int(entry["image_id"])].append(_plain(entry["caption"]))
    except MALFORMED as error:
        raise DataError(
            f"{path} is no caption file of COCO: it must have `images` with id and file_name and `annotations` with "
            f"image_id and caption ({what_is_wrong(error)})"
        ) from None
    foreign = sorted(captions.keys() - names.keys())
    if foreign:
        raise DataError(
            f"{path}: a caption belongs to image {foreign[0]}, which the file does not list; download it again"
        )
    return {key: (root / f"{split}2014" / names[key], texts) for key, texts in captions.items()}


def _karpathy(root: Path, split: str) -> Mapping[int, tuple[Path, list[str]]]:
    path, found = _file(root, "karpathy", split), dict[int, tuple[Path, list[str]]]()
    content: Any = read_json(path)
    try:
        for image in content["images"]:
            if {"restval": "train"}.get(image["split"], image["split"]) == split:
                texts = [_plain(sentence["raw"]) for sentence in image["sentences"]]
                found[int(image["cocoid"])] = (root / as_text(image["filepath"]) / as_text(image["filename"]), texts)
    except MALFORMED as error:
        raise DataError(
            f"{path} is not Karpathy's split: it must have `images` with cocoid, filepath, filename, split and "
            f"sentences with a `raw` each ({what_is_wrong(error)})"
        ) from None
    empty = sorted(key for key, (_, texts) in found.items() if not texts)
    if empty:
        raise DataError(
            f"{path}: image {empty[0]} has no sentences, but at least one is required; download the file again"
        )
    return found


def _plain(caption: str) -> str:
    return " ".join(as_text(caption).split())
