"""ReasonSeg: sentences that require reasoning, with polygons of targets and of ignored regions.

Each image `x.jpg` has an annotation `x.json`: {shapes: [{label, points}], text: [...], is_sentence}. Shapes are
rendered from the largest to the smallest, so that a small one lies on top of a large one; those labelled `flag` are
skipped.

Source: LISA, https://arxiv.org/abs/2308.00692; dvlab-research/LISA@3cb2d43, `get_mask_from_json`, rendered with OpenCV
as in LISA.
Differs from LISA: every sentence of an image is scored, not only the first; sentences are converted to lower case and
put into the study's template, whereas LISA uses a whole sentence unchanged; `load` skips the two released test
annotations without the field `shapes`, on which LISA fails.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from harness.data.example import Example, Expression, ImageFile, encode
from harness.data.formats.checking import Finding
from harness.data.formats.reading import MALFORMED, as_sentence, read_json, what_is_wrong
from harness.errors import DataError, suggest

PUBLISHED = {"train": 239, "val": 200, "test": 779}
"""Number of images of each split."""
SOURCE = "download ReasonSeg by the links in https://github.com/dvlab-research/LISA"
_TARGET, _IGNORED = 1, 255


class Config(BaseModel):
    """Path of ReasonSeg."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Literal["reasonseg"] = "reasonseg"
    root: Path = Field(description="folder that contains ReasonSeg/train, val and test")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; training uses the first."""
        return tuple(PUBLISHED)

    @property
    def families(self) -> tuple[str, ...]:
        """Families of the expressions."""
        return ("short", "long")


def load(config: Config, split: str) -> Sequence[Example]:
    """The examples of a split, by file name; a family is `long` for a sentence and `short` for a phrase.

    An annotation without the field `shapes` is skipped; one with an empty list has no target.

    Raises:
        DataError: a file is missing or malformed, or the split does not exist.
    """
    annotations = {path: _read(path) for path in _paths(config, split)}
    return [_example(path, one, split) for path, one in annotations.items() if "shapes" in one]


def _paths(config: Config, split: str) -> list[Path]:
    if split not in config.splits:
        raise DataError(f"reasonseg has no split {split!r}; {suggest(split, config.splits)}")
    folder = config.root / "ReasonSeg" / split
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise DataError(f"{folder} contains no annotations; {SOURCE}")
    return paths


def check(root: Path) -> Iterator[Finding]:
    """Compares the files under `root` with the published counts."""
    config = Config(root=root)
    for split, published in PUBLISHED.items():
        try:
            count, found = len(_paths(config, split)), load(config, split)
        except DataError as error:
            yield Finding(f"reasonseg {split}", False, str(error))
            continue
        text = f"{count} images, {sum(len(one.expressions) for one in found)} sentences"
        if len(found) < count:
            text += f", {count - len(found)} images without `shapes` skipped"
        is_right = count == published
        yield Finding(
            f"reasonseg {split}",
            is_right,
            f"{text}, images as published" if is_right else f"{text}; published are {published} images; {SOURCE}",
        )


def _example(path: Path, annotation: Mapping[str, Any], split: str) -> Example:
    picture = ImageFile.of(path.with_suffix(".jpg"))
    try:
        values = _render(annotation["shapes"], picture.height, picture.width)
        texts, is_sentence = annotation["text"], annotation["is_sentence"]
        if not (isinstance(texts, list) and texts and isinstance(is_sentence, bool)):
            raise TypeError(f"text is {texts!r:.60} and is_sentence {is_sentence!r:.60}")
        family, sentences = "long" if is_sentence else "short", [as_sentence(text) for text in texts]
    except MALFORMED as error:
        raise DataError(
            f"{path} is no annotation of ReasonSeg ({what_is_wrong(error)}); it must have shapes with label and "
            "points, text (a list) and is_sentence (true or false)"
        ) from None
    has_target = bool((values == _TARGET).any())
    return Example(
        image_id=f"reasonseg/{split}/{path.stem}",
        picture=picture,
        objects=(encode(values == _TARGET),) if has_target else (),
        expressions=tuple(Expression(text, family, (1,) if has_target else ()) for text in sentences),
        ignored=encode(values == _IGNORED) if (values == _IGNORED).any() else None,
        lists_all_objects=False,
    )


def _read(path: Path) -> Mapping[str, Any]:
    found = read_json(path, fallback="cp1252")
    if not isinstance(found, dict):
        raise DataError(
            f"{path} contains a {type(found).__name__} instead of an annotation of ReasonSeg; download it again"
        )
    return found


def _render(shapes: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """(h, w) uint8: 0, `_TARGET` or `_IGNORED`."""
    rendered = [
        (_IGNORED if "ignore" in shape["label"].lower() else _TARGET, _polygon(shape["points"], height, width))
        for shape in shapes
        if shape["label"].lower() != "flag"
    ]
    values = np.zeros((height, width), np.uint8)
    # The order of the release: descending by area, equal areas in reverse.
    order = np.argsort([int(mask.sum()) for _, mask in rendered])[::-1]
    for index in order:
        value, mask = rendered[index]
        values[mask] = value
    return values


def _polygon(points: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """(h, w) bool, the outline included."""
    placed = np.array(points, np.float64)
    if placed.ndim != 2 or placed.shape[1] != 2 or not (np.abs(placed) <= np.iinfo(np.int32).max).all():
        raise ValueError(f"points are {points!r:.60}; they must be pairs of numbers")
    corners = [placed.astype(np.int32)]
    mask = np.zeros((height, width), np.uint8)
    cv2.polylines(mask, corners, True, 1, 1)
    cv2.fillPoly(mask, corners, 1)
    return mask > 0
