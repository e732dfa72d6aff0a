"""Refs: sentences about annotations of COCO images, the format that REFER made and its successors extended.

A ref is {ref_id, ann_id, image_id, split, sentences: [{sent, ...}]}; `ann_id` is a number, a list of numbers, or, where
nothing is meant, -1, [-1] or []; Ref-ZOM says so by `source: zero`.

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
from harness.data.formats.reading import MALFORMED, as_sentence, as_text, what_is_wrong
from harness.errors import DataError, suggest

FAMILIES = ("no_target", "single", "multi")
"""Of expressions that mean no object, one, and several."""


@dataclass(frozen=True, slots=True)
class Masks:
    """Where the objects and images lie that refs are about.

    Attributes:
        instances: COCO's instance file.
        images: folder that its file names begin at.
        ground_truth: what overlapping polygons of one annotation are; None where none should occur.
        read: makes of `instances` what it says.
        lists_all_objects: whether an image's annotations include the objects that no sentence refers to.
        can_refer_to_crowds: whether a crowd that a sentence names is part of its target; else it is left out of it.
    """

    instances: Path
    images: Path
    ground_truth: GroundTruth | None
    read: Callable[[Path], InstanceFile] = InstanceFile
    lists_all_objects: bool = True
    can_refer_to_crowds: bool = True


class RefsConfig(BaseModel):
    """What the datasets of refs have in common: where they lie, and what their polygons mean."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    root: Path = Field(description="REFER's data folder, which holds a folder a dataset")
    images: Path = Field(
        default=Path("images/mscoco/images/train2014"), description="COCO's images; a relative path begins at root"
    )
    ground_truth: GroundTruth | None = Field(
        default=None, description="what overlapping polygons of an annotation are; must be said where some overlap"
    )

    @property
    def families(self) -> tuple[str, ...]:
        """Of its expressions."""
        return FAMILIES

    @property
    def masks(self) -> Masks:
        """What the refs are about; its file lies beside theirs."""
        return Masks(self.refs.with_name("instances.json"), self.root / self.images, self.ground_truth)

    @property
    def refs(self) -> Path:
        """The sentences."""
        raise NotImplementedError

    @property
    def splits(self) -> tuple[str, ...]:
        """The first is trained on."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Ref:
    """What is said about some annotations of one image.

    Attributes:
        annotations: ids, ascending, each once; empty where nothing is meant.
        sentences: one or more, in lower case.
    """

    image_id: int
    annotations: tuple[int, ...]
    sentences: tuple[str, ...]

    @property
    def family(self) -> str:
        """How many objects are meant, as gRefCOCO groups its expressions."""
        return FAMILIES[min(len(self.annotations), 2)]


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of a split there is; None where it is not published."""

    sentences: int | None
    refs: int | None
    images: int | None

    def __str__(self) -> str:
        parts = {"sentences": self.sentences, "refs": self.refs, "images": self.images}
        return ", ".join(f"{count} {what}" for what, count in parts.items() if count is not None)

    def matches(self, published: "Counts") -> bool:
        """Whether every published number is this one's."""
        pairs = zip(astuple(self), astuple(published), strict=True)
        return all(found == wanted for found, wanted in pairs if wanted is not None)


@dataclass(frozen=True, slots=True)
class RefFile:
    """The refs of one file, by split, each in its order.

    Attributes:
        path: where they were read.
        splits: refs by the name of their split.
    """

    path: Path
    splits: Mapping[str, tuple[Ref, ...]]

    def split(self, name: str) -> tuple[Ref, ...]:
        """The refs of a split.

        Raises:
            DataError: there is none of that name.
        """
        if not self.splits.get(name):
            there = suggest(name, self.splits) if self.splits else "it has no refs at all; take the official file"
            raise DataError(f"{self.path} has no split {name!r}; {there}")
        return self.splits[name]

    def counts(self, name: str) -> Counts:
        """What is in a split."""
        refs = self.split(name)
        return Counts(sum(len(ref.sentences) for ref in refs), len(refs), len({ref.image_id for ref in refs}))


