"""Cost and quality of SAM's superpixels, compared with their alternatives in one run.

    python -m benchmarks.superpixels

1. Candidate pool against segment-anything's `SamAutomaticMaskGenerator`, with the same weights and settings: seconds,
   and the agreement of their masks. The generator encodes the image. The pool uses the embedding that the mask decoder
   requires in any case, and is timed both without and with the encoding.
2. Filter against a plain loop over masks and pairs of masks: seconds, and whether both keep the same masks.
3. Mean best overlap of superpixels with the objects of test scenes, SAM's against SLIC's and Felzenszwalb's with the
   same number of superpixels: at the default granularity, about one superpixel per object, and at `adaptive`, more.

Timed rounds alternate between the methods, so that changes of the clock rate affect all of them; medians are printed.

    python -m benchmarks.superpixels --photos FOLDER

prints the quality of superpixels on photographs instead (`benchmarks.superpixel_quality`). FOLDER has `instances.json`
in COCO's format, and `images/`. The SAM is mobile-sam by default. Its candidates are cached, so that the command
continues where it was stopped.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco
from rich.console import Console
from segment_anything import SamAutomaticMaskGenerator

from benchmarks import superpixel_quality
from benchmarks.training import alternate, hardware
from harness import superpixels
from harness.cache.encodings import SamCache, frozen_sam
from harness.cache.superpixel_labels import SuperpixelCache, segment
from harness.data.example import Example
from harness.data.frame import Frame
from harness.data.scenes import DOMAINS, load
from harness.data.scenes import Config as ScenesConfig
from harness.evaluation.metrics import mean_best_overlap
from harness.model.mask_decoder.decoder import MaskDecoder
from harness.model.mask_decoder.sam import LoadedSam
from harness.monitoring.progress import LineProgress, progress_on
from harness.superpixels.candidates import Candidates, PoolSettings, encode, propose
from harness.superpixels.filter import FilterSettings, choose, on_grid, suppress_duplicates
from harness.superpixels.granularity import settings as granularity_settings
from harness.superpixels.methods.sam import Config
from harness.system.exit_code import exit_code


def compare_pool(sam: LoadedSam, examples: Sequence[Example], settings: PoolSettings, rounds: int) -> str:
    """Compares the pool with the generator: seconds per image and agreement of masks."""
    cache = SamCache(sam)
    mask_decoder = MaskDecoder(sam.sam.prompt_encoder, sam.sam.mask_decoder)
    upstream = SamAutomaticMaskGenerator(
        sam.sam,
        points_per_side=settings.points_per_side,
        pred_iou_thresh=settings.min_iou,
        stability_score_thresh=settings.min_stability,
        stability_score_offset=settings.stability_offset,
    )
    embeddings = {example.image_id: cache.encode([example])[0] for example in examples}

    def ours(example: Example) -> Candidates:
        frame = Frame.of(example.size, sam.frame)
        found = propose(mask_decoder, embeddings[example.image_id], frame, settings)
        return found.select(suppress_duplicates(found))

    def ours_with_encoding(example: Example) -> Candidates:
        embeddings[example.image_id] = cache.encode([example])[0]
        return ours(example)

    agreements = [_agreement(ours(example), upstream.generate(example.image)) for example in examples]
    overlaps = np.concatenate([overlap for _, _, overlap in agreements])
    num_ours, num_theirs = (sum(one[i] for one in agreements) for i in (0, 1))
    times = alternate(
        lambda: [ours(example) for example in examples],
        lambda: [upstream.generate(example.image) for example in examples],
        lambda: [ours_with_encoding(example) for example in examples],
        rounds=rounds,
    )
    pool, generator, pool_and_encoding = (statistics.median(seconds) / len(examples) for seconds in times)
    return "\n".join(
        [
            f"candidate pool against SamAutomaticMaskGenerator, {settings.points_per_side}^2 points, "
            f"predicted IoU > {settings.min_iou}, stability >= {settings.min_stability}",
            f"  generator            {generator:7.2f} s per image",
            f"  pool                 {pool:7.2f} s   ratio {generator / pool:.2f}x",
            f"  pool and encoding    {pool_and_encoding:7.2f} s   ratio {generator / pool_and_encoding:.2f}x",
            f"  {num_ours} masks against {num_theirs} on {len(examples)} images; IoU with the generator's masks: "
            f"minimum {overlaps.min(initial=1):.4f}, mean {overlaps.mean() if len(overlaps) else 1:.4f}",
        ]
    )


def _agreement(ours: Candidates, theirs: list[dict[str, Any]]) -> tuple[int, int, np.ndarray]:
    """Numbers of masks, and the IoU of each of the generator's masks with the most similar mask of the pool."""
    if not len(ours) or not theirs:
        return len(ours), len(theirs), np.zeros(len(theirs))
    masks = np.stack([one["segmentation"] for one in theirs])
    return len(ours), len(theirs), coco.iou(encode(masks), ours.rles, [False] * len(ours)).max(axis=1)


