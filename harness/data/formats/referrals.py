"""Refs: sentences that refer to annotations of COCO images, in the format of REFER and its successors.

A ref is {ref_id, ann_id, image_id, split, sentences: [{sent, ...}]}; `ann_id` is a number, a list of numbers, or, if
there is no target, -1, [-1] or []; Ref-ZOM marks such refs by `source: zero`.

Source: lichengunc/refer@e3bbaa3; gRefCOCO, henghuiding/gRefCOCO@41a8f00.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from harness.data.example import Example, Expression
from harness.data.formats.coco_file import Annotation, GroundTruth, InstanceFile
from harness.data.formats.pickled import read_plain_pickle
from harness.data.formats.reading import MALFORMED, as_sentence, as_text, what_is_wrong
from harness.errors import DataError, suggest

FAMILIES = ("no_target", "single", "multi")
"""Families of expressions with no target, with one target, and with several."""


@dataclass(frozen=True, slots=True)
class Masks:
    """The source of masks and images of a dataset of refs.

    Attributes:
        instances: COCO's instance file.
        images: folder that its file names are relative to.
        ground_truth: how overlapping polygons of one annotation are combined; None if none may overlap.
        read: loads `instances`.
        lists_all_objects: whether the annotations of an image include objects that no sentence refers to.
        can_refer_to_crowds: whether crowds among the annotations of a ref are part of its target.
    """

    instances: Path
    images: Path
    ground_truth: GroundTruth | None
    read: Callable[[Path], InstanceFile] = InstanceFile
    lists_all_objects: bool = True
    can_refer_to_crowds: bool = True


class RefsConfig(BaseModel):
    """Settings that all datasets of refs share."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    root: Path = Field(description="REFER's data folder, with one folder per dataset")
    images: Path = Field(
        default=Path("images/mscoco/images/train2014"),
        description="folder of COCO's images, absolute or relative to root",
    )
    ground_truth: GroundTruth | None = Field(
        default=None, description="how overlapping polygons of an annotation are combined; required if some overlap"
    )

    @property
    def families(self) -> tuple[str, ...]:
        """Families of the expressions."""
        return FAMILIES

    @property
    def masks(self) -> Masks:
        """The source of masks and images; `instances.json` is in the folder of the refs."""
        return Masks(self.refs.with_name("instances.json"), self.root / self.images, self.ground_truth)

    @property
    def refs(self) -> Path:
        """Path of the refs."""
        raise NotImplementedError

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; training uses the first."""
        raise NotImplementedError

    def read_refs(self) -> "RefFile":
        """The refs of all splits, from REFER's pickle."""
        return parse(read_plain_pickle(self.refs), self.refs)


@dataclass(frozen=True, slots=True)
class Ref:
    """Sentences that refer to the same annotations of one image.

    Attributes:
        annotations: unique ids, ascending; empty if there is no target.
        sentences: one or more, in lower case.
    """

    image_id: int
    annotations: tuple[int, ...]
    sentences: tuple[str, ...]

    @property
    def family(self) -> str:
        """The number of targets, grouped as in gRefCOCO."""
        return FAMILIES[min(len(self.annotations), 2)]


@dataclass(frozen=True, slots=True)
class Counts:
    """Sizes of a split; None for a number that is not published."""

    sentences: int | None
    refs: int | None
    images: int | None

    def __str__(self) -> str:
        parts = {"sentences": self.sentences, "refs": self.refs, "images": self.images}
        return ", ".join(f"{count} {unit}" for unit, count in parts.items() if count is not None)

    def matches(self, published: "Counts") -> bool:
        """Whether these numbers equal every published one."""
        pairs = zip(astuple(self), astuple(published), strict=True)
        return all(found == expected for found, expected in pairs if expected is not None)


@dataclass(frozen=True, slots=True)
class RefFile:
    """The refs of one file by split, in the order of the file.

    Attributes:
        path: of the file.
        splits: refs by the name of their split.
    """

    path: Path
    splits: Mapping[str, tuple[Ref, ...]]

    def split(self, name: str) -> tuple[Ref, ...]:
        """The refs of a split.

        Raises:
            DataError: the split does not exist.
        """
        if not self.splits.get(name):
            hint = suggest(name, self.splits) if self.splits else "it has no refs at all; use the official file"
            raise DataError(f"{self.path} has no split {name!r}; {hint}")
        return self.splits[name]

    def counts(self, name: str) -> Counts:
        """The sizes of a split."""
        refs = self.split(name)
        return Counts(sum(len(ref.sentences) for ref in refs), len(refs), len({ref.image_id for ref in refs}))


def parse(content: Any, path: Path) -> RefFile:
    """Refs from the content of a file.

    Raises:
        DataError: an entry is malformed.
    """
    splits: dict[str, list[Ref]] = defaultdict(list)
    if not isinstance(content, list):
        raise DataError(f"{path} contains a {type(content).__name__} instead of a list of refs; use the official file")
    for position, entry in enumerate(content):
        try:
            sentences = tuple(as_sentence(one["sent"]) for one in entry["sentences"])
            if not sentences:
                raise ValueError("it has no sentences")
            annotations = () if entry.get("source") == "zero" else _annotation_ids(entry["ann_id"])
            ref = Ref(int(entry["image_id"]), annotations, sentences)
            splits[as_text(entry["split"])].append(ref)
        except MALFORMED as error:
            raise DataError(
                f"{path}: ref {position} is malformed ({what_is_wrong(error)}); it must have image_id, ann_id, split "
                "and at least one sentence with a `sent`"
            ) from None
    return RefFile(path, {name: tuple(refs) for name, refs in splits.items()})


