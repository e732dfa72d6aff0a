"""Any COCO-format instance file whose annotations have one or more expressions in a field of their own.

An expression of several annotations of one image refers to all of them. If every annotation has an expression, the file
is assumed to list only the objects that expressions refer to, and `giou_random_object` is not measured on it.

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
    """One instance file per split, and the settings that they share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["coco_instances"] = "coco_instances"
    annotations: dict[str, Path] = Field(min_length=1, description="instance file of each split; training uses `train`")
    images: Path = Field(description="folder that the file names of images are relative to")
    column: str = Field(default="expression", description="field of an annotation: a string or a list of strings")
    ground_truth: GroundTruth | None = Field(
        default=None, description="how overlapping polygons of an annotation are combined; required if some overlap"
    )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.annotations)

    @property
    def families(self) -> tuple[str, ...]:
        """Families of the expressions; each refers to at least one annotation."""
        return ("single", "multi")


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by ascending image id; annotations without expressions are objects too.

    Raises:
        DataError: a file is missing or malformed, no annotation has an expression, or the split does not exist.
    """
    if split not in config.annotations:
        raise DataError(f"data.annotations has no split {split!r}; {suggest(split, config.annotations)}")
    instances = _read(config, split)
    refs = _refs(instances, config.column)
    if not refs:
        raise DataError(
            f"{instances.path}: no annotation has an expression in the field {config.column!r}; "
            "set data.column to the field of expressions"
        )
    if split == "train":
        _check_disjoint(config, instances)
    lists_others = any(not _texts(instances, key, config.column) for key in instances.annotation_ids)
    masks = Masks(instances.path, config.images, config.ground_truth, lambda _: instances, lists_others)
    return examples(refs, masks)


def _read(config: Config, split: str) -> InstanceFile:
    path = config.annotations[split]
    if not path.exists():
        raise DataError(f"{path} is missing; data.annotations must contain paths of COCO instance files")
    return InstanceFile(path)


def _check_disjoint(config: Config, training: InstanceFile) -> None:
    """Raises an error if another split lists a training image."""
    train_images = _images(training, config)
    for split in (name for name in config.splits if name != "train"):
        shared = sorted(train_images & _images(_read(config, split), config))
        if shared:
            raise DataError(
                f"{config.annotations['train']} and {config.annotations[split]} share {len(shared)} images, the first "
                f"{shared[0]}; remove them from one of the files"
            )


def _images(instances: InstanceFile, config: Config) -> set[str]:
    return {key_of(instances.image(image_id, config.images).path) for image_id in instances.image_ids}


def _refs(instances: InstanceFile, column: str) -> list[Ref]:
    refs, listed = [], set(instances.image_ids)
    for annotation_id in instances.annotation_ids:
        if instances.image_of(annotation_id) not in listed and _texts(instances, annotation_id, column):
            raise DataError(
                f"{instances.path}: annotation {annotation_id} belongs to image {instances.image_of(annotation_id)}, "
                "which the file does not list; add the image, or remove the annotation"
            )
    for image_id in instances.image_ids:
        targets: dict[str, list[int]] = {}
        for annotation_id in instances.annotations_of(image_id):
            for text in _texts(instances, annotation_id, column):
                targets.setdefault(text, []).append(annotation_id)
        refs += [Ref(image_id, tuple(ids), (text,)) for text, ids in targets.items()]
    return refs


def _texts(instances: InstanceFile, annotation_id: int, column: str) -> list[str]:
    value: Any = instances.field(annotation_id, column)
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{instances.path}: annotation {annotation_id}: {column} is {value!r:.60}; it must be a string, a list of "
            "strings, or null if no sentence refers to the annotation"
        )
    try:
        return [as_sentence(text) for text in texts]
    except ValueError as error:
        raise DataError(f"{instances.path}: annotation {annotation_id}: {column}: {error}; correct the text") from None
