"""Outlines and textures as integer predicates on a grid of 2 x 2 points per pixel.

All arithmetic is on integers, so masks and edge colours are identical on all machines. Lengths are in quarter pixels:
with the origin on a pixel corner, the points of a pixel are at odd quarters.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

QUARTERS = 4  # units of length per pixel
_SCALE = 1024  # of the sine table
_SINE = [round(_SCALE * math.sin(math.radians(degree))) for degree in range(360)]

# Vertices in thousandths of the half extents, y pointing down.
_POLYGONS: dict[str, tuple[tuple[int, int], ...]] = {
    "square": ((-1000, -1000), (1000, -1000), (1000, 1000), (-1000, 1000)),
    "bar": ((-1000, -1000), (1000, -1000), (1000, 1000), (-1000, 1000)),
    "diamond": ((0, -1000), (1000, 0), (0, 1000), (-1000, 0)),
    "triangle": ((0, -1000), (1000, 850), (-1000, 850)),
    "star": (
        *((0, -1000), (247, -340), (951, -309), (400, 130), (588, 809)),
        *((0, 420), (-588, 809), (-400, 130), (-951, -309), (-247, -340)),
    ),
    "cross": (
        *((-340, -1000), (340, -1000), (340, -340), (1000, -340), (1000, 340), (340, 340)),
        *((340, 1000), (-340, 1000), (-340, 340), (-1000, 340), (-1000, -340), (-340, -340)),
    ),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "bar")
TEXTURES = ("plain", "striped", "dotted", "checkered")


@dataclass(frozen=True, slots=True)
class Appearance:
    """The appearance of one object, independent of its position.

    Attributes:
        width: extent along the object's own x axis, in pixels.
        height: extent along its own y axis, in pixels.
        angle: clockwise rotation of the outline, in degrees.
        grain: rotation of the texture, in degrees.
        period: of the texture, in pixels.
    """

    shape: str
    colour: str
    texture: str
    width: int
    height: int
    angle: int
    grain: int
    period: int

    @property
    def elongation(self) -> float:
        """Ratio of the two extents, at least 1."""
        return max(self.width, self.height) / min(self.width, self.height)


def _rotated(x: np.ndarray, y: np.ndarray, degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the points in axes rotated by `degrees`."""
    cosine, sine = _SINE[(degrees + 90) % 360], _SINE[degrees % 360]
    return (x * cosine + y * sine) // _SCALE, (y * cosine - x * sine) // _SCALE


def _vertices(appearance: Appearance) -> list[tuple[int, int]]:
    """Corners of the rotated polygon, in quarter pixels."""
    cosine, sine = _SINE[(appearance.angle + 90) % 360], _SINE[appearance.angle % 360]
    half_width, half_height = appearance.width * QUARTERS // 2, appearance.height * QUARTERS // 2
    scale = 1000 * _SCALE
    return [
        (
            (x * half_width * cosine - y * half_height * sine) // scale,
            (x * half_width * sine + y * half_height * cosine) // scale,
        )
        for x, y in _POLYGONS[appearance.shape]
    ]


def _inside_polygon(vertices: list[tuple[int, int]], axis: np.ndarray) -> np.ndarray:
    """Even-odd rule: a point is inside if a ray to its left crosses an odd number of edges."""
    inside = np.zeros((len(axis), len(axis)), dtype=bool)
    for (x0, y0), (x1, y1) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
        if y0 == y1:
            continue
        first, last = np.searchsorted(axis, sorted((y0, y1)), side="right")
        crossing = x0 + (axis[first:last] - y0) * (x1 - x0) // (y1 - y0)
        inside[first:last] ^= axis[None, :] > crossing[:, None]
    return inside


def _axis(reach: int) -> np.ndarray:
    """Coordinates of the points along one side of a square of `reach` pixels to each side of the centre."""
    return np.arange(-reach * QUARTERS + 1, reach * QUARTERS, 2, dtype=np.int32)


def _outline(appearance: Appearance) -> tuple[np.ndarray, np.ndarray]:
    """The grid axis, symmetric about the object's centre, and a mask of its points inside the outline."""
    if appearance.shape in _POLYGONS:
        vertices = _vertices(appearance)
        reach = max(max(abs(x), abs(y)) for x, y in vertices) // QUARTERS + 2
        axis = _axis(reach)
        return axis, _inside_polygon(vertices, axis)
    radius = appearance.width * QUARTERS // 2
    reach = radius // QUARTERS + 2
    axis = _axis(reach)
    squared = axis[:, None] ** 2 + axis[None, :] ** 2
    inside = squared <= radius**2
    if appearance.shape == "ring":
        inside &= squared > (radius * 11 // 20) ** 2
    return axis, inside


def _second_tone(appearance: Appearance, axis: np.ndarray) -> np.ndarray:
    """The points of the grid in the texture's second tone."""
    u, v = _rotated(axis[None, :], axis[:, None], appearance.grain)
    period = appearance.period * QUARTERS
    if appearance.texture == "striped":
        return u % period < period // 2
    if appearance.texture == "checkered":
        return (u // (period // 2) + v // (period // 2)) % 2 == 0
    across, along = u % period - period // 2, v % period - period // 2
    return across**2 + along**2 <= (period * 3 // 10) ** 2


def _count(points: np.ndarray) -> np.ndarray:
    """Points set in each pixel, 0 to 4, int32."""
    octets = points.view(np.uint8)
    rows = octets[0::2] + octets[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]).astype(np.int32)


@lru_cache(maxsize=32)  # an object is rendered soon after it is placed
def coverage(appearance: Appearance) -> tuple[np.ndarray, np.ndarray]:
    """Points of each pixel in the first and in the second tone.

    Returns:
        Two (2r, 2r) int32 arrays with values 0 to 4, centred on the object's centre, a pixel corner. A pixel belongs
        to the object if the two sum to at least 2.
    """
    axis, inside = _outline(appearance)
    tone = _second_tone(appearance, axis) if appearance.texture != "plain" else np.zeros_like(inside)
    counts = _count(inside & ~tone), _count(inside & tone)
    for count in counts:
        count.setflags(write=False)
    return counts
