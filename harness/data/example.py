"""The examples of every dataset: an image with referring expressions, their masks, and questions."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from pycocotools import mask as coco_mask

from harness.errors import DataError

Rle = dict[str, Any]
"""A mask in COCO's compressed run-length encoding: size [h, w] and counts."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A referring expression and the objects that it refers to.

    Attributes:
        text: words in lower case, separated by single spaces.
        family: the kind of expression, by which scores are grouped; "all" if a dataset has no families.
        targets: ids of objects, ascending; empty when the expression refers to nothing in the image.
    """

    text: str
    family: str
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a whole image that has a text answer; a request for a caption is one too.

    Attributes:
        text: the prompt, including the text that its dataset adds to a question.
        family: the kind of question, by which scores are grouped; "all" if a dataset has no families.
        answer: the training target.
        references: reference answers, as many as the scoring requires.
        scoring: name of the authors' metric in `harness.evaluation.text_metrics.SCORINGS`.
    """

    text: str
    family: str
    answer: str
    references: tuple[str, ...]
    scoring: str


TextQuery = Expression | Question
"""A query about an image: its answer is a mask for an expression and a text for a question."""


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """Attributes of one object beyond its mask, for grouping scores.

    Attributes:
        elongation: ratio of the principal axes, at least 1.
        occlusion: share of the object hidden behind others, 0 to 1.
        area: visible pixels.
    """

    elongation: float
    occlusion: float
    area: int


@dataclass(frozen=True, slots=True)
class Licence:
    """The licence of a photograph.

    Attributes:
        name: as its dataset names it.
        url: of the licence.
        source: where the photograph is from, a URL.
    """

    name: str
    url: str
    source: str

    @property
    def allows_reports(self) -> bool:
        """Whether a report may show the photograph scaled and drawn on, also commercially."""
        return any(part in self.url for part in _FREE)

    @property
    def credit(self) -> str:
        """The line below the photograph."""
        return f"photograph: {self.source}, {self.name}, {self.url}"


_FREE = ("/licenses/by/", "/licenses/by-sa/", "/publicdomain/", "flickr.com/commons/usage", "usa.gov")
"""Parts of the URLs of licences without the terms "non-commercial" and "no derivatives"."""
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, EOFError, Image.DecompressionBombError)
"""Exceptions that Pillow raises for a file that is no image, truncated, or too large."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file that is decoded at each access, because a whole dataset does not fit into memory.

    Attributes:
        path: of the file.
        height, width: in pixels, from the annotations.
    """

    path: Path
    height: int
    width: int

    @classmethod
    def of(cls, path: Path) -> "ImageFile":
        """A file with the size of its upright image; only the header is read.

        Raises:
            DataError: the file is missing, or no image.
        """
        (height, width), _ = _sizes(path)
        return cls(path, height, width)

    def actual(self) -> "ImageFile":
        """The file with the size of the array from `read_image`; only the header is read.

        Raises:
            DataError: the file is missing, or no image.
        """
        upright, stored = _sizes(self.path)
        height, width = stored if stored == (self.height, self.width) else upright
        return ImageFile(self.path, height, width)

    def read(self) -> np.ndarray:
        """(h, w, 3) uint8 RGB.

        Raises:
            DataError: the file is missing, damaged, or of another size.
        """
        image = read_image(self.path, (self.height, self.width))
        if image.shape[:2] != (self.height, self.width):
            raise DataError(
                f"{self.path} has {image.shape[1]} x {image.shape[0]} pixels, but its annotations are for "
                f"{self.width} x {self.height}; use the image in its original size"
            )
        return image


def read_image(path: Path, annotated_size: tuple[int, int] | None = None) -> np.ndarray:
    """(h, w, 3) uint8 RGB of an image file, rotated and mirrored according to its EXIF orientation.

    OpenCV applies EXIF when it loads a file, so LISA and other loaders built on it use the upright image, as annotators
    do. Some annotations were made without EXIF: if only the stored orientation has the annotated size, the image is
    returned as stored. If both orientations have it (square images, rotations by 180 degrees), the image is upright.

    Args:
        annotated_size: (h, w) of the image in its annotations.

    Raises:
        DataError: the file is missing, or no valid image.
    """
    try:
        with Image.open(path) as file:
            file.load()
            upright = ImageOps.exif_transpose(file) if _orientation(file) > 1 else file
            is_as_stored = (upright.height, upright.width) != annotated_size == (file.height, file.width)
            return rgb(file if is_as_stored else upright)
    except UNREADABLE as error:
        raise _unreadable(path, error) from None


