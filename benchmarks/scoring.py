"""Speed-up of scoring over segment-anything's own decoder and a plain loop, with a check that results agree.

    python -m benchmarks.scoring

1. A cell of the embedded preset (`mllm-scenes`) scores test images: masks by `harness.model.mask_decoder` against
   segment-anything's `MaskDecoder.forward` called once per image, and pixel counts of each mask against sums.
2. The inputs of a batch of image files: keys of the caches that are kept against keys from pixels each time.

Time is processor time of one thread. Rounds alternate between the methods; medians are printed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from benchmarks.training import hardware
from harness.assembly.assembly import load_examples, prepare
from harness.assembly.batches import BatchMaker
from harness.assembly.checkpoint import Trained, load
from harness.cache import reading
from harness.data.example import Example, ImageFile, encode
from harness.data.overlap import iou
from harness.evaluation.evaluator import Evaluator, Prediction
from harness.model.mask_decoder.decoder import ImageEmbedding
from harness.model.mask_decoder.point_prompted import PointPromptedMaskDecoder
from harness.model.weights.known import SHIPPED
from harness.system.precision import resolve_precision

WARM_UP = 1
CPU = torch.device("cpu")
PHOTOGRAPH = (640, 480)
"""Width and height in pixels of the image files, typical of COCO."""


class UpstreamMaskDecoder(PointPromptedMaskDecoder):
    """Predicts masks with segment-anything's own forward pass, one image at a time."""

    def best_at_points(self, embedding: ImageEmbedding, points: Tensor, image: Tensor) -> Tensor:
        """As in `MaskDecoder`."""
        labels = torch.ones(len(points), 1, dtype=torch.int)
        sparse, dense = self.prompt_encoder(points=(points.unsqueeze(1), labels), boxes=None, masks=None)
        best = []
        for index, coarse in enumerate(embedding.coarse):
            masks, predicted_iou = self.sam_decoder(
                image_embeddings=coarse.unsqueeze(0),
                image_pe=self.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse[image == index],
                dense_prompt_embeddings=dense[:1],
                multimask_output=True,
            )
            best.append(masks[torch.arange(len(masks)), predicted_iou.argmax(1)])
        return torch.cat(best)  # the points are in the order of their images


def rows_by_loop(example: Example, prediction: Prediction) -> Iterator[dict[str, Any]]:
    """The numbers of `harness.evaluation.evaluator.sample_rows` by sums over pixels, for each mask and each mode."""
    valid_mask = example.valid_mask()
    for number, expression in enumerate(example.expressions):
        target, forced = example.mask(expression), prediction.masks[number]
        mask = forced & prediction.predicted_seg[number]
        kept, own = mask & valid_mask, target & valid_mask
        forced_intersection, forced_union = (forced & own).sum(), ((forced & valid_mask) | own).sum()
        yield {
            "iou": float(iou((kept & own).sum(), (kept | own).sum())),
            "iou_teacher_forced": float(iou(forced_intersection, forced_union)),
            "intersection": int((kept & own).sum()),
            "union": int((kept | own).sum()),
            "predicted_area": int(kept.sum()),
            "target_area": int(own.sum()),
            "predicted_seg": bool(prediction.predicted_seg[number]),
            "intersection_teacher_forced": int(forced_intersection),
            "predicted_area_teacher_forced": int((forced & valid_mask).sum()),
            "prediction_rle": encode(mask)["counts"].decode(),
            "target_rle": encode(target)["counts"].decode(),
        }


def score_by_loop(evaluator: Evaluator, examples: Sequence[Example]) -> pd.DataFrame:
    """The samples of these images without `Evaluator.score`."""
    predictions = evaluator.predict(examples, [example.expressions for example in examples])
    pairs = zip(examples, predictions, strict=True)
    return pd.DataFrame([row for example, prediction in pairs for row in rows_by_loop(example, prediction)])


