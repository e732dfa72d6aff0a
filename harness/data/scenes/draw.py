"""Renders a scene in one of several visual domains; masks and expressions are the same in all of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.data.scenes.scene import SIDE, Scene, SceneObject
from harness.data.scenes.shapes import coverage
from harness.data.scenes.stable_rng import StableRng

_RGB = {
    "red": (208, 32, 38),
    "orange": (243, 134, 22),
    "yellow": (246, 222, 52),
    "green": (44, 150, 58),
    "cyan": (64, 206, 214),
    "blue": (36, 72, 200),
    "purple": (124, 44, 160),
    "pink": (250, 156, 196),
}
_LIGHT = ("orange", "yellow", "cyan", "pink")  # textured with a dark second tone, the others with a light one
_FULL = 256  # the fixed-point representation of 1


@dataclass(frozen=True, slots=True)
class Domain:
    """The appearance of a domain.

    Attributes:
        background: renders the empty picture, (SIDE, SIDE, 3) int16.
        finish: modifies the whole picture in place after the objects are rendered.
        jitter: largest random change of an object's colour, per channel.
        shading: brightness difference between an object's top and middle, out of 256.
        fill: opacity of an object's colour, out of 256, over the colour of paper.
        has_outline: whether every object has a dark edge.
    """

    background: Callable[[StableRng], np.ndarray]
    finish: Callable[[np.ndarray, StableRng], None]
    jitter: int
    shading: int
    fill: int
    has_outline: bool


_PAPER = np.array([236, 232, 221], dtype=np.int32)
_AXIS = np.arange(SIDE, dtype=np.int32)


def _colour(rng: StableRng, rgb: tuple[int, int, int], reach: int) -> np.ndarray:
    """The colour with each channel changed by up to `reach`, (3,) int16."""
    return np.array([channel + rng.between(-reach, reach) for channel in rgb], dtype=np.int16)


def _ramp(rng: StableRng, reach: int) -> np.ndarray:
    """A plane that changes by up to `reach` from one side of the picture to the other, (SIDE, SIDE, 1) int16."""
    down, right = rng.between(-reach, reach), rng.between(-reach, reach)
    centred = _AXIS - SIDE // 2
    return ((centred[:, None] * down + centred[None, :] * right) // SIDE).astype(np.int16)[:, :, None]


def _blotches(rng: StableRng, cell: int, reach: int) -> np.ndarray:
    """Smooth coloured noise: random values every `cell` pixels, linearly interpolated, (SIDE, SIDE, 3) int16."""
    knots = SIDE // cell + 2
    grid = rng.noise((knots, knots, 3), reach)
    knot, part = np.divmod(_AXIS.astype(np.int16), np.int16(cell))
    rows = (grid[knot] * (cell - part)[:, None, None] + grid[knot + 1] * part[:, None, None]) // np.int16(cell)
    smooth = rows[:, knot] * (cell - part)[None, :, None]
    smooth += rows[:, knot + 1] * part[None, :, None]
    smooth //= np.int16(cell)
    return smooth


def _studio_background(rng: StableRng) -> np.ndarray:
    """Grey paper, dark or bright, lit from one side."""
    level = rng.pick((72, 112, 150, 205, 225))
    return _colour(rng, (level, level, level), 8) + _ramp(rng, 36)


def _studio_finish(picture: np.ndarray, rng: StableRng) -> None:
    picture += rng.noise((SIDE, SIDE, 1), 5)


def _canvas_background(rng: StableRng) -> np.ndarray:
    """Rough paint in many muted colours."""
    picture = _blotches(rng, 28, 36)
    picture += _blotches(rng, 7, 22)
    picture += np.int16(rng.between(90, 165))
    return picture


def _canvas_finish(picture: np.ndarray, rng: StableRng) -> None:
    picture += _blotches(rng, 16, 10)
    picture += rng.noise((SIDE, SIDE, 3), 14)


def _sketch_background(rng: StableRng) -> np.ndarray:
    """Ruled paper."""
    picture = _blotches(rng, 32, 6)
    picture += _PAPER.astype(np.int16) + np.int16(rng.between(-6, 6))
    picture[rng.between(0, 15) :: 16] -= np.array([24, 12, 0], dtype=np.int16)
    return picture


def _sketch_finish(picture: np.ndarray, rng: StableRng) -> None:
    """Pencil strokes: faint, fine and slanted over the whole sheet, so that they differ from stripes."""
    strokes = (_AXIS[:, None] + _AXIS[None, :] + rng.noise((SIDE, SIDE), 1)) % 4 == 0
    picture -= np.int16(12) * strokes[:, :, None]
    picture += rng.noise((SIDE, SIDE, 1), 5)


def _night_background(rng: StableRng) -> np.ndarray:
    """A dark bluish ground."""
    picture = _blotches(rng, 32, 10)
    picture += _colour(rng, (24, 29, 56), 8)
    picture += _ramp(rng, 24)
    return picture


def _night_finish(picture: np.ndarray, rng: StableRng) -> None:
    """Light from one point; pixels farther away are darker."""
    x, y = rng.between(40, SIDE - 40), rng.between(40, SIDE - 40)
    squared = (_AXIS[:, None] - y) ** 2 + (_AXIS[None, :] - x) ** 2
    light = np.maximum(rng.between(170, 200) - squared // 420, 120)
    picture[:] = picture * light[:, :, None] // _FULL
    picture += rng.noise((SIDE, SIDE, 3), 11)


# A domain's index is part of its random key: append only.
DOMAINS: dict[str, Domain] = {
    "studio": Domain(_studio_background, _studio_finish, jitter=6, shading=26, fill=_FULL, has_outline=False),
    "canvas": Domain(_canvas_background, _canvas_finish, jitter=14, shading=52, fill=_FULL, has_outline=False),
    "sketch": Domain(_sketch_background, _sketch_finish, jitter=8, shading=0, fill=142, has_outline=True),
    "night": Domain(_night_background, _night_finish, jitter=10, shading=40, fill=_FULL, has_outline=False),
}


def _tones(one: SceneObject, domain: Domain, rng: StableRng) -> tuple[np.ndarray, np.ndarray]:
    """The colour of the object and of its texture's second tone, (3,) int32."""
    first = _colour(rng, _RGB[one.appearance.colour], domain.jitter).astype(np.int32)
    second = first * 112 // _FULL if one.appearance.colour in _LIGHT else (first * 64 + 245 * 192) // _FULL
    return first, second


