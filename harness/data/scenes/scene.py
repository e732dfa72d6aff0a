"""The scene graph: objects, their positions and occlusions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from harness.data.scenes.shapes import SHAPES, TEXTURES, Appearance, coverage
from harness.data.scenes.stable_rng import StableRng

SIDE = 224
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
_BORDER = 1  # free pixels along the edge of the image
_ATTEMPTS = 40
_NARROW = ("ring", "cross", "star")  # too narrow for a texture below a larger extent


class Box(NamedTuple):
    """Pixel bounds; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def meets(self, other: "Box") -> bool:
        """Whether the two boxes share a pixel."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        id: its value in the id map, 1 for the farthest object.
        x, y: centre of the outline in pixels, visible or not.
        area: pixels of the whole outline.
        visible: pixels that are not occluded.
        centroid: (x, y) of the visible pixels, rounded down.
        box: bounds of the visible pixels.
        hidden_by: (id, pixels) of every nearer object whose outline overlaps this one; pixels are counted where it
            is the nearest object, and may be 0.
    """

    id: int
    appearance: Appearance
    x: int
    y: int
    area: int
    visible: int
    centroid: tuple[int, int]
    box: Box
    hidden_by: tuple[tuple[int, int], ...]

    @property
    def occlusion(self) -> float:
        """Share of the outline that is occluded."""
        return 1 - self.visible / self.area


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Objects from the farthest to the nearest, and their id map (SIDE, SIDE) uint8."""

    objects: tuple[SceneObject, ...]
    ids: np.ndarray


@dataclass(slots=True)
class _Placed:
    appearance: Appearance
    x: int
    y: int
    stamp: np.ndarray  # (2r, 2r) bool, the whole outline
    area: int
    visible: int

    @property
    def radius(self) -> int:
        return len(self.stamp) // 2

    @property
    def box(self) -> Box:
        return Box(self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)

    @property
    def window(self) -> tuple[slice, slice]:
        return slice(self.box.top, self.box.bottom), slice(self.box.left, self.box.right)

    @property
    def min_visible(self) -> int:
        """Pixels that must stay visible: two fifths, at least 60, and nearly all of an object that is tiny."""
        return max(self.area * 2 // 5, min(60, self.area * 9 // 10))


def _extent(rng: StableRng) -> int:
    """Extent of an object in pixels: mostly 30 to 70, sometimes less than a patch or most of the image."""
    low, high = rng.weighted(((10, 14), (15, 28), (30, 70), (75, 128)), (9, 21, 62, 8))
    return rng.between(low, high)


def _appearance(rng: StableRng, shapes: Sequence[str], colours: Sequence[str], textures: Sequence[str]) -> Appearance:
    """An appearance from the scene's palette; an object too small for a texture is plain."""
    shape, colour, texture = rng.pick(shapes), rng.pick(colours), rng.pick(textures)
    width = height = _extent(rng)
    angle = rng.between(-18, 18) % 360
    if shape == "bar":
        width = min(max(width * 3 // 2, 24), 150)
        height = max(width * 10 // rng.between(32, 60), 6)
        angle = rng.between(0, 179)
    elif shape == "diamond":
        width = height * 2 // 3
    elif shape == "star":
        width = height = height * 6 // 5
    if min(width, height) < (36 if shape in _NARROW else 12 if shape == "bar" else 22):
        texture = "plain"
    period = min(max(min(width, height) // 5, 7), 12)
    return Appearance(shape, colour, texture, width, height, angle, rng.between(0, 179), period)


def _candidates(
    rng: StableRng, appearance: Appearance, radius: int, placed: list[_Placed]
) -> Iterator[tuple[int, int, bool]]:
    """Candidate positions (x, y, whether occlusion is forbidden): often beside another object, then anywhere."""
    low, high = radius + _BORDER, SIDE - radius - _BORDER
    neighbours = [old for old in placed if old.appearance.colour != appearance.colour]
    if neighbours and rng.percent(40):
        old = rng.pick(neighbours)
        reach = (radius + old.radius) * 7 // 10
        for _ in range(_ATTEMPTS // 2):
            x, y = old.x + rng.between(-reach, reach), old.y + rng.between(-reach, reach)
            yield min(max(x, low), high), min(max(y, low), high), False
    for attempt in range(_ATTEMPTS):
        yield rng.between(low, high), rng.between(low, high), attempt < _ATTEMPTS * 3 // 4


def _try_to_place(rng: StableRng, appearance: Appearance, placed: list[_Placed], ids: np.ndarray) -> bool:
    """Place the object on top at the first position that keeps all objects recognisable; False if there is none."""
    first, second = coverage(appearance)
    stamp = first + second >= 2
    area = int(stamp.sum())
    for x, y, must_not_occlude in _candidates(rng, appearance, len(stamp) // 2, placed):
        new = _Placed(appearance, x, y, stamp, area, area)
        touched = [(k, old) for k, old in enumerate(placed, start=1) if new.box.meets(old.box)]
        if any(old.appearance.colour == appearance.colour for _, old in touched):
            continue
        lost = np.bincount(ids[new.window][stamp], minlength=len(placed) + 1)
        if must_not_occlude and lost[1:].any():
            continue
        if any(lost[k] and old.visible - lost[k] < old.min_visible for k, old in touched):
            continue
        for k, old in touched:
            old.visible -= int(lost[k])
        placed.append(new)
        ids[new.window][stamp] = len(placed)
        return True
    return False


def _overlap(a: _Placed, b: _Placed) -> bool:
    """Whether two outlines share a pixel, visible or not."""
    if not a.box.meets(b.box):
        return False
    both = np.zeros((SIDE, SIDE), dtype=bool)
    both[a.window] = a.stamp
    return bool((both[b.window] & b.stamp).any())


def _measured(number: int, placed: Sequence[_Placed], ids: np.ndarray) -> SceneObject:
    """Measure a placed object in the finished id map."""
    one = placed[number - 1]
    rows, columns = np.nonzero(ids[one.window] == number)
    left, top = one.box.left, one.box.top
    hidden = np.bincount(ids[one.window][one.stamp], minlength=len(placed) + 1)
    nearer = enumerate(placed[number:], start=number + 1)
    return SceneObject(
        id=number,
        appearance=one.appearance,
        x=one.x,
        y=one.y,
        area=one.area,
        visible=one.visible,
        centroid=(left + int(columns.sum()) // len(columns), top + int(rows.sum()) // len(rows)),
        box=Box(
            left + int(columns.min()), top + int(rows.min()), left + int(columns.max()) + 1, top + int(rows.max()) + 1
        ),
        hidden_by=tuple((k, int(hidden[k])) for k, other in nearer if _overlap(one, other)),
    )


def sample(rng: StableRng) -> Scene:
    """Sample a scene of three to nine objects that share a few shapes, colours and textures."""
    count = rng.weighted((3, 4, 5, 6, 7, 8, 9), (6, 18, 24, 22, 16, 9, 5))
    shapes = rng.shuffled(SHAPES)[: rng.between(2, 4)]
    colours = rng.shuffled(COLOURS)[: rng.between(2, 4)]
    textures = ("plain", *rng.shuffled(TEXTURES[1:])[: rng.between(1, 3)])
    appearances = [_appearance(rng, shapes, colours, textures) for _ in range(count)]
    if rng.percent(70):
        appearances.sort(key=lambda appearance: -appearance.width * appearance.height)
    ids = np.zeros((SIDE, SIDE), dtype=np.uint8)
    placed: list[_Placed] = []
    for appearance in appearances:
        _try_to_place(rng, appearance, placed, ids)
    if len(placed) < 3:
        return sample(rng)
    return Scene(tuple(_measured(number, placed, ids) for number in range(1, len(placed) + 1)), ids)