def ellipses(count: int, side: int, grid: int, seed: int) -> Candidates:
    """Random ellipses as candidates, with random levels and scores."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    centres, radii = rng.uniform(0, side, (2, count)), rng.uniform(side / 16, side / 3, (2, count))
    masks = [
        ((rows - centres[0, i]) / radii[0, i]) ** 2 + ((columns - centres[1, i]) / radii[1, i]) ** 2 < 1
        for i in range(count)
    ]
    return Candidates(
        encode(np.stack(masks)),
        rng.integers(0, grid, (count, 2)),
        rng.integers(0, 3, count),
        rng.uniform(0.6, 1, count).astype(np.float32),
        rng.uniform(0.8, 1, count).astype(np.float32),
    )


def filter_by_loop(
    candidates: Candidates, masks: np.ndarray, settings: FilterSettings, pool_points_per_side: int
) -> list[int]:
    """`filter.choose` as in FMA-WSSS, one mask and one pair of masks at a time; returns indices of kept masks."""
    levels, rank = candidates.levels, candidates.predicted_iou + (candidates.levels == 2)
    is_on_grid = on_grid(candidates.points, pool_points_per_side, settings.points_per_side)
    confident = []
    for i in range(len(candidates)):
        iou = candidates.predicted_iou[i] + (0.1 if levels[i] == 2 else 0.0)
        is_confident = iou > settings.min_iou and candidates.stability[i] >= settings.min_stability
        if is_confident and is_on_grid[i] and masks[i].sum() >= settings.min_area:
            confident.append(i)
    distinct: list[int] = []
    for i in sorted(confident, key=lambda i: -rank[i]):
        if all(_box_iou(masks[i], masks[k]) <= 0.7 for k in distinct):
            distinct.append(i)
    kept = [i for i in distinct if levels[i] == 2]
    for level in (1, 0):
        fits = []
        for i in (i for i in distinct if levels[i] == level):
            shares = [(masks[i] & masks[k]).sum() / masks[i].sum() for k in kept]
            if max(shares, default=0.0) < settings.max_overlap:
                fits.append(i)
        kept = kept + fits
    return kept


def _box_iou(first: np.ndarray, second: np.ndarray) -> float:
    boxes = []
    for mask in (first, second):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append((rows[0], rows[-1], columns[0], columns[-1]))
    (top, bottom, left, right), (other_top, other_bottom, other_left, other_right) = boxes
    height = max(0, min(bottom, other_bottom) - max(top, other_top))
    width = max(0, min(right, other_right) - max(left, other_left))
    areas = (bottom - top) * (right - left) + (other_bottom - other_top) * (other_right - other_left)
    return height * width / (areas - height * width)


def compare_filter(rounds: int, count: int = 300, side: int = 256) -> str:
    """Compares the filter with the loop: milliseconds, and whether they keep the same masks."""
    candidates, settings = ellipses(count, side, 16, 0), FilterSettings(16, 0.6, 0.8, 0.3, 100.0)
    masks = candidates.masks()
    fast, slow = alternate(
        lambda: choose(candidates, settings, 16), lambda: filter_by_loop(candidates, masks, settings, 16), rounds=rounds
    )
    kept = sorted(str(rle) for rle in choose(candidates, settings, 16).rles)
    by_loop = sorted(str(candidates.rles[i]) for i in filter_by_loop(candidates, masks, settings, 16))
    seconds = [statistics.median(times) for times in (slow, fast)]
    return "\n".join(
        [
            f"filter against a plain loop, {count} masks of {side} x {side}",
            f"  loop                 {1e3 * seconds[0]:7.1f} ms",
            f"  filter               {1e3 * seconds[1]:7.1f} ms   ratio {seconds[0] / seconds[1]:.0f}x",
            f"  the same {len(kept)} masks are kept: {kept == by_loop}",
        ]
    )


def compare_overlap(examples: Sequence[Example], model: str) -> str:
    """Mean best overlap by superpixel source, each with as many superpixels as SAM's."""
    lines = [f"mean best overlap with the objects of {len(examples)} test scenes"]
    for granularity in ("default", "adaptive"):
        settings = Config.model_validate({"model": model, "granularity": granularity})
        found = _overlaps("sam", settings, examples)
        rows, count = {f"sam, {granularity}": found}, round(float(np.mean(found[1])))
        for name in ("slic", "felzenszwalb"):
            rows[name] = _overlaps(name, superpixels.get(name).Config(count=count), examples)
        for name, (overlaps, counts) in rows.items():
            lines.append(
                f"  {name:20} {np.mean(overlaps):.3f}   {np.mean(counts):5.1f} superpixels per image "
                f"({min(counts)}-{max(counts)})"
            )
    return "\n".join(lines)


