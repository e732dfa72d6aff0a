"""Referring expressions made by rule from any instance file in COCO's format that labels all objects of its categories.

The rules and their margins are in `harness.data.coco_rules`, pasted training images in `harness.data.copy_paste`. The
split of an image depends on a hash of its COCO id, or else of its file name, so it is the same in every file.

Source: families and margins, the embedded benchmark `scenes`; COCO, https://arxiv.org/abs/1405.0312; copy-paste,
https://arxiv.org/abs/2012.07177.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pycocotools import mask as coco_mask
from pydantic import BaseModel, ConfigDict, Field

from harness.data.coco_rules import FAMILIES, Absences, ImageFacts, Instance, LabelledImage, expressions
from harness.data.copy_paste import PastedImages
from harness.data.example import Example
from harness.data.formats.coco_file import InstanceFile
from harness.data.formats.referrals import key_of
from harness.data.scenes.stable_rng import StableRng
from harness.errors import DataError, suggest

SPLITS = ("train", "validation", "test")
SHARES = (65, 10, 25)
"""Percentage of the images in each split."""


class Config(BaseModel):
    """The file of labels, and the expressions to make from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["coco_expressions"] = "coco_expressions"
    annotations: Path = Field(description="instance file in COCO's format, such as instances_val2017.json")
    images: Path = Field(description="folder that the file names of images are relative to")
    expressions_per_image: int = Field(
        default=12, ge=1, description="upper bound on the referring expressions per image; families take turns"
    )
    copy_paste: int = Field(
        default=0, ge=0, description="added training images, with objects of training images on blurred training images"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the choice of expressions and of the pasted images")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; training uses the first."""
        return SPLITS

    @property
    def families(self) -> tuple[str, ...]:
        """Families of the expressions."""
        return FAMILIES


def load(config: Config, split: str) -> Sequence[Example]:
    """The images of a split with at least one expression, by ascending image id; pasted images come last.

    Raises:
        DataError: the file is missing or malformed, has no masks, or the split is unknown or has no expressions.
    """
    if split not in SPLITS:
        raise DataError(f"coco_expressions has no split {split!r}; {suggest(split, SPLITS)}")
    file = InstanceFile(config.annotations)
    names = _names(file)
    absences = Absences(names.values(), (_categories_of(file, names, key) for key in _ids(file, "train")))
    images = [_labelled(file, names, config.images, image_id) for image_id in _ids(file, split)]
    if not any(image.objects for image in images):
        raise DataError(
            f"{file.path}: no image of the split {split} has an object with a mask; coco_expressions needs "
            f"segmentations, and about {SHARES[SPLITS.index(split)]}% of the images for this split; use a file with "
            "masks and more images"
        )
    found = [_example(config, image, absences) for image in images]
    found = [example for example in found if example.expressions]
    if not found:
        raise DataError(
            f"{file.path}: the rules make no expression about any of the {len(images)} images of the split {split}; "
            "use a file with more categories, or with fewer and larger objects per image (docs/your_images.md)"
        )
    if split != "train" or not config.copy_paste:
        return found
    return PastedImages(found, images, absences, config.copy_paste, config.expressions_per_image, config.seed)


def image_ids(config: Config, split: str) -> set[str]:
    """Ids of the images of a split; no image file is opened, and pasted images have ids of their own."""
    file = InstanceFile(config.annotations)
    return {_key(file, image_id) for image_id in _ids(file, split)}


def split_of(image_id: str) -> str:
    """The split of an image, which depends on its id only."""
    percentile = _hash(image_id) % 100
    return SPLITS[0 if percentile < SHARES[0] else 1 if percentile < SHARES[0] + SHARES[1] else 2]


def _hash(image_id: str) -> int:
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")


def _key(file: InstanceFile, image_id: int) -> str:
    return key_of(file.image(image_id, Path()).path)


def _ids(file: InstanceFile, split: str) -> list[int]:
    return [image_id for image_id in file.image_ids if split_of(_key(file, image_id)) == split]


def _names(file: InstanceFile) -> dict[int, str]:
    """The name of the category of each annotation.

    Raises:
        DataError: an annotation has a category that the file does not list.
    """
    categories = file.categories()
    found = {}
    for key in file.annotation_ids:
        category = file.field(key, "category_id")
        if not isinstance(category, int) or category not in categories:
            raise DataError(
                f"{file.path}: annotation {key} has the category_id {category!r:.60}, which the file does not list; "
                "add the category, or correct the annotation"
            )
        found[key] = categories[category]
    return found


def _categories_of(file: InstanceFile, names: dict[int, str], image_id: int) -> frozenset[str]:
    return frozenset(names[key] for key in file.annotations_of(image_id))


def _labelled(file: InstanceFile, names: dict[int, str], folder: Path, image_id: int) -> LabelledImage:
    """An image with its labels; crowds and empty masks make the number of objects of their category uncertain."""
    instances: list[Instance] = []
    uncertain: set[str] = set()
    for key in file.annotations_of(image_id):
        annotation = file.annotation(key, "union")
        if annotation.is_crowd or not coco_mask.area(annotation.mask):
            uncertain.add(names[key])
        else:
            instances.append(Instance(len(instances) + 1, names[key], annotation.mask))
    facts = ImageFacts(instances, frozenset(uncertain))
    picture, licence = file.image(image_id, folder), file.licence(image_id)
    return LabelledImage(_key(file, image_id), picture, facts, licence)


def _example(config: Config, image: LabelledImage, absences: Absences) -> Example:
    rng = StableRng((config.seed, _hash(image.image_id)))
    texts = expressions(image.facts, absences, config.expressions_per_image, rng)
    return Example(image.image_id, image.picture, image.objects, texts, licence=image.licence)
