"""Paint a scene in one of several visual domains; the masks and the words stay the same in all of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.data.scenes.dice import Dice
from harness.data.scenes.scene import SIDE, Scene, SceneObject
from harness.data.scenes.shapes import coverage

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
_LIGHT = ("orange", "yellow", "cyan", "pink")  # these take a dark second tone, the others a light one
_FULL = 256  # a share of one, in the fixed-point arithmetic below
Colour = np.ndarray  # (3,) int32


@dataclass(frozen=True, slots=True)
class Domain:
    """How a domain looks.

    Attributes:
        background: draws the empty picture, (SIDE, SIDE, 3) int32.
        finish: what happens to the whole picture after the objects are painted.
        jitter: largest change of an object's colour, per channel.
        shading: how much lighter an object is at its top than in its middle, out of 256.
        fill: share of an object's colour that stays over the paper, out of 256.
        has_outline: whether a dark line runs along the edge of every object.
    """

    background: Callable[[Dice], np.ndarray]
    finish: Callable[[np.ndarray, Dice], np.ndarray]
    jitter: int
    shading: int
    fill: int
    has_outline: bool


def _ramp(dice: Dice, reach: int) -> np.ndarray:
    """A plane that rises by up to `reach` from one side of the picture to the other, (SIDE, SIDE, 1)."""
    down, right = dice.between(-reach, reach), dice.between(-reach, reach)
    axis = np.arange(SIDE, dtype=np.int32) - SIDE // 2
    return ((axis[:, None] * down + axis[None, :] * right) // SIDE)[:, :, None]


def _blotches(dice: Dice, cell: int, reach: int) -> np.ndarray:
    """Smooth coloured noise: random values every `cell` pixels with straight lines between, (SIDE, SIDE, 3)."""
    knots = SIDE // cell + 2
    grid = dice.noise((knots, knots, 3), reach)
    at, part = np.divmod(np.arange(SIDE, dtype=np.int32), cell)
    rows = (grid[at] * (cell - part)[:, None, None] + grid[at + 1] * part[:, None, None]) // cell
    part = part[None, :, None]
    return (rows[:, at] * (cell - part) + rows[:, at + 1] * part) // cell


def _grain(picture: np.ndarray, dice: Dice, reach: int) -> np.ndarray:
    """The picture with independent noise, the same in the three channels."""
    return picture + dice.noise((SIDE, SIDE, 1), reach)


def _studio_background(dice: Dice) -> np.ndarray:
    level = dice.pick((72, 112, 150, 205, 225))
    tint = np.array([dice.between(-8, 8) for _ in range(3)], dtype=np.int32)
    return level + tint + _ramp(dice, 36)


def _canvas_background(dice: Dice) -> np.ndarray:
    level = dice.between(90, 165)
    return level + _blotches(dice, 28, 46) + _blotches(dice, 7, 30)


def _sketch_background(dice: Dice) -> np.ndarray:
    paper = np.array([243, 239, 228], dtype=np.int32) - dice.between(0, 14)
    axis = np.arange(SIDE, dtype=np.int32)
    ruled = (axis + dice.between(0, 15)) % 16 == 0
    lines = np.array([24, 12, 0], dtype=np.int32) * ruled[:, None, None]
    return np.broadcast_to(paper - lines, (SIDE, SIDE, 3)) + _blotches(dice, 32, 6)


def _night_background(dice: Dice) -> np.ndarray:
    sky = np.array([28, 34, 62], dtype=np.int32) + dice.between(-8, 14)
    return sky + _ramp(dice, 24) + _blotches(dice, 32, 10)


def _studio_finish(picture: np.ndarray, dice: Dice) -> np.ndarray:
    return _grain(picture, dice, 5)


def _canvas_finish(picture: np.ndarray, dice: Dice) -> np.ndarray:
    return picture + _blotches(dice, 16, 10) + dice.noise((SIDE, SIDE, 3), 14)


def _sketch_finish(picture: np.ndarray, dice: Dice) -> np.ndarray:
    """Pencil strokes: faint, fine and slanted over the whole sheet, so that they are not taken for stripes."""
    axis = np.arange(SIDE, dtype=np.int32)
    strokes = (axis[:, None] + axis[None, :] + dice.noise((SIDE, SIDE), 1)) % 4 == 0
    return _grain(picture - 12 * strokes[:, :, None], dice, 5)


def _night_finish(picture: np.ndarray, dice: Dice) -> np.ndarray:
    """A lamp somewhere over the scene; the farther from it, the darker."""
    x, y = dice.between(40, SIDE - 40), dice.between(40, SIDE - 40)
    axis = np.arange(SIDE, dtype=np.int32)
    squared = (axis[:, None] - y) ** 2 + (axis[None, :] - x) ** 2
    light = np.maximum(dice.between(165, 195) - squared // 420, 104)
    return picture * light[:, :, None] // _FULL + dice.noise((SIDE, SIDE, 3), 11)


DOMAINS: dict[str, Domain] = {
    "studio": Domain(_studio_background, _studio_finish, jitter=6, shading=26, fill=_FULL, has_outline=False),
    "canvas": Domain(_canvas_background, _canvas_finish, jitter=22, shading=52, fill=_FULL, has_outline=False),
    "sketch": Domain(_sketch_background, _sketch_finish, jitter=8, shading=0, fill=142, has_outline=True),
    "night": Domain(_night_background, _night_finish, jitter=10, shading=40, fill=_FULL, has_outline=False),
}


def _tones(one: SceneObject, domain: Domain, dice: Dice) -> tuple[Colour, Colour]:
    """The colour of the object and of its texture's second tone."""
    first = np.array(_RGB[one.look.colour], dtype=np.int32)
    first = first + np.array([dice.between(-domain.jitter, domain.jitter) for _ in range(3)], dtype=np.int32)
    second = first * 72 // _FULL if one.look.colour in _LIGHT else (first * 64 + 245 * 192) // _FULL
    return first, second


def _inner_edge(points: np.ndarray) -> np.ndarray:
    """Pixels of a shape that have a neighbour outside it; the shape must not touch the border of the array."""
    inner = points.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(points, step, axis=axis)
    return points & ~inner


def _paint(picture: np.ndarray, one: SceneObject, domain: Domain, dice: Dice) -> None:
    """Lay one object over the picture, touching nothing outside its bounding box."""
    plain, patterned = coverage(one.look)
    radius = len(plain) // 2
    window = (slice(one.y - radius, one.y + radius), slice(one.x - radius, one.x + radius))
    first, second = _tones(one, domain, dice)
    under = picture[window]
    total = (plain + patterned)[:, :, None]
    colour = plain[:, :, None] * first + patterned[:, :, None] * second
    light = _FULL - np.arange(-radius, radius, dtype=np.int32) * domain.shading // radius
    colour = colour * light[:, None, None] // _FULL
    colour = (colour * domain.fill + under * total * (_FULL - domain.fill)) // _FULL
    mixed = (colour + (4 - total) * under + 2) // 4
    if domain.has_outline:
        edge = _inner_edge(total[:, :, 0] >= 2)
        mixed[edge] = mixed[edge] // 4 + 28
    picture[window] = mixed


def render(scene: Scene, domain: Domain, dice: Dice) -> np.ndarray:
    """The picture of a scene, (SIDE, SIDE, 3) uint8."""
    picture = np.ascontiguousarray(domain.background(dice), dtype=np.int32)
    for one in scene.objects:
        _paint(picture, one, domain, dice)
    return np.clip(domain.finish(picture, dice), 0, 255).astype(np.uint8)
