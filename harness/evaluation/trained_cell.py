"""A trained cell that segments any image: the Python counterpart of `python -m harness.predict`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from harness.assembly.assembly import prepare
from harness.assembly.checkpoint import Trained, load
from harness.data.example import Example, Expression, read_image, rgb
from harness.data.formats.reading import as_sentence
from harness.errors import HarnessError
from harness.evaluation.evaluator import Evaluator
from harness.model.config import LINEAR
from harness.study.cell_spec import CellSpec
from harness.system.device import default_device


@dataclass(frozen=True, slots=True)
class Segmentation:
    """The prediction for one expression.

    Attributes:
        expression: lower case, as the model received it.
        mask: (h, w) bool at the size of the image, decoded as if the model had predicted [SEG].
        predicted_seg: whether the model predicted [SEG]. Otherwise it predicted that the image has no target, and the
            metrics count an empty mask.
    """

    expression: str
    mask: np.ndarray
    predicted_seg: bool


class TrainedCell:
    """A cell that was trained by a study, loaded for prediction.

    Attributes:
        arm, seed, spec: of the cell, as in its study.
    """

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self.arm: str = trained.arm
        self.seed: int = trained.seed
        self.spec: CellSpec = trained.spec

    def predict(
        self,
        image: Path | str | np.ndarray | Image.Image,
        expressions: str | Sequence[str],
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> list[Segmentation]:
        """Segment what each expression refers to.

        Args:
            image: a file, an (h, w, 3) uint8 RGB array, or a PIL image.
            expressions: one referring expression or several; several share the visual tokens of the image.
            on_progress: called with one line of text per computed input, such as SAM's embedding.

        Returns:
            One segmentation per expression, in their order.

        Raises:
            HarnessError: the image cannot be read, an expression is empty or has words outside the vocabulary of an LLM
                trained from scratch, or the superpixels of this cell come from ground truth.
        """
        texts = [expressions] if isinstance(expressions, str) else list(expressions)
        example = self._example(image, texts)
        batches = self._trained.assembly.batches
        prepare(batches, [example], on_progress)
        evaluator = Evaluator(self._trained.assembly.segmenter, batches, 1, self.spec.training.precision)
        prediction = next(evaluator.predict([example], [example.expressions]))
        found = zip(example.expressions, prediction.masks, prediction.predicted_seg, strict=True)
        return [Segmentation(expression.text, mask, bool(is_seg)) for expression, mask, is_seg in found]

    def _example(self, image: Path | str | np.ndarray | Image.Image, texts: Sequence[str]) -> Example:
        """The image with its expressions, without annotations."""
        if self.spec.superpixels is not None and self.spec.superpixels["name"] == "oracle":
            raise HarnessError(
                f"arm {self.arm!r} uses superpixels made from ground truth, which this image does not have; load a "
                "cell with another superpixel source"
            )
        expressions = tuple(Expression(as_sentence(text), "all", ()) for text in texts)
        if not expressions or not all(expression.text for expression in expressions):
            raise HarnessError("an expression contains no word; describe what to segment, as in 'the red circle'")
        self._check_vocabulary(expressions)
        return Example("image", _pixels(image), (), expressions)

    def _check_vocabulary(self, expressions: Sequence[Expression]) -> None:
        """Refuses words that an LLM trained from scratch does not have."""
        if self.spec.llm.name not in ("tiny", LINEAR):
            return
        known = self._trained.assembly.batches.llm.tokenizer.get_vocab()
        unknown = sorted({word for each in expressions for word in each.text.split()} - known.keys())
        if unknown:
            words = ", ".join(sorted(word for word in known if word[0].isalpha()))
            raise HarnessError(
                f"the vocabulary of this cell does not contain {', '.join(map(repr, unknown))}; known words: {words}"
            )


def load_cell(path: Path | str, device: torch.device | str | None = None) -> TrainedCell:
    """Load a trained cell, strictly.

    Args:
        path: runs/<study>/cells/<cell>.safetensors.
        device: where it runs; CUDA where there is one by default.

    Raises:
        WeightsError: the file is missing or not a checkpoint of a cell, or its pretrained weights differ from those
            found on this machine.
    """
    return TrainedCell(load(Path(path), default_device() if device is None else torch.device(device)))


def _pixels(image: Path | str | np.ndarray | Image.Image) -> np.ndarray:
    """(h, w, 3) uint8 RGB."""
    if isinstance(image, Path | str):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise HarnessError(
            f"the image is an array of shape {image.shape} and dtype {image.dtype}; give (h, w, 3) uint8 RGB"
        )
    return image