def alternate(methods: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of processor time of each method, in the order A B A B ..., warm-up excluded."""
    times: list[list[float]] = [[] for _ in methods]
    for number in range(WARM_UP + rounds):
        for run, seconds in zip(methods, times, strict=True):
            started = time.process_time()
            run()
            if number >= WARM_UP:
                seconds.append(time.process_time() - started)
    return [statistics.median(seconds) for seconds in times]


def compare_scoring(trained: Trained, examples: Sequence[Example], rounds: int) -> str:
    """Comparison 1 of the module docstring."""
    batches, segmenter = trained.assembly.batches, trained.assembly.segmenter
    ours = segmenter.mask_decoder
    upstream = UpstreamMaskDecoder(ours.prompt_encoder, ours.sam_decoder).eval()
    evaluator = Evaluator(segmenter, batches, trained.spec.evaluation.batch_images, trained.spec.training.precision)

    def score() -> pd.DataFrame:
        segmenter.mask_decoder = ours
        return evaluator.score(examples)[0]

    def score_upstream() -> pd.DataFrame:
        segmenter.mask_decoder = upstream
        return score_by_loop(evaluator, examples)

    found, expected = score(), score_upstream()
    slow, fast = alternate((score_upstream, score), rounds)
    segmenter.mask_decoder = ours
    precision = resolve_precision(trained.spec.training.precision, CPU)
    lines = [
        f"scoring {len(examples)} images, {len(found)} expressions, precision {precision}",
        f"  segment-anything and loop  {1e3 * slow / len(examples):7.1f} ms per image",
        f"  harness                    {1e3 * fast / len(examples):7.1f} ms per image   ratio {slow / fast:.2f}x",
        f"  {agreement(found, expected)}",
    ]
    return "\n".join(lines)


def agreement(found: pd.DataFrame, expected: pd.DataFrame) -> str:
    """Differences of two tables of samples of the same expressions."""
    sizes = [[int(row.height), int(row.width)] for row in found.itertuples()]
    pairs = zip(found.prediction_rle, expected.prediction_rle, sizes, strict=True)
    differing, total = 0, 0
    for one, other, size in pairs:
        masks = coco.decode([{"size": size, "counts": counts.encode()} for counts in (one, other)])
        differing += int((masks[..., 0] != masks[..., 1]).sum())
        total += size[0] * size[1]
    is_equal = (found.prediction_rle == expected.prediction_rle).mean()
    return (
        f"equal masks {is_equal:.1%}; pixels that differ {differing / total:.1e}; "
        f"gIoU {found.iou.mean():.5f} and {expected.iou.mean():.5f}, "
        f"largest difference of an IoU {(found.iou - expected.iou).abs().max():.1e}; "
        f"targets equal: {(found.target_rle == expected.target_rle).all()}"
    )


def as_files(examples: Sequence[Example], folder: Path) -> list[Example]:
    """The images as JPEG files of a photograph's size, without their masks."""
    files = []
    for number, example in enumerate(examples):
        path = folder / f"{number}.jpg"
        Image.fromarray(example.image).resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(path, quality=95)
        files.append(replace(example, picture=ImageFile(path, *PHOTOGRAPH[::-1]), objects=()))
    return files


def compare_inputs(batches: BatchMaker, examples: Sequence[Example], rounds: int) -> str:
    """Comparison 2 of the module docstring."""

    def load_inputs() -> list[Tensor]:
        return [batches.features(examples).patches, batches.mask_inputs(examples)]

    def load_without_keys() -> list[Tensor]:
        found = []
        for source in (lambda: batches.features(examples).patches, lambda: batches.mask_inputs(examples)):
            reading._file_key.cache_clear()  # so that the next cache decodes the files again
            found.append(source())
        return found

    are_equal = all(map(torch.equal, load_inputs(), load_without_keys()))
    slow, fast = alternate((load_without_keys, load_inputs), rounds)
    size = f"{PHOTOGRAPH[0]} x {PHOTOGRAPH[1]}"
    lines = [
        f"inputs of {len(examples)} JPEG files of {size} pixels: patches and SAM's embedding",
        f"  keys from pixels each time {1e3 * slow / len(examples):7.1f} ms per image",
        f"  kept keys                  {1e3 * fast / len(examples):7.1f} ms per image   ratio {slow / fast:.2f}x",
        f"  inputs equal: {are_equal}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparisons and prints them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=16, help="number of test images")
    parser.add_argument("--rounds", type=int, default=5, help="number of timed rounds")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(hardware())
    for precision in ("auto", "float32"):
        trained = load(SHIPPED["mllm-scenes"].path, CPU, precision)
        testing = load_examples(trained.spec, "test")
        examples = [testing[i] for i in range(options.images)]
        prepare(trained.assembly.batches, examples, lambda _: None)
        print(f"\n{compare_scoring(trained, examples, options.rounds)}")
    with tempfile.TemporaryDirectory() as folder:
        files = as_files(examples[:8], Path(folder))
        prepare(trained.assembly.batches, files, lambda _: None)
        print(f"\n{compare_inputs(trained.assembly.batches, files, options.rounds)}")


if __name__ == "__main__":
    main()