def parse(content: Any, path: Path) -> RefFile:
    """Refs as they are in a file.

    Raises:
        DataError: an entry lacks what a ref has.
    """
    splits: dict[str, list[Ref]] = defaultdict(list)
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}; a list of refs is allowed; take the official file")
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
                f"{path}: ref {position} is none ({what_is_wrong(error)}); it needs image_id, ann_id, split and one or "
                "more sentences with a `sent` each"
            ) from None
    return RefFile(path, {name: tuple(refs) for name, refs in splits.items()})


def _annotation_ids(given: Any) -> tuple[int, ...]:
    ids = given if isinstance(given, list) else [given]
    return tuple(sorted({int(one) for one in ids} - {-1}))


def examples(refs: Iterable[Ref], masks: Masks) -> list[Example]:
    """One example an image, by ascending image id, with all sentences about it in the order of the refs.

    An annotation without a readable mask is left out of the objects if no sentence names it; see `left_out`.

    Raises:
        DataError: a file is missing or damaged, a ref names what the instances lack, or polygons overlap and nobody
            said what that means.
    """
    instances = masks.read(masks.instances)
    of_image: dict[int, list[Ref]] = defaultdict(list)
    for ref in refs:
        of_image[ref.image_id].append(ref)
    return [_example(image_id, of_image[image_id], instances, masks) for image_id in sorted(of_image)]


def key_of(path: Path) -> str:
    """How an image is known in every dataset: by its number in COCO, which COCO's file names end with, or by its file.

    The numbers that a file of instances gives need not be COCO's.
    """
    number = re.fullmatch(r"(COCO_\w+_)?(\d{12})", path.stem)
    return f"coco/{int(number[2])}" if number else f"file/{path.as_posix()}"


def with_overlap(refs: Iterable[Ref], masks: Masks) -> list[int]:
    """Ids, ascending, of the annotations meant of which polygons overlap one another."""
    instances = masks.read(masks.instances)
    named = sorted({key for ref in refs for key in ref.annotations})
    return [key for key in named if instances.annotation(key, "union").has_overlap]


def left_out(refs: Iterable[Ref], masks: Masks) -> list[int]:
    """Ids, ascending, of the annotations of the refs' images that `examples` leaves out because they have no mask."""
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
    """The annotations of an image by id, without those that have no readable mask and that no sentence names."""
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
            f"{instances.path}: image {image_id} has no annotation {foreign[0]}, which a sentence is about; take the "
            "instances that belong to the refs"
        )
    if not masks.can_refer_to_crowds:
        refs = [_without_crowds(ref, found, instances) for ref in refs]
        named = {key for ref in refs for key in ref.annotations}
    unclear = sorted(key for key in named if found[key].has_overlap)
    if unclear and masks.ground_truth is None:
        raise DataError(
            f"{instances.path}: polygons of annotation {unclear[0]} overlap one another, and evaluators differ on what "
            "that is; set data.ground_truth to union (the object's, as for ReLA and GSVA) or to lisa_sum (background, "
            "as for LISA)"
        )
    # A crowd is no object, unless a sentence is about it.
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
    )


def _without_crowds(ref: Ref, found: Mapping[int, Annotation], instances: InstanceFile) -> Ref:
    """The ref without the crowds that it names.

    Raises:
        DataError: it names nothing else, for which G_REFER makes no mask.
    """
    kept = tuple(key for key in ref.annotations if not found[key].is_crowd)
    if ref.annotations and not kept:
        raise DataError(
            f"{instances.path}: all annotations of a ref of image {ref.image_id} are crowds, the first "
            f"{ref.annotations[0]}; one that is no crowd is needed; take the official files"
        )
    return replace(ref, annotations=kept)
