"""Scores a trained segmenter: everything asked of a split, one row each, with the controls that must fail.

Two readings of an expression in one run: *generated*, where the mask counts only if the model's own next word is [SEG]
(else the mask is empty), and *teacher forced*, where [SEG] is given, as LISA and its descendants score. A question is
answered in the model's likeliest words.
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
from harness.evaluation.metrics import count, iou
from harness.evaluation.text_metrics import score as score_answers
from harness.model.llm.language_model import SEG
from harness.model.segmenter import Answer, Query, Segmenter
from harness.results.run_folder import SAMPLE_COLUMNS
from harness.system.precision import autocast


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one image.

    Args:
        masks: (E, h, w) bool at the image's own size, a mask an expression, as if [SEG] had been given.
        predicted_seg: (E,) bool, whether the model itself says [SEG].
        tokens: visual tokens read.
        said: the answer to each question.
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
        batch_images: images at a time.
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
        """One prediction an image for what is asked of it, all packed into one sequence.

        Args:
            read: the images whose visual tokens the LLM reads, each in place of its own; None for their own.
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
                words = self._say(answer, query)
            num_drawn = query.is_expression.sum(1).tolist()
            says_seg = answer.answer_logits[query.is_expression[query.is_valid]].argmax(-1) == SEG + llm.vocabulary_size
            drawn = [Frame.of(example.size, self.batches.mask_frame) for example in chunk]
            for frame, logits, predicted_seg, num_tokens, row in zip(
                drawn,
                answer.mask_logits.split(num_drawn),
                says_seg.split(num_drawn),
                answer.tokens.mask.sum(1).tolist(),
                chosen,
                strict=True,
            ):
                generated_text = tuple(next(words) for one in row if isinstance(one, Question))
                masks = (frame.restore(logits) > 0).cpu().numpy()
                yield Prediction(masks, predicted_seg.cpu().numpy(), num_tokens, generated_text)

    def _say(self, answer: Answer, query: Query) -> Iterator[str]:
        """The answers to the questions of a batch, in order."""
        questions = query.questions()
        ids = self.segmenter.generate(answer.tokens, questions).tolist() if questions.is_valid.any() else []
        return iter([self.segmenter.llm.decode(row) for row in ids])

    def score(self, examples: Sequence[Example]) -> tuple[pd.DataFrame, list[int]]:
        """A row per expression or question (columns: `SAMPLE_COLUMNS`), and the visual tokens of each image."""
        rows: list[dict[str, Any]] = []
        tokens = []
        queries = [example.queries for example in examples]
        for example, prediction in zip(examples, self.predict(examples, queries), strict=True):
            tokens.append(prediction.tokens)
            rows.extend(sample_rows(example, prediction))
        questions = [question for example in examples for question in example.questions]
        answered = [row for row in rows if "generated_text" in row]
        for row, value in zip(
            answered, score_answers([row["generated_text"] for row in answered], questions), strict=True
        ):
            row["score"] = value
        return pd.DataFrame(rows, columns=MEASURED), tokens

    def controls(self, examples: Sequence[Example]) -> dict[str, float]:
        """What is left without what the scores should come from, by the column it is reported in.

        - `*_shuffled`: words and image do not belong together. Each image is asked what the next one is asked: masks
          are held against what its own expression means, answers against the question that was put.
        - `giou_swapped_tokens`: the LLM reads the visual tokens of the next image. The expression and the mask decoder
          keep the image, so the score that is left does not come from visual tokens.

        Of one image there is no next, so nothing is known.
        """
        if len(examples) < 2:
            return {}
        others = [examples[(i + 1) % len(examples)] for i in range(len(examples))]
        queries: list[list[TextQuery]] = [
            [*other.expressions[: len(example.expressions)], *other.questions]
            for example, other in zip(examples, others, strict=True)
        ]
        shuffled = list(self.predict(examples, queries))
        questions = [question for other in others for question in other.questions]
        scores = pd.Series(
            score_answers([generated_text for one in shuffled for generated_text in one.generated_text], questions),
            dtype=float,
        )
        by_scoring = scores.groupby([question.scoring for question in questions]).mean()
        found = {f"{scoring}_shuffled": float(value) for scoring, value in by_scoring.items()}
        if any(example.expressions for example in examples):
            found["giou_shuffled"] = _giou(examples, shuffled)
            expressions = [example.expressions for example in examples]
            found["giou_swapped_tokens"] = _giou(examples, self.predict(examples, expressions, token_sources=others))
        return found


def _giou(examples: Sequence[Example], predictions: Iterable[Prediction]) -> float:
    """Mean IoU of the masks with what each image's own expressions mean."""
    overlaps = []
    for example, prediction in zip(examples, predictions, strict=True):
        masks, valid_mask = prediction.masks & prediction.predicted_seg[:, None, None], example.valid_mask()
        for own, mask in zip(example.expressions, masks, strict=False):
            overlaps.append(_overlap(mask & valid_mask, example.mask(own) & valid_mask))
    return float(np.mean(overlaps))


def sample_rows(example: Example, prediction: Prediction) -> Iterator[dict[str, Any]]:
    """What one image was asked and what came of it, in the columns of `harness.results.run_folder.SAMPLE_COLUMNS`."""
    (height, width), valid_mask = example.size, example.valid_mask()
    for number, expression in enumerate(example.expressions):
        target = example.mask(expression)
        forced = prediction.masks[number]
        mask = forced & prediction.predicted_seg[number]
        forced_pixels = count(forced & valid_mask, target & valid_mask)
        yield {
            **_identity(example, number, expression),
            "iou": _overlap(mask & valid_mask, target & valid_mask),
            "iou_teacher_forced": float(iou(forced_pixels["intersection"], forced_pixels["union"])),
            **{name: int(pixels) for name, pixels in count(mask & valid_mask, target & valid_mask).items()},
            "predicted_seg": bool(prediction.predicted_seg[number]),
            "intersection_teacher_forced": int(forced_pixels["intersection"]),
            "predicted_area_teacher_forced": int(forced_pixels["predicted_area"]),
            **_facts(example, expression),
            "height": height,
            "width": width,
            "prediction_rle": encode(mask)["counts"].decode(),
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


def _identity(example: Example, number: int, queries: TextQuery) -> dict[str, Any]:
    """The columns that say what was asked of which image."""
    return {
        "image_id": example.image_id,
        "expression_id": number,
        "text": queries.text,
        "family": queries.family,
        "domain": example.domain,
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
