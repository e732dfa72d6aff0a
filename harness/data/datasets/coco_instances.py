"""Any COCO-format instance file whose annotations carry an expression, or several, in a field of their own.

Annotations of one image that carry the same expression are meant together. A file of which every annotation carries an
expression is taken to list only the objects that expressions refer to, so `giou_random_object` is not measured on it.

Source: https://cocodataset.org/#format-data.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.data.example import Example
from harness.data.formats.coco_file import GroundTruth, InstanceFile
from harness.data.formats.reading import as_sentence
from harness.data.formats.referrals import Masks, Ref, examples, key_of
from harness.errors import DataError, suggest


class Config(BaseModel):
    """An instance file a split, and what they have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["coco_instances"] = "coco_instances"
    annotations: dict[str, Path] = Field(min_length=1, description="instance file by split; training reads `train`")
    images: Path = Field(description="folder that the file names of images begin at")
    column: str = Field(default="expression", description="field of an annotation: a text or a list of texts")
    ground_truth: GroundTruth | None = Field(
        default=None, description="what overlapping polygons of an annotation are; must be said where some overlap"
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """As the files are named."""
        return tuple(self.annotations)

    @property
    def families(self) -> tuple[str, ...]:
        """Of its expressions; each is about at least one annotation."""
        return ("single", "multi")


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by ascending image id; annotations without expressions are objects that none is about.

    Raises:
        DataError: a file is missing or not what its format promises, no annotation carries an expression, or there is
            no such split.
    """
    if split not in config.annotations:
        raise DataError(f"data.annotations names no file for {split!r}; {suggest(split, config.annotations)}")
    instances = _read(config, split)
    refs = _refs(instances, config.column)
    if not refs:
        raise DataError(
            f"{instances.path}: no annotation has a text under {config.column!r}; name their field in data.column"
        )
    if split == "train":
        _check_apart(config, instances)
    lists_others = any(not _texts(instances, key, config.column) for key in instances.annotation_ids)
    masks = Masks(instances.path, config.images, config.ground_truth, lambda _: instances, lists_others)
    return examples(refs, masks)


def _read(config: Config, split: str) -> InstanceFile:
    path = config.annotations[split]
    if not path.exists():
        raise DataError(f"{path} is missing; data.annotations must name COCO instance files")
    return InstanceFile(path)


def _check_apart(config: Config, training: InstanceFile) -> None:
    """Refuses training images that another split lists."""
    seen = _images(training, config)
    for split in (name for name in config.splits if name != "train"):
        shared = sorted(seen & _images(_read(config, split), config))
        if shared:
            raise DataError(
                f"{config.annotations['train']} and {config.annotations[split]} share {len(shared)} images, the first "
                f"{shared[0]}; take them out of one of the files"
            )


def _images(instances: InstanceFile, config: Config) -> set[str]:
    return {key_of(instances.image(image_id, config.images).path) for image_id in instances.image_ids}


def _refs(instances: InstanceFile, column: str) -> list[Ref]:
    refs, listed = [], set(instances.image_ids)
    for annotation_id in instances.annotation_ids:
        if instances.image_of(annotation_id) not in listed and _texts(instances, annotation_id, column):
            raise DataError(
                f"{instances.path}: annotation {annotation_id} is about image {instances.image_of(annotation_id)}, "
                "which the file does not list; add the image, or take the annotation out"
            )
    for image_id in instances.image_ids:
        meant: dict[str, list[int]] = {}
        for annotation_id in instances.annotations_of(image_id):
            for text in _texts(instances, annotation_id, column):
                meant.setdefault(text, []).append(annotation_id)
        refs += [Ref(image_id, tuple(ids), (text,)) for text, ids in meant.items()]
    return refs


def _texts(instances: InstanceFile, annotation_id: int, column: str) -> list[str]:
    given: Any = instances.field(annotation_id, column)
    texts = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{instances.path}: annotation {annotation_id}: {column} is {given!r:.60}; a text or a list of texts is "
            "allowed, and nothing (null) where no sentence is about it"
        )
    try:
        return [as_sentence(text) for text in texts]
    except ValueError as error:
        raise DataError(f"{instances.path}: annotation {annotation_id}: {column}: {error}; mend the text") from None
