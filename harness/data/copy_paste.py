"""Training images made of labelled objects of training images, pasted on blurred training images.

Source: Ghiasi et al., https://arxiv.org/abs/2012.07177.
Differs from the paper: objects come from several images, the background is blurred so that only pasted objects can be
referred to, objects that touch the edge of their image are not pasted, a covered object keeps at least half of its
pixels, and edges are not blended, which changes little in the paper. As in the paper, objects are scaled and mirrored
at random, and those in front cover the masks of those behind.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask

from harness.data.coco_rules import Absences, ImageFacts, Instance, LabelledImage, expressions
from harness.data.coco_rules.nouns import are_alike
from harness.data.coco_rules.space import is_seen
from harness.data.example import Example, ImageFile, Rle, encode_ids
from harness.data.scenes.stable_rng import StableRng
from harness.errors import DataError
from harness.system.cache_folder import cache_folder
from harness.system.files import write_atomically
from harness.system.fingerprint import fingerprint

_BLUR = 25  # radius of the blur is this part of the longest side
_MAX_ENLARGEMENT = 2
_PERCENT = (15, 50)  # of the longest side of the image: the longest side of a pasted object
_ATTEMPTS = 40


@dataclass(frozen=True, slots=True)
class Paste:
    """One object of a training image and its place in the new image.

    Attributes:
        source: its image.
        mask: its pixels there.
        box: their bounds (left, top, right, bottom) in pixels.
        within: categories of other objects of its image that share pixels with it, as a tie does with its wearer.
        size: (w, h) after scaling.
        corner: (x, y) of its upper left corner in the new image.
    """

    source: ImageFile
    mask: Rle
    box: tuple[int, int, int, int]
    within: frozenset[str]
    size: tuple[int, int]
    is_mirrored: bool
    corner: tuple[int, int] = (0, 0)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the new image."""
        (x, y), (width, height) = self.corner, self.size
        return slice(y, y + height), slice(x, x + width)

    def stamp(self) -> np.ndarray:
        """The scaled mask, (h, w) bool."""
        return self._scaled(coco_mask.decode(self.mask), Image.Resampling.NEAREST) > 0

    def pixels(self) -> np.ndarray:
        """The scaled pixels in the box, (h, w, 3) uint8."""
        return self._scaled(self.source.read(), Image.Resampling.BILINEAR)

    def _scaled(self, array: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        left, top, right, bottom = self.box
        scaled = np.asarray(Image.fromarray(array[top:bottom, left:right]).resize(self.size, resampling))
        return scaled[:, ::-1] if self.is_mirrored else scaled


@dataclass(frozen=True, slots=True, eq=False)
class PastedImage(ImageFile):
    """An image that is rendered at its first access and then kept in the cache; its path depends on its content.

    Attributes:
        background: the image whose blurred pixels surround the objects.
        pastes: from the farthest object to the nearest.
    """

    background: ImageFile
    pastes: tuple[Paste, ...] = field(repr=False)

    def read(self) -> np.ndarray:
        """(h, w, 3) uint8 RGB.

        Raises:
            DataError: the file of a training image is missing or damaged.
        """
        if not self.path.exists():
            content = io.BytesIO()
            Image.fromarray(self.render()).save(content, "PNG", compress_level=1)
            write_atomically(self.path, content.getvalue())
        return ImageFile(self.path, self.height, self.width).read()

    def render(self) -> np.ndarray:
        """The pixels, (h, w, 3) uint8."""
        blur = ImageFilter.GaussianBlur(max(self.height, self.width) / _BLUR)
        image = np.array(Image.fromarray(self.background.read()).filter(blur))
        for paste in self.pastes:
            stamp = paste.stamp()
            image[paste.window][stamp] = paste.pixels()[stamp]
        return image


class PastedImages(Sequence[Example]):
    """Training examples, followed by pasted images, which are composed at first access.

    Args:
        examples: of the training images.
        images: the labelled training images.
        count: number of pasted images.

    Raises:
        DataError: no object can be pasted.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        images: Sequence[LabelledImage],
        absences: Absences,
        count: int,
        expressions_per_image: int,
        seed: int,
    ) -> None:
        self._examples = list(examples)
        self._images = images
        self._absences = absences
        self._count = count
        self._expressions_per_image = expressions_per_image
        self._seed = seed
        self._kept: dict[int, Example] = {}
        self._sources = _sources(images)
        if not self._sources:
            raise DataError(
                "data.copy_paste: no training image has an object that is large enough and away from its edges; set "
                "copy_paste: 0, or use more images"
            )

    def __len__(self) -> int:
        return len(self._examples) + self._count

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index] - len(self._examples)
        if position < 0:
            return self._examples[position]
        if position not in self._kept:
            self._kept[position] = self._make(position)
        return self._kept[position]

    def _make(self, number: int) -> Example:
        """The first composition of this number that has an expression."""
        for attempt in range(_ATTEMPTS):
            rng = StableRng((self._seed, number, attempt))
            background = rng.pick(self._images)
            pastes, categories, ids = compose(background.picture, self._sources, rng)
            objects = encode_ids(ids)
            named = zip(categories, objects, strict=True)
            instances = [Instance(k, name, mask) for k, (name, mask) in enumerate(named, start=1)]
            facts = ImageFacts(instances, frozenset[str]().union(*(paste.within for paste in pastes)))
            also_present = background.facts.present
            texts = expressions(facts, self._absences, self._expressions_per_image, rng, also_present)
            if texts:
                picture = _picture(background.picture, pastes)
                return Example(f"copy_paste-{self._seed}/{number:06d}", picture, objects, texts)
        raise DataError("data.copy_paste: the objects of the training images fit no expression; set copy_paste: 0")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """An object that can be pasted; `within` as in `Paste`."""

    picture: ImageFile
    instance: Instance
    within: frozenset[str]


Sources = Mapping[str, Sequence[Source]]
"""Objects that can be pasted, by category."""


def _sources(images: Sequence[LabelledImage]) -> Sources:
    found: dict[str, list[Source]] = {}
    for image in images:
        instances = image.facts.instances
        masks = list(image.objects)
        overlaps = np.array(coco_mask.iou(masks, masks, [0] * len(masks))) > 0
        for number, one in enumerate(instances):
            if is_seen(one) and not one.is_cut:
                within = {instances[k].category for k in np.flatnonzero(overlaps[number]) if k != number}
                # The pixels of an uncertain category are not all known.
                source = Source(image.picture, one, frozenset(within | image.facts.uncertain))
                found.setdefault(one.category, []).append(source)
    return dict(sorted(found.items()))


def compose(background: ImageFile, sources: Sources, rng: StableRng) -> tuple[list[Paste], list[str], np.ndarray]:
    """Pasted objects from the farthest to the nearest, their categories, and the id map (h, w) uint8."""
    ids = np.zeros((background.height, background.width), np.uint8)
    pastes: list[Paste] = []
    names: list[str] = []
    areas: list[int] = []
    for name in _categories(sources, rng):
        paste = _try_to_place(_scaled(rng.pick(sources[name]), max(ids.shape), rng), ids, areas, rng)
        if paste is not None:
            pastes.append(paste)
            names.append(name)
            ids[paste.window][paste.stamp()] = len(pastes)
            areas.append(int(paste.stamp().sum()))
    return pastes, names, ids


def _categories(sources: Sources, rng: StableRng) -> list[str]:
    """One to three categories that do not look alike, each for one to four objects, in random order."""
    chosen: list[str] = []
    for name in rng.shuffled(list(sources))[: rng.between(1, 3)]:
        if not any(are_alike(name, other) for other in chosen):
            chosen += [name] * rng.weighted((1, 2, 3, 4), (40, 30, 20, 10))
    return rng.shuffled(chosen)


def _scaled(source: Source, side: int, rng: StableRng) -> Paste:
    instance = source.instance
    left, top, right, bottom = instance.bounds
    longest = max(right - left, bottom - top)
    wanted = min(side * rng.between(*_PERCENT) // 100, _MAX_ENLARGEMENT * longest)
    size = (max(1, (right - left) * wanted // longest), max(1, (bottom - top) * wanted // longest))
    return Paste(source.picture, instance.mask, instance.bounds, source.within, size, rng.percent(50))


def _try_to_place(paste: Paste, ids: np.ndarray, areas: Sequence[int], rng: StableRng) -> Paste | None:
    """The object on top of the others, at the first position that leaves each of them half of its pixels."""
    (height, width), stamp = ids.shape, paste.stamp()
    if paste.size[0] > width or paste.size[1] > height or not stamp.any():
        return None
    visible = np.bincount(ids.ravel(), minlength=len(areas) + 1)
    for _ in range(_ATTEMPTS):
        corner = (rng.between(0, width - paste.size[0]), rng.between(0, height - paste.size[1]))
        placed = replace(paste, corner=corner)
        covered = np.bincount(ids[placed.window][stamp], minlength=len(areas) + 1)
        if all(visible[k] - covered[k] >= area / 2 for k, area in enumerate(areas, start=1)):
            return placed
    return None


def _picture(background: ImageFile, pastes: Sequence[Paste]) -> PastedImage:
    """The image under a name that depends on all that determines its pixels.

    Raises:
        DataError: the file of a training image is missing.
    """
    parts = [_identity(background), *((_identity(p.source), p.mask, p.size, p.is_mirrored, p.corner) for p in pastes)]
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    path = cache_folder("copy_paste", {"code": fingerprint(__name__)}) / f"{name}.png"
    return PastedImage(path, background.height, background.width, background, tuple(pastes))


def _identity(picture: ImageFile) -> tuple[str, int, int]:
    """Path, size and time of an image file."""
    try:
        status = picture.path.stat()
    except OSError:
        raise DataError(f"{picture.path} is missing; correct data.images, or download the image") from None
    return str(picture.path.resolve()), status.st_size, status.st_mtime_ns
