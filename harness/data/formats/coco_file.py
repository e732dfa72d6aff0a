"""COCO's instance annotations: which masks an image has, and what is wrong with a file that does not say so.

Source: https://cocodataset.org/#format-data; polygons that overlap one another: `getMask` of lichengunc/refer@e3bbaa3,
which sums them, and LISA's loader, where a sum of two is neither object nor background.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from harness.data.example import ImageFile, Rle, encode
from harness.data.formats.reading import MALFORMED, as_text, read_json, what_is_wrong
from harness.errors import DataError

GroundTruth = Literal["union", "lisa_sum"]
"""What a pixel of two polygons of one annotation is: the object's, or, as in LISA's loader, background."""
MIN_POLYGON = 6
"""Numbers of a polygon; pycocotools takes four for a box."""
MAX_PIXELS = 2**28
"""Of an image; more than Pillow reads."""
MARGIN = 1.0
"""How far outside of its image a polygon may reach, in sides of the image; pycocotools takes memory for all of it."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object of an image.

    Attributes:
        mask: its pixels.
        has_overlap: whether polygons of it cover the same pixels, so that `GroundTruth` makes a difference.
        is_crowd: whether it is a region of several, which COCO does not count as an object.
    """

    mask: Rle
    has_overlap: bool
    is_crowd: bool


class InstanceFile:
    """An `instances.json`: images and annotations by id; masks are made when asked for.

    Args:
        content: what it says, where it is no JSON file and has been read already.

    Raises:
        DataError: the file is missing, not whole, or not of this format.
    """

    def __init__(self, path: Path, content: Any = None) -> None:
        self.path = path
        content = read_json(path) if content is None else content
        try:
            self._images = _by_id(content["images"])
            self._annotations = _by_id(content["annotations"])
            self._of_image: dict[int, list[int]] = defaultdict(list)
            for key, one in sorted(self._annotations.items()):
                self._of_image[int(one["image_id"])].append(key)
        except MALFORMED as error:
            raise DataError(
                f"{path} is no COCO instance file: it needs lists `images` and `annotations` whose entries have an id "
                f"of their own ({what_is_wrong(error)})"
            ) from None

    @property
    def image_ids(self) -> list[int]:
        """Of all images, ascending."""
        return sorted(self._images)

    @property
    def annotation_ids(self) -> list[int]:
        """Of all annotations, ascending."""
        return sorted(self._annotations)

    def annotations_of(self, image_id: int) -> list[int]:
        """Ids of the annotations of an image, ascending."""
        return list(self._of_image.get(image_id, ()))

    def image_of(self, annotation_id: int) -> int:
        """Id of the image that an annotation is of, which the file need not list."""
        return int(self._annotation(annotation_id)["image_id"])

    def field(self, annotation_id: int, name: str) -> Any:
        """What an annotation says under this name; None where it says nothing."""
        return self._annotation(annotation_id).get(name)

    def image(self, image_id: int, folder: Path) -> ImageFile:
        """Where an image lies, and its size.

        Raises:
            DataError: the file lists no such image.
        """
        if image_id not in self._images:
            raise DataError(f"{self.path} lists no image {image_id}; take the file that belongs to it")
        entry = self._images[image_id]
        try:
            height, width = int(entry["height"]), int(entry["width"])
            if min(height, width) < 1 or height * width > MAX_PIXELS:
                raise ValueError(f"found {width} x {height} pixels; 1 to {MAX_PIXELS} are allowed")
            return ImageFile(folder / as_text(entry["file_name"]), height, width)
        except MALFORMED as error:
            raise DataError(
                f"{self.path}: image {image_id} has no file_name, height and width that can be read "
                f"({what_is_wrong(error)}); take the official file"
            ) from None

    def annotation(self, annotation_id: int, ground_truth: GroundTruth) -> Annotation:
        """An annotation with its mask.

        Raises:
            DataError: there is none, or it is no polygon and no run-length encoding of its image.
        """
        entry = self._annotation(annotation_id)
        size = self.image(self.image_of(annotation_id), Path())
        try:
            mask, has_overlap = mask_of(entry["segmentation"], size.height, size.width, ground_truth)
        except MALFORMED as error:
            raise DataError(
                f"{self.path}: annotation {annotation_id} has no mask that can be read: {what_is_wrong(error)}; its "
                "segmentation must be polygons or encodings of its image; take the official file, or mend it"
            ) from None
        return Annotation(mask, has_overlap, bool(entry.get("iscrowd", 0)))

    def _annotation(self, annotation_id: int) -> Mapping[str, Any]:
        if annotation_id not in self._annotations:
            raise DataError(f"{self.path}: there is no annotation {annotation_id}; take the file that belongs to it")
        return self._annotations[annotation_id]


def _by_id(entries: Any) -> dict[int, Mapping[str, Any]]:
    """The entries of a list.

    Raises:
        ValueError: two that differ have the same id.
    """
    found: dict[int, Mapping[str, Any]] = {}
    for entry in entries:
        key = int(entry["id"])
        if found.setdefault(key, entry) != entry:
            raise ValueError(f"two entries that differ have the id {key}")
    return found


def mask_of(segmentation: Any, height: int, width: int, ground_truth: GroundTruth) -> tuple[Rle, bool]:
    """The mask of polygons or of one or more run-length encodings, and whether its parts overlap.

    Raises:
        ValueError: it is neither, or not within the image.
    """
    if segmentation == []:
        return encode(np.zeros((height, width), bool)), False
    parts = _parts(segmentation, height, width)
    whole = coco_mask.merge(parts)
    # One part at a time: `area` of pycocotools 2.0.11 fails at a list of over 255, and decoded they would fill memory.
    has_overlap = sum(int(coco_mask.area(part)) for part in parts) > int(coco_mask.area(whole))
    if has_overlap and ground_truth == "lisa_sum":
        num_parts = np.zeros((height, width), np.int32)
        for part in parts:
            num_parts += coco_mask.decode(part)
        whole = encode(num_parts == 1)
    return whole, has_overlap


def _parts(segmentation: Any, height: int, width: int) -> list[Rle]:
    if isinstance(segmentation, Mapping):
        return [_from_rle(segmentation, height, width)]
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str):
        raise ValueError(f"found {segmentation!r:.60}; a list of polygons or an encoding with `counts` is allowed")
    if isinstance(segmentation[0], Mapping):
        return [_from_rle(one, height, width) for one in segmentation]
    for polygon in segmentation:
        if len(polygon) < MIN_POLYGON or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers; three points or more, x and y of each, are allowed")
    polygons = [list(map(float, polygon)) for polygon in segmentation]
    for axis, side in enumerate((width, height)):
        for at in (at for polygon in polygons for at in polygon[axis::2]):
            if not -MARGIN * side <= at <= (1 + MARGIN) * side:  # so NaN is refused too
                raise ValueError(f"a polygon with a point at {'xy'[axis]} = {at:g}; the image is {width} x {height}")
    return coco_mask.frPyObjects(polygons, height, width)


def _from_rle(encoding: Mapping[str, Any], height: int, width: int) -> Rle:
    size = [int(side) for side in encoding["size"]]
    if size != [height, width]:
        raise ValueError(f"an encoding for {size[1]} x {size[0]} pixels; the image has {width} x {height}")
    counts = encoding["counts"]
    is_plain = isinstance(counts, Sequence) and not isinstance(counts, str | bytes)
    text = counts.encode() if isinstance(counts, str) else counts
    runs = [int(run) for run in counts] if is_plain else _runs(text)
    if sum(runs) != height * width or min(runs) < 0:
        raise ValueError(f"an encoding of {sum(runs)} pixels; the image has {height * width}")
    if is_plain:
        return coco_mask.frPyObjects({"size": size, "counts": runs}, height, width)
    return {"size": size, "counts": text}


def _runs(text: bytes) -> list[int]:
    """The runs of a compressed encoding, which pycocotools decodes into memory of its own without counting them.

    Each is written in groups of five bits, the lowest first, with a sixth that says whether another follows; from the
    fourth on it is less the one before the last.

    Raises:
        IndexError: the last one is cut off.
    """
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift, has_more = 0, 0, True
        while has_more:
            group = text[place] - 48
            value |= (group & 31) << shift
            place, shift, has_more = place + 1, shift + 5, bool(group & 32)
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