def _inner_edge(points: np.ndarray) -> np.ndarray:
    """Pixels of a shape that have a neighbour outside it; the shape must not touch the border of the array."""
    inner = points.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(points, step, axis=axis)
    return points & ~inner


def _paint(picture: np.ndarray, one: SceneObject, domain: Domain, rng: StableRng) -> None:
    """Render one object over the picture; pixels outside its bounding box do not change."""
    in_first, in_second = coverage(one.appearance)
    radius = len(in_first) // 2
    window = (slice(one.y - radius, one.y + radius), slice(one.x - radius, one.x + radius))
    under = picture[window].astype(np.int32)
    first, second = _tones(one, domain, rng)
    total = in_first + in_second
    colour = in_first[:, :, None] * first
    if one.appearance.texture != "plain":
        colour += in_second[:, :, None] * second
    if domain.shading:
        light = _FULL - np.arange(-radius, radius, dtype=np.int32) * domain.shading // radius
        colour *= light[:, None, None]
        colour >>= 8
    if domain.fill < _FULL:
        colour = (colour * domain.fill + total[:, :, None] * (_PAPER * (_FULL - domain.fill))) >> 8
    under *= (4 - total)[:, :, None]
    colour += under
    colour += 2
    colour >>= 2
    if domain.has_outline:
        edge = _inner_edge(total >= 2)
        colour[edge] = colour[edge] // 4 + 28
    picture[window] = colour


def render(scene: Scene, domain: Domain, rng: StableRng) -> np.ndarray:
    """The picture of a scene, (SIDE, SIDE, 3) uint8."""
    picture = domain.background(rng)
    for one in scene.objects:
        _paint(picture, one, domain, rng)
    domain.finish(picture, rng)
    return picture.clip(0, 255, out=picture).astype(np.uint8)
