"""Quality of superpixels on photographs with instance masks: SAM's at every granularity, and their alternatives.

`python -m benchmarks.superpixels --photos FOLDER` prints the table. Measures, at the resolution of the photographs:

Best superpixel
: Mean over objects of the highest IoU that one superpixel has with the object (mean best overlap).

Best union
: Mean over objects of the highest IoU that a union of superpixels has with the object.

Accuracy
: Achievable segmentation accuracy: share of the pixels that are right if each superpixel belongs to the object, or the
  background, that covers most of it (Liu et al. 2011, https://doi.org/10.1109/CVPR.2011.5995323).

Shared
: Share of the objects whose best superpixel is also the best superpixel of another object.

Boundary recall
: Share of the boundary pixels of objects that are at most `TOLERANCE` of the image's diagonal away from a boundary of
  superpixels (Martin et al. 2004, https://doi.org/10.1109/TPAMI.2004.1273918).

SAM's gain
: SAM's best superpixel minus that of another method with as many superpixels, with its 95% interval over photographs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt
from scipy.stats import bootstrap
from skimage.segmentation import find_boundaries

from harness import superpixels
from harness.cache.encodings import SamCache, frozen_sam
from harness.cache.mask_candidates import CandidateCache
from harness.cache.superpixel_labels import segment
from harness.data.datasets.coco_expressions import SPLITS, Config, load
from harness.data.example import Example, union
from harness.data.overlap import iou
from harness.superpixels.best_unions import best_superpixels, best_unions, pixels_of
from harness.superpixels.granularity import NAMES
from harness.superpixels.methods.sam import Config as SamConfig
from harness.system.time_left import counted

TOLERANCE = 0.0075
"""Of the image's diagonal, as in the Berkeley benchmark."""
MIN_AREA = 0.005
"""Smallest object that is compared, as a share of the image."""
ALTERNATIVES = ("felzenszwalb", "slic", "grid")


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a photograph that are compared.

    Attributes:
        masks: (h, w) bool each.
        ids: (h, w) int, 0 for the background; where objects overlap, the smaller one is on top.
        boundary: (h, w) bool, the boundary pixels of objects.
    """

    masks: list[np.ndarray]
    ids: np.ndarray
    boundary: np.ndarray


def photographs(folder: Path, count: int) -> list[Example]:
    """The first photographs with an object, those of the test split first.

    Args:
        folder: with `instances.json` and `images/`.
    """
    config = Config(annotations=folder / "instances.json", images=folder / "images")
    found = (example for split in reversed(SPLITS) for example in load(config, split))
    return list(islice((example for example in found if objects_of(example).masks), count))


def objects_of(example: Example) -> Objects:
    """The objects of at least `MIN_AREA`."""
    masks = [union([one], example.size) for one in example.objects]
    masks = sorted((mask for mask in masks if mask.mean() >= MIN_AREA), key=lambda mask: -mask.sum())
    ids = np.zeros(example.size, int)
    for number, mask in enumerate(masks, start=1):
        ids[mask] = number
    return Objects(masks, ids, find_boundaries(ids, mode="inner"))


def quality(labels: np.ndarray, objects: Objects) -> dict[str, Any]:
    """The measures of one photograph; those of objects are lists with a value for each.

    Args:
        labels: (h, w) superpixels, ids 0..S-1.
    """
    everywhere = np.ones(labels.shape, bool)
    inside, areas = pixels_of(labels, everywhere, objects.masks)
    best = best_superpixels(inside, areas)
    sizes = inside.sum(axis=1)
    of_best = inside[np.arange(len(best)), best]
    chosen = best_unions(inside, areas)
    of_union, drawn = (inside * chosen).sum(axis=1), chosen @ areas
    joint, _ = pixels_of(labels, everywhere, [objects.ids == number for number in range(len(objects.masks) + 1)])
    boundary = find_boundaries(labels + 1, mode="inner")
    to_superpixels = distance_transform_edt(~boundary) if boundary.any() else np.full(labels.shape, np.inf)
    is_near = to_superpixels[objects.boundary] <= TOLERANCE * np.hypot(*labels.shape)
    return {
        "best superpixel": iou(of_best, sizes + areas[best] - of_best).tolist(),
        "best union": iou(of_union, sizes + drawn - of_union).tolist(),
        "shared": [bool((best == one).sum() > 1) for one in best],
        "accuracy": float(joint.max(axis=0).sum() / labels.size),
        "boundary recall": float(is_near.mean()) if is_near.size else np.nan,
        "superpixels": len(areas),
    }


def table(examples: Sequence[Example], model: str, note: Callable[[str], None]) -> pd.DataFrame:
    """One row per method: the measures, and seconds per image without the time of SAM's candidates.

    Args:
        model: weights of the SAM; its candidates are cached.
        note: called with progress messages.
    """
    objects = [objects_of(example) for example in examples]
    rows = []
    for granularity in NAMES:
        config = SamConfig.model_validate({"model": model, "granularity": granularity})
        of_sam, seconds = _measured(f"sam, {granularity}", "sam", config, examples, objects, note)
        rows.append({"method": f"sam, {granularity}", **_means(of_sam), "SAM's gain": "", "s per image": seconds})
        count = round(rows[-1]["superpixels"])
        for name in ALTERNATIVES:
            alternative = superpixels.get(name).Config(count=_matched(name, count))
            title = f"{name}, {count}"
            found, seconds = _measured(title, name, alternative, examples, objects, note)
            gain = gain_of_sam(*([one["best superpixel"] for one in each] for each in (of_sam, found)))
            rows.append({"method": title, **_means(found), "SAM's gain": gain, "s per image": seconds})
    return pd.DataFrame(rows)


def gain_of_sam(of_sam: Sequence[Sequence[float]], of_other: Sequence[Sequence[float]]) -> str:
    """The difference of the means over objects, with its 95% interval if there are several photographs.

    Args:
        of_sam, of_other: the objects' values, by photograph.
    """
    gains = np.array([np.sum(ours) - np.sum(theirs) for ours, theirs in zip(of_sam, of_other, strict=True)])
    numbers = np.array([len(ours) for ours in of_sam])
    gain = f"{gains.sum() / numbers.sum():+.3f}"
    if len(gains) < 2:
        return gain
    low, high = bootstrap(
        (gains, numbers),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        method="percentile",
        rng=0,
    ).confidence_interval
    return f"{gain} [{low:+.3f}, {high:+.3f}]"


def _matched(name: str, count: int) -> int:
    """The setting of a method that has about as many superpixels: a grid has a square number of them."""
    return round(count**0.5) ** 2 if name == "grid" else count


def _measured(
    title: str,
    name: str,
    config: Any,
    examples: Sequence[Example],
    objects: Sequence[Objects],
    note: Callable[[str], None],
) -> tuple[list[dict[str, Any]], float]:
    """The measures of each photograph, and seconds per image."""
    found, seconds = [], 0.0
    for number, (example, own) in enumerate(zip(examples, objects, strict=True), start=1):
        note(f"{title}: {number}/{len(examples)}")
        started = time.process_time()
        labels = segment(name, config, example)
        seconds += time.process_time() - started
        found.append(quality(labels, own))
    return found, seconds / len(examples)


def _means(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts = [one["superpixels"] for one in found]
    return {
        "superpixels": float(np.mean(counts)),
        "range": f"{min(counts)}-{max(counts)}",
        **{key: float(np.mean([value for one in found for value in one[key]])) for key in _OF_OBJECTS},
        **{key: float(np.nanmean([one[key] for one in found])) for key in ("accuracy", "boundary recall")},
    }


_OF_OBJECTS = ("best superpixel", "best union", "shared")


def fill_candidates(examples: Sequence[Example], model: str, note: Callable[[str], None]) -> None:
    """Computes the missing candidates of all images, with the time that is left."""
    request = superpixels.get("sam").request(SamConfig.model_validate({"model": model}))
    assert request is not None
    CandidateCache(SamCache(frozen_sam(request.model)), request.settings).ensure(examples, counted("candidates", note))


def lines(examples: Sequence[Example], found: pd.DataFrame) -> Iterator[str]:
    """The printed table, with what it was measured on."""
    num_objects = sum(len(objects_of(example).masks) for example in examples)
    yield (
        f"superpixels of {len(examples)} photographs with {num_objects} objects of at least {100 * MIN_AREA:g}% of the "
        "image; seconds of processor time, without SAM's candidates"
    )
    yield found.to_markdown(index=False, floatfmt=("", ".1f", "", *[".3f"] * 5, "", ".2f"))
