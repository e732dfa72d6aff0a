"""COCO's instance annotations: images, their objects and masks.

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

from harness.data.example import ImageFile, Licence, Rle, encode
from harness.data.formats.reading import MALFORMED, as_sentence, as_text, read_json, what_is_wrong
from harness.errors import DataError

GroundTruth = Literal["union", "lisa_sum"]
"""A pixel in two polygons of one annotation is object (union) or, as in LISA's loader, background (lisa_sum)."""
MIN_POLYGON = 6
"""Fewest coordinates of a polygon; pycocotools interprets four as a box."""
MAX_PIXELS = 2**28
"""Of an image; above the limit of Pillow."""
MARGIN = 1.0
"""How far a polygon may extend beyond its image, in sides of the image; pycocotools allocates memory for all of it."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object of an image.

    Attributes:
        mask: its pixels.
        has_overlap: whether its polygons share pixels, so that the mask depends on `GroundTruth`.
        is_crowd: whether it is a region of several objects, which COCO does not count as an object.
    """

    mask: Rle
    has_overlap: bool
    is_crowd: bool


class InstanceFile:
    """An `instances.json`: images and annotations by id; masks are decoded on demand.

    Args:
        content: the parsed content, if it does not come from a JSON file.

    Raises:
        DataError: the file is missing, truncated, or not in this format.
    """

    def __init__(self, path: Path, content: Any = None) -> None:
        self.path = path
        content = read_json(path) if content is None else content
        self._categories = content.get("categories") if isinstance(content, Mapping) else None
        self._licences = content.get("licenses") if isinstance(content, Mapping) else None
        try:
            self._images = _by_id(content["images"])
            self._annotations = _by_id(content["annotations"])
            self._of_image: dict[int, list[int]] = defaultdict(list)
            for key, one in sorted(self._annotations.items()):
                self._of_image[int(one["image_id"])].append(key)
        except MALFORMED as error:
            raise DataError(
                f"{path} is no COCO instance file: it must have lists `images` and `annotations` whose entries have "
                f"unique ids ({what_is_wrong(error)})"
            ) from None

    @property
    def image_ids(self) -> list[int]:
        """Ids of all images, ascending."""
        return sorted(self._images)

    @property
    def annotation_ids(self) -> list[int]:
        """Ids of all annotations, ascending."""
        return sorted(self._annotations)

    def categories(self) -> dict[int, str]:
        """Names of all categories by id, in lower case; expressions need them, masks do not.

        Raises:
            DataError: the file lists no categories, or one without a name.
        """
        try:
            names = {int(one["id"]): as_sentence(one["name"].replace("_", " ")) for one in self._categories or ()}
            if not all(names.values()) or not names:
                raise ValueError("a name is empty" if names else "there are none")
        except MALFORMED as error:
            raise DataError(
                f"{self.path} has no valid categories ({what_is_wrong(error)}); it must have a list `categories` whose "
                "entries have an id and a name"
            ) from None
        return names

    def annotations_of(self, image_id: int) -> list[int]:
        """Ids of the annotations of an image, ascending."""
        return list(self._of_image.get(image_id, ()))

    def image_of(self, annotation_id: int) -> int:
        """Id of the image of an annotation; the file need not list that image."""
        return int(self._annotation(annotation_id)["image_id"])

    def field(self, annotation_id: int, name: str) -> Any:
        """The value of a field of an annotation; None if it has no such field."""
        return self._annotation(annotation_id).get(name)

    def image(self, image_id: int, folder: Path) -> ImageFile:
        """The path and the size of an image.

        Raises:
            DataError: the file lists no such image.
        """
        if image_id not in self._images:
            raise DataError(f"{self.path} lists no image {image_id}; use the instance file of the same release")
        entry = self._images[image_id]
        try:
            height, width = int(entry["height"]), int(entry["width"])
            if min(height, width) < 1 or height * width > MAX_PIXELS:
                raise ValueError(f"found {width} x {height} pixels; at least 1 and at most {MAX_PIXELS} are allowed")
            return ImageFile(folder / as_text(entry["file_name"]), height, width)
        except MALFORMED as error:
            raise DataError(
                f"{self.path}: image {image_id} has no valid file_name, height and width "
                f"({what_is_wrong(error)}); use the official file"
            ) from None

    def licence(self, image_id: int) -> Licence | None:
        """The licence of a listed image; None if the file does not name it.

        Raises:
            DataError: the licences are malformed, or lack that of the image.
        """
        entry = self._images[image_id]
        if entry.get("license") is None or not self._licences:
            return None
        try:
            found = {int(one["id"]): one for one in self._licences}[int(entry["license"])]
            if not found["name"] and not found["url"]:  # a placeholder, as labelme and CVAT write
                return None
            source = entry.get("flickr_url") or entry.get("coco_url") or entry["file_name"]
            return Licence(as_text(found["name"]), as_text(found["url"]), as_text(source))
        except MALFORMED as error:
            raise DataError(
                f"{self.path}: image {image_id} has a licence that the file does not list with id, name and url "
                f"({what_is_wrong(error)}); correct it, or remove the field `license`"
            ) from None

    def annotation(self, annotation_id: int, ground_truth: GroundTruth) -> Annotation:
        """An annotation with its mask.

        Raises:
            DataError: there is no such annotation, or its segmentation is invalid.
        """
        entry = self._annotation(annotation_id)
        size = self.image(self.image_of(annotation_id), Path())
        try:
            mask, has_overlap = mask_of(entry["segmentation"], size.height, size.width, ground_truth)
        except MALFORMED as error:
            raise DataError(
                f"{self.path}: annotation {annotation_id} has no valid mask: {what_is_wrong(error)}; its "
                "segmentation must be polygons or encodings of its image; use the official file, or correct it"
            ) from None
        return Annotation(mask, has_overlap, bool(entry.get("iscrowd", 0)))

    def _annotation(self, annotation_id: int) -> Mapping[str, Any]:
        if annotation_id not in self._annotations:
            raise DataError(
                f"{self.path}: there is no annotation {annotation_id}; use the instance file of the same release"
            )
        return self._annotations[annotation_id]


