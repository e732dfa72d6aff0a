"""Small instance files in COCO's format with drawn images, so that every object is known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]
Drawn = Sequence[tuple[str, Box]]
"""Categories with (left, top, right, bottom) in pixels; a later rectangle covers earlier ones."""
SIZE = (120, 160)  # (h, w)
CATEGORIES = ("person", "dog", "cat", "car", "truck", "cup", "zebra", "kite", "bus", "clock")


def masks(drawn: Drawn, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    """The visible (h, w) bool mask of each rectangle."""
    ids = np.zeros(size, int)
    for number, (_, (left, top, right, bottom)) in enumerate(drawn, start=1):
        ids[top:bottom, left:right] = number
    return [ids == number for number in range(1, len(drawn) + 1)]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding."""
    edges = np.flatnonzero(np.diff(mask.flatten(order="F").astype(int), prepend=0, append=-1))
    return {"size": list(mask.shape), "counts": [int(n) for n in np.diff(edges, prepend=0)]}


def content(images: Sequence[Drawn], crowds: Sequence[tuple[int, str]] = ()) -> dict[str, Any]:
    """The instance file of images 1, 2, ...

    Args:
        crowds: positions in `images` with a category of which a corner of the image is a crowd.
    """
    ids = {name: number for number, name in enumerate(CATEGORIES, start=1)}
    entries = [
        {"image_id": number, "category_id": ids[name], "iscrowd": 0, "segmentation": runs(mask)}
        for number, drawn in enumerate(images, start=1)
        for (name, _), mask in zip(drawn, masks(drawn), strict=True)
    ]
    corner = np.zeros(SIZE, bool)
    corner[:9, :9] = True
    for position, name in crowds:
        entries.append({"image_id": position + 1, "category_id": ids[name], "iscrowd": 1, "segmentation": runs(corner)})
    return {
        "images": [
            {"id": number, "file_name": f"{number:012d}.png", "height": SIZE[0], "width": SIZE[1]}
            for number in range(1, len(images) + 1)
        ],
        "annotations": [{"id": key, **entry} for key, entry in enumerate(entries, start=1)],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
    }


def write(folder: Path, images: Sequence[Drawn], crowds: Sequence[tuple[int, str]] = ()) -> dict[str, Any]:
    """Writes the file and one image each, of random grey with coloured rectangles; returns the settings of `data`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, drawn in enumerate(images, start=1):
        pixels = rng.integers(90, 110, (*SIZE, 3), dtype=np.uint8)
        for (name, _), mask in zip(drawn, masks(drawn), strict=True):
            pixels[mask] = colour(name)
        Image.fromarray(pixels).save(folder / "images" / f"{number:012d}.png")
    (folder / "instances.json").write_text(json.dumps(content(images, crowds)))
    return {"name": "coco_expressions", "annotations": folder / "instances.json", "images": folder / "images"}


def colour(name: str) -> np.ndarray:
    """A saturated colour per category."""
    return np.random.default_rng(CATEGORIES.index(name)).permutation([255, 0, 20 * CATEGORIES.index(name)])


def scatter(count: int, rng: np.random.Generator, categories: Sequence[str] = CATEGORIES) -> list[tuple[str, Box]]:
    """Rectangles of a few categories at random places."""
    few = rng.choice(categories, min(3, len(categories)), replace=False)
    found = []
    for _ in range(count):
        width, height = (int(n) for n in rng.integers(12, 70, 2))
        left, top = int(rng.integers(0, SIZE[1] - width)), int(rng.integers(0, SIZE[0] - height))
        found.append((str(rng.choice(few)), (left, top, left + width, top + height)))
    return [one for one, mask in zip(found, masks(found), strict=True) if mask.any()]