def _overlaps(name: str, config: Any, examples: Sequence[Example]) -> tuple[list[float], list[int]]:
    labels = [segment(name, config, example) for example in examples]
    overlaps = [mean_best_overlap(label_map, one.id_map()) for label_map, one in zip(labels, examples, strict=True)]
    return overlaps, [int(label_map.max()) + 1 for label_map in labels]


def compare_on_photographs(folder: Path, images: int, model: str) -> None:
    """Prints the quality of superpixels on the first photographs of a folder."""
    examples, progress = superpixel_quality.photographs(folder, images), LineProgress(Console(stderr=True))
    progress.name = model
    superpixel_quality.fill_candidates(examples, model, progress.note)
    print("\n".join(superpixel_quality.lines(examples, superpixel_quality.table(examples, model, progress.note))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the three comparisons and prints them; returns the exit code, 2 for an error of the user."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.superpixels", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="name of the SAM weights; default: sam-scenes, or mobile-sam with --photos")
    parser.add_argument(
        "--images", type=int, default=48, help="number of test scenes, or of photographs, in the comparison of overlaps"
    )
    parser.add_argument("--points", type=int, default=16, help="points per side in the comparison of candidate pools")
    parser.add_argument("--rounds", type=int, default=3, help="number of timed rounds")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="measure quality on these photographs instead")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    options.model = options.model or ("sam-scenes" if options.photos is None else "mobile-sam")
    print(f"{hardware()}; SAM {options.model!r}\n")
    if options.photos is not None:
        compare_on_photographs(options.photos, options.images, options.model)
        return 0
    examples = load(ScenesConfig.model_validate({"domains": [*DOMAINS], "test_images": options.images}), "test")[:]
    default = granularity_settings(options.model, "default")
    settings = PoolSettings(
        options.points, default["pred_iou_threshold"], default["stability_threshold"], default["stability_offset"]
    )
    print(compare_pool(frozen_sam(options.model), examples[:4], settings, options.rounds))
    print(compare_filter(options.rounds))
    progress = progress_on(Console())
    pool = SuperpixelCache("sam", Config.model_validate({"model": options.model}), examples[0].size[0]).pool
    assert pool is not None, "SAM's superpixels are chosen from candidates"
    pool.ensure(examples, lambda done, total: progress.note(f"candidates {done}/{total}"))
    print(compare_overlap(examples, options.model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
