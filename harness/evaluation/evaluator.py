"""Scores a trained segmenter: one row per expression or question of a split, and the controls.

An expression is scored in two modes in one run. *Generated*: the mask is empty unless the most likely next token is
[SEG]. *Teacher-forced*: [SEG] is inserted, as in the evaluation of LISA and models based on it. Answers to questions
are generated greedily.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from harness.assembly.batches import BatchMaker
from harness.data.example import Example, Expression, Question, TextQuery, encode
from harness.data.frame import Frame
from harness.data.overlap import iou
from harness.evaluation.metrics import count
from harness.evaluation.text_metrics import score as score_answers
from harness.model.llm.language_model import SEG
from harness.model.segmenter import Answer, Query, Segmenter
from harness.results.columns import SAMPLE_COLUMNS
from harness.results.metrics import shuffled
from harness.system.precision import autocast


@dataclass(frozen=True, slots=True)
class Prediction:
    """The output of the model for one image.

    Args:
        masks: (E, h, w) bool at the size of the image, the teacher-forced mask of each expression.
        predicted_seg: (E,) bool, whether the model generates [SEG].
        tokens: number of visual tokens.
        generated_text: the answer to each question.
    """

    masks: np.ndarray
    predicted_seg: np.ndarray
    tokens: int
    generated_text: tuple[str, ...] = ()


MEASURED = [column for column in SAMPLE_COLUMNS if column not in ("cell", "arm", "seed", "split")]


class Evaluator:
    """Runs a segmenter over examples.

    Args:
        segmenter: put into evaluation mode.
        batches: turns examples into tensors on the segmenter's device.
        batch_images: number of images per batch.
        precision: as in training.
    """

    def __init__(self, segmenter: Segmenter, batches: BatchMaker, batch_images: int, precision: str) -> None:
        self.segmenter = segmenter.eval()
        self.batches = batches
        self.batch_images = batch_images
        self.precision = precision

    @torch.inference_mode()
    def predict(
        self,
        examples: Sequence[Example],
        queries: Sequence[Sequence[TextQuery]],
        token_sources: Sequence[Example] | None = None,
    ) -> Iterator[Prediction]:
        """Yield one prediction per image; all queries of an image are packed into one sequence.

        Args:
            examples: the images.
            queries: the expressions and questions of each image, expressions first.
            token_sources: images that provide the visual tokens instead of `examples`; None for their own.
        """
        llm = self.segmenter.llm
        for start in range(0, len(examples), self.batch_images):
            stop = min(start + self.batch_images, len(examples))
            chunk = [examples[i] for i in range(start, stop)]
            chosen = queries[start:stop]
            query = self.batches.query(chosen)
            with autocast(self.precision, self.batches.device):
                features = self.batches.features(chunk)
                others = None if token_sources is None else [token_sources[i] for i in range(start, stop)]
                tokens = self.segmenter.projector(features if others is None else self.batches.features(others))
                mask_inputs = self.batches.mask_inputs(chunk)
                answer = self.segmenter.answer(tokens, features.patches, mask_inputs, query)
                words = self._generate(answer, query)
            num_masks = query.is_expression.sum(1).tolist()
            predicts_seg = (
                answer.answer_logits[query.is_expression[query.is_valid]].argmax(-1) == SEG + llm.vocabulary_size
            )
            frames = [Frame.of(example.size, self.batches.mask_frame) for example in chunk]
            for frame, logits, predicted_seg, num_tokens, row in zip(
                frames,
                answer.mask_logits.split(num_masks),
                predicts_seg.split(num_masks),
                answer.tokens.mask.sum(1).tolist(),
                chosen,
                strict=True,
            ):
                generated_text = tuple(next(words) for one in row if isinstance(one, Question))
                masks = (frame.restore(logits) > 0).cpu().numpy()
                yield Prediction(masks, predicted_seg.cpu().numpy(), num_tokens, generated_text)

    def _generate(self, answer: Answer, query: Query) -> Iterator[str]:
        """The answers to the questions of a batch, in order."""
        questions = query.questions()
        ids = self.segmenter.generate(answer.tokens, questions).tolist() if questions.is_valid.any() else []
        return iter([self.segmenter.llm.decode(row) for row in ids])

    def score(self, examples: Sequence[Example]) -> tuple[pd.DataFrame, list[int]]:
        """One row per expression or question (columns: `SAMPLE_COLUMNS`), and the visual tokens of each image."""
        rows: list[dict[str, Any]] = []
        tokens = []
        queries = [example.queries for example in examples]
        for example, prediction in zip(examples, self.predict(examples, queries), strict=True):
            tokens.append(prediction.tokens)
            rows.extend(sample_rows(example, prediction))
        questions = [question for example in examples for question in example.questions]
        question_rows = [row for row in rows if "generated_text" in row]
        for row, value in zip(
            question_rows, score_answers([row["generated_text"] for row in question_rows], questions), strict=True
        ):
            row["score"] = value
        return pd.DataFrame(rows, columns=MEASURED), tokens

    def controls(self, examples: Sequence[Example]) -> dict[str, float]:
        """Scores with mismatched inputs, by column; they show which part of a score does not come from these inputs.

        - `*_shuffled`: each image is paired with the queries of the next one. Masks are compared with the targets of
          the image's own expressions, answers with the references of the question.
        - `giou_swapped_tokens`: the LLM receives the visual tokens of the next image. The expression and the input of
          the mask decoder stay the same, so the remaining score does not come from visual tokens.

        With a single image there is no next one, and the result is empty.
        """
        if len(examples) < 2:
            return {}
        others = [examples[(i + 1) % len(examples)] for i in range(len(examples))]
        queries: list[list[TextQuery]] = [
            [*other.expressions[: len(example.expressions)], *other.questions]
            for example, other in zip(examples, others, strict=True)
        ]
        mismatched = list(self.predict(examples, queries))
        questions = [question for other in others for question in other.questions]
        scores = pd.Series(
            score_answers([generated_text for one in mismatched for generated_text in one.generated_text], questions),
            dtype=float,
        )
        by_scoring = scores.groupby([question.scoring for question in questions]).mean()
        found = {shuffled(str(scoring)): float(value) for scoring, value in by_scoring.items()}
        if any(example.expressions for example in examples):
            found[shuffled("giou")] = _giou(examples, mismatched)
            expressions = [example.expressions for example in examples]
            found["giou_swapped_tokens"] = _giou(examples, self.predict(examples, expressions, token_sources=others))
        return found


def _giou(examples: Sequence[Example], predictions: Iterable[Prediction]) -> float:
    """Mean IoU of the masks with the targets of each image's own expressions."""
    overlaps = []
    for example, prediction in zip(examples, predictions, strict=True):
        masks, valid_mask = prediction.masks & prediction.predicted_seg[:, None, None], example.valid_mask()
        for own, mask in zip(example.expressions, masks, strict=False):
            overlaps.append(_overlap(mask & valid_mask, example.mask(own) & valid_mask))
    return float(np.mean(overlaps))