def _annotation_ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    return tuple(sorted({int(one) for one in ids} - {-1}))


def examples(refs: Iterable[Ref], masks: Masks) -> list[Example]:
    """One example per image, by ascending image id, with all its sentences in the order of the refs.

    An annotation without a valid mask is excluded from the objects if no sentence refers to it; `left_out` lists these.

    Raises:
        DataError: a file is missing or malformed, a ref refers to an annotation that does not exist, or polygons
            overlap and `ground_truth` is not set.
    """
    instances = masks.read(masks.instances)
    of_image: dict[int, list[Ref]] = defaultdict(list)
    for ref in refs:
        of_image[ref.image_id].append(ref)
    return [_example(image_id, of_image[image_id], instances, masks) for image_id in sorted(of_image)]


def key_of(path: Path) -> str:
    """The id of an image in every dataset: its COCO id, with which COCO's file names end, or its path.

    Image ids in an instance file may differ from COCO's.
    """
    number = re.fullmatch(r"(COCO_\w+_)?(\d{12})", path.stem)
    return f"coco/{int(number[2])}" if number else f"file/{path.as_posix()}"


def with_overlap(refs: Iterable[Ref], masks: Masks) -> list[int]:
    """Ids, ascending, of the targets whose polygons overlap one another."""
    instances = masks.read(masks.instances)
    named = sorted({key for ref in refs for key in ref.annotations})
    return [key for key in named if instances.annotation(key, "union").has_overlap]


def left_out(refs: Iterable[Ref], masks: Masks) -> list[int]:
    """Ids, ascending, of the annotations that `examples` excludes because they have no valid mask."""
    instances = masks.read(masks.instances)
    named: dict[int, set[int]] = defaultdict(set)
    for ref in refs:
        named[ref.image_id].update(ref.annotations)
    return sorted(
        key
        for image_id in named
        for key in set(instances.annotations_of(image_id)).difference(
            _annotations(image_id, named[image_id], instances)
        )
    )


def _annotations(
    image_id: int, named: Collection[int], instances: InstanceFile, ground_truth: GroundTruth = "union"
) -> dict[int, Annotation]:
    """The annotations of an image by id, except those without a valid mask that no sentence refers to."""
    found = {}
    for key in instances.annotations_of(image_id):
        try:
            found[key] = instances.annotation(key, ground_truth)
        except DataError:
            if key in named:
                raise
    return found


def _example(image_id: int, refs: Sequence[Ref], instances: InstanceFile, masks: Masks) -> Example:
    picture = instances.image(image_id, masks.images)
    named = {key for ref in refs for key in ref.annotations}
    found = _annotations(image_id, named, instances, masks.ground_truth or "union")
    foreign = sorted(named - set(found))
    if foreign:
        raise DataError(
            f"{instances.path}: image {image_id} has no annotation {foreign[0]}, to which a sentence refers; use the "
            "instance file of the same release"
        )
    if not masks.can_refer_to_crowds:
        refs = [_without_crowds(ref, found, instances) for ref in refs]
        named = {key for ref in refs for key in ref.annotations}
    unclear = sorted(key for key in named if found[key].has_overlap)
    if unclear and masks.ground_truth is None:
        raise DataError(
            f"{instances.path}: polygons of annotation {unclear[0]} overlap one another, and evaluators treat "
            "this differently; set data.ground_truth to union (overlaps are object, as in ReLA and GSVA) or to "
            "lisa_sum (overlaps are background, as in LISA)"
        )
    # A crowd is no object unless a sentence refers to it.
    kept = [key for key, one in found.items() if not one.is_crowd or key in named]
    ids = {key: position for position, key in enumerate(kept, start=1)}
    return Example(
        image_id=key_of(instances.image(image_id, Path()).path),
        picture=picture,
        objects=tuple(found[key].mask for key in kept),
        expressions=tuple(
            Expression(sentence, ref.family, tuple(ids[key] for key in ref.annotations))
            for ref in refs
            for sentence in ref.sentences
        ),
        lists_all_objects=masks.lists_all_objects,
        licence=instances.licence(image_id),
    )


def _without_crowds(ref: Ref, found: Mapping[int, Annotation], instances: InstanceFile) -> Ref:
    """The ref without the crowds among its annotations.

    Raises:
        DataError: all its annotations are crowds, for which G_REFER returns no mask.
    """
    kept = tuple(key for key in ref.annotations if not found[key].is_crowd)
    if ref.annotations and not kept:
        raise DataError(
            f"{instances.path}: all annotations of a ref of image {ref.image_id} are crowds, the first "
            f"{ref.annotations[0]}; at least one must not be a crowd; use the official files"
        )
    return replace(ref, annotations=kept)