def _sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(h, w) upright and as stored."""
    try:
        with Image.open(path) as image:
            stored = image.height, image.width
            # Pillow returns the upright size of a TIFF, and would decode a PNG's pixels to find EXIF after them.
            is_upright = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
            is_transposed = not is_upright and _orientation(image) > 4
            return (stored[::-1] if is_transposed else stored), stored
    except UNREADABLE as error:
        raise _unreadable(path, error) from None


def _orientation(image: Image.Image) -> int:
    """1 to 8 as in EXIF, where 1 is upright and 5 to 8 swap height and width; 1 if EXIF is damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (*UNREADABLE, LookupError, TypeError, struct.error):
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} is missing; correct the path, or download the image")
    return DataError(f"{path} cannot be read as an image ({error}); download it again, or use another file")


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image with its queries.

    Attributes:
        image_id: unique and stable across runs.
        picture: the image, in memory or in a file.
        objects: the visible mask of object k at position k - 1; masks may overlap.
        expressions: in the order in which results number them; the answer is a mask.
        questions: numbered after the expressions; the answer is a text.
        attributes: of object k at position k - 1; empty if a dataset has none.
        ignored: pixels that are excluded from training and scores.
        domain: visual domain, by which scores are grouped; empty if a dataset has only one.
        lists_all_objects: whether `objects` includes those that no expression refers to.
        licence: of a photograph; None if its dataset names none.
    """

    image_id: str
    picture: np.ndarray | ImageFile
    objects: tuple[Rle, ...]
    expressions: tuple[Expression, ...]
    questions: tuple[Question, ...] = ()
    attributes: tuple[ObjectFacts, ...] = ()
    ignored: Rle | None = None
    domain: str = ""
    lists_all_objects: bool = True
    licence: Licence | None = None

    @property
    def queries(self) -> tuple[TextQuery, ...]:
        """Expressions, then questions."""
        return (*self.expressions, *self.questions)

    @property
    def image(self) -> np.ndarray:
        """(h, w, 3) uint8 RGB.

        Raises:
            DataError: its file is missing or invalid.
        """
        return self.picture if isinstance(self.picture, np.ndarray) else self.picture.read()

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        if isinstance(self.picture, ImageFile):
            return self.picture.height, self.picture.width
        height, width = self.picture.shape[:2]
        return height, width

    def mask(self, expression: Expression) -> np.ndarray:
        """The union of the visible masks of the expression's targets, (h, w) bool."""
        return self.target_mask(expression.targets)

    def target_mask(self, targets: Sequence[int]) -> np.ndarray:
        """The union of the visible masks of objects, by their ids, (h, w) bool."""
        return union([self.objects[k - 1] for k in targets], self.size)

    def valid_mask(self) -> np.ndarray:
        """(h, w) bool, False where a pixel is ignored."""
        return ~union([] if self.ignored is None else [self.ignored], self.size)

    def id_map(self) -> np.ndarray:
        """(h, w) int16, 0 is background; where objects overlap, the later one is on top."""
        ids = np.zeros(self.size, np.int16)
        for k, one in enumerate(self.objects, start=1):
            ids[coco_mask.decode(one) > 0] = k
        return ids


def rgb(image: Image.Image) -> np.ndarray:
    """(h, w, 3) uint8 of an image of any mode."""
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def encode(mask: np.ndarray) -> Rle:
    """The run-length encoding of an (h, w) bool mask."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def encode_ids(ids: np.ndarray) -> tuple[Rle, ...]:
    """The objects of an (h, w) id map, in which 0 is background."""
    return tuple(encode(ids == k) for k in range(1, int(ids.max(initial=0)) + 1))


def union(masks: Sequence[Rle], size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool of masks that have this size; all False without any."""
    return coco_mask.decode(coco_mask.merge(list(masks))).astype(bool) if masks else np.zeros(size, bool)