def sample_rows(example: Example, prediction: Prediction) -> Iterator[dict[str, Any]]:
    """The rows of one image, with the columns of `harness.results.columns.SAMPLE_COLUMNS`."""
    # Run lengths go down the columns: in column order, masks are encoded without a copy.
    (height, width), valid_mask = example.size, np.asfortranarray(example.valid_mask())
    for number, expression in enumerate(example.expressions):
        target, forced = map(np.asfortranarray, (example.mask(expression), prediction.masks[number]))
        is_seg = bool(prediction.predicted_seg[number])
        pixels = _count(forced & valid_mask, target & valid_mask)
        generated = pixels if is_seg else _of_empty_prediction(pixels)
        yield {
            **_identity(example, number, expression),
            "iou": float(iou(generated["intersection"], generated["union"])),
            "iou_teacher_forced": float(iou(pixels["intersection"], pixels["union"])),
            **generated,
            "predicted_seg": is_seg,
            "intersection_teacher_forced": pixels["intersection"],
            "predicted_area_teacher_forced": pixels["predicted_area"],
            **_target_attributes(example, expression),
            "height": height,
            "width": width,
            "prediction_rle": encode(forced if is_seg else np.zeros_like(forced))["counts"].decode(),
            "target_rle": encode(target)["counts"].decode(),
        }
    for number, (question, generated_text) in enumerate(
        zip(example.questions, prediction.generated_text, strict=True), start=len(example.expressions)
    ):
        references = json.dumps(question.references, ensure_ascii=False)
        yield {
            **_identity(example, number, question),
            "scoring": question.scoring,
            "generated_text": generated_text,
            "references": references,
        }


def _identity(example: Example, number: int, query: TextQuery) -> dict[str, Any]:
    """The columns that identify an expression or a question."""
    return {
        "image_id": example.image_id,
        "expression_id": number,
        "text": query.text,
        "family": query.family,
        "domain": example.domain,
    }


def _count(prediction: np.ndarray, target: np.ndarray) -> dict[str, int]:
    """Pixel counts of two (h, w) bool masks, by column of the samples table."""
    return {name: int(pixels) for name, pixels in count(prediction, target).items()}


def _of_empty_prediction(pixels: dict[str, int]) -> dict[str, int]:
    """The pixel counts of the same target with an empty prediction."""
    return {**pixels, "intersection": 0, "union": pixels["target_area"], "predicted_area": 0}


def _overlap(prediction: np.ndarray, target: np.ndarray) -> float:
    """IoU of two (h, w) bool masks."""
    pixels = _count(prediction, target)
    return float(iou(pixels["intersection"], pixels["union"]))


def _target_attributes(example: Example, expression: Expression) -> dict[str, float | None]:
    """The largest elongation and occlusion of the targets; None without attributes or targets."""
    attributes = [example.attributes[k - 1] for k in expression.targets] if example.attributes else []
    return {
        "elongation": max((each.elongation for each in attributes), default=None),
        "occlusion": max((each.occlusion for each in attributes), default=None),
    }