def _by_id(entries: Any) -> dict[int, Mapping[str, Any]]:
    """The entries of a list.

    Raises:
        ValueError: two different entries have the same id.
    """
    found: dict[int, Mapping[str, Any]] = {}
    for entry in entries:
        key = int(entry["id"])
        if found.setdefault(key, entry) != entry:
            raise ValueError(f"two different entries have the id {key}")
    return found


def mask_of(segmentation: Any, height: int, width: int, ground_truth: GroundTruth) -> tuple[Rle, bool]:
    """The mask of polygons or of one or more run-length encodings, and whether its parts overlap.

    Raises:
        ValueError: it is neither, or extends beyond the image.
    """
    if segmentation == []:
        return encode(np.zeros((height, width), bool)), False
    parts = _parts(segmentation, height, width)
    whole = coco_mask.merge(parts)
    # One part at a time: `area` of pycocotools 2.0.11 fails for over 255 masks, and decoding all would fill the memory.
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
        raise ValueError(f"found {segmentation!r:.60}; it must be a list of polygons or an encoding with `counts`")
    if isinstance(segmentation[0], Mapping):
        return [_from_rle(one, height, width) for one in segmentation]
    for polygon in segmentation:
        if len(polygon) < MIN_POLYGON or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers; x and y of at least three points are required")
    polygons = [list(map(float, polygon)) for polygon in segmentation]
    for axis, side in enumerate((width, height)):
        for value in (value for polygon in polygons for value in polygon[axis::2]):
            if not -MARGIN * side <= value <= (1 + MARGIN) * side:  # also refuses NaN
                raise ValueError(f"a polygon with a point at {'xy'[axis]} = {value:g}; the image is {width} x {height}")
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
    """The runs of a compressed encoding; pycocotools decodes them without a check of their sum.

    A run is a sequence of groups of five bits, the lowest first; the sixth bit of a group is set if another follows.
    From the fourth run on, the difference to the run two before is stored.

    Raises:
        IndexError: the last run is truncated.
    """
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, shift, has_more = 0, 0, True
        while has_more:
            group = text[position] - 48
            value |= (group & 31) << shift
            position, shift, has_more = position + 1, shift + 5, bool(group & 32)
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
