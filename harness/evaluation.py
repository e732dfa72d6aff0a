"""Scores a trained segmenter: every expression of a split, one row each, with the control that must fail.

Two readings of one run: *generated*, where the mask counts only if the model's own next word is [SEG] (else the mask is
empty), and *teacher forced*, where [SEG] is given, as LISA and its descendants score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from harness.backbone.llm import SEG
from harness.backbone.segmenter import Segmenter
from harness.batches import BatchMaker
from harness.data.example import Example, Expression, encode
from harness.frame import Frame
from harness.metrics import count, iou
from harness.training import autocast


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one image.

    Args:
        masks: (E, h, w) bool at the image's own size, as if [SEG] had been given.
        answered: (E,) bool, whether the model itself says [SEG].
        tokens: visual tokens read.
    """

    masks: np.ndarray
    answered: np.ndarray
    tokens: int


class Evaluator:
    """Runs a segmenter over examples.

    Args:
        segmenter: put into evaluation mode.
        batches: turns examples into tensors on the segmenter's device.
        batch_images: images at a time.
        precision: as in training.
    """

    def __init__(self, segmenter: Segmenter, batches: BatchMaker, batch_images: int, precision: str) -> None:
        self.segmenter = segmenter.eval()
        self.batches = batches
        self.batch_images = batch_images
        self.precision = precision

    @torch.inference_mode()
    def predict(self, examples: Sequence[Example], texts: Sequence[Sequence[str]]) -> Iterator[Prediction]:
        """One prediction an image for these texts, all expressions of an image packed into one sequence."""
        for start in range(0, len(examples), self.batch_images):
            chunk = [examples[i] for i in range(start, min(start + self.batch_images, len(examples)))]
            asked = texts[start : start + self.batch_images]
            frames = [Frame.of(example.size, self.batches.vision.frame) for example in chunk]
            query = self.batches.query(asked)
            with autocast(self.precision, self.batches.device):
                features = self.batches.features(chunk, frames)
                answer = self.segmenter(features, self.batches.view(chunk, frames), query)
            sizes = [len(row) for row in asked]
            says_seg = answer.answer_logits.argmax(-1) == SEG + self.segmenter.llm.vocabulary
            tokens = answer.tokens.mask.sum(1).tolist()
            masks = answer.mask_logits.split(sizes)
            drawn = [Frame.of(example.size, self.batches.mask_frame) for example in chunk]
            for frame, logits, answered, num_tokens in zip(drawn, masks, says_seg.split(sizes), tokens, strict=True):
                yield Prediction((frame.restore(logits) > 0).cpu().numpy(), answered.cpu().numpy(), num_tokens)

    def score(self, examples: Sequence[Example]) -> tuple[pd.DataFrame, list[int]]:
        """A row an expression (columns: see `harness.records`), and the visual tokens of each image."""
        rows: list[dict[str, Any]] = []
        tokens = []
        texts = [[expression.text for expression in example.expressions] for example in examples]
        for example, prediction in zip(examples, self.predict(examples, texts), strict=True):
            tokens.append(prediction.tokens)
            rows.extend(sample_rows(example, prediction))
        return pd.DataFrame(rows), tokens

    def shuffled_giou(self, examples: Sequence[Example]) -> float:
        """gIoU when each image is asked the next image's expressions: what is left when the words do not matter."""
        others = [examples[(i + 1) % len(examples)] for i in range(len(examples))]
        pairs = [list(zip(e.expressions, o.expressions, strict=False)) for e, o in zip(examples, others, strict=True)]
        texts = [[foreign.text for _, foreign in pair] for pair in pairs]
        scores = []
        for example, pair, prediction in zip(examples, pairs, self.predict(examples, texts), strict=True):
            masks = prediction.masks & prediction.answered[:, None, None]
            for (own, _), mask in zip(pair, masks, strict=True):
                scores.append(_overlap(mask & example.judged(), example.mask(own) & example.judged()))
        return float(np.mean(scores))


def sample_rows(example: Example, prediction: Prediction) -> Iterator[dict[str, Any]]:
    """Counts and masks of each expression of one image, in the columns of `harness.records.SAMPLE_COLUMNS`."""
    (height, width), judged = example.size, example.judged()
    for number, expression in enumerate(example.expressions):
        target = example.mask(expression)
        forced = prediction.masks[number]
        mask = forced & prediction.answered[number]
        forced_pixels = count(forced & judged, target & judged)
        yield {
            "image_id": example.image_id,
            "expression_id": number,
            "text": expression.text,
            "family": expression.family,
            "domain": example.domain,
            "iou": _overlap(mask & judged, target & judged),
            "iou_teacher_forced": float(iou(forced_pixels["intersection"], forced_pixels["union"])),
            **{name: int(pixels) for name, pixels in count(mask & judged, target & judged).items()},
            "answered": bool(prediction.answered[number]),
            "intersection_teacher_forced": int(forced_pixels["intersection"]),
            "predicted_area_teacher_forced": int(forced_pixels["predicted_area"]),
            **_facts(example, expression),
            "height": height,
            "width": width,
            "prediction_rle": encode(mask)["counts"].decode(),
            "target_rle": encode(target)["counts"].decode(),
        }


def _overlap(prediction: np.ndarray, target: np.ndarray) -> float:
    """IoU of two (h, w) bool masks."""
    pixels = count(prediction, target)
    return float(iou(pixels["intersection"], pixels["union"]))


def _facts(example: Example, expression: Expression) -> dict[str, float | None]:
    """The most elongated and the most hidden of the targets; None where nothing is known or meant."""
    facts = [example.attributes[k - 1] for k in expression.targets] if example.attributes else []
    return {
        "elongation": max((fact.elongation for fact in facts), default=None),
        "occlusion": max((fact.occlusion for fact in facts), default=None),
    }
