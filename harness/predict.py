"""`python -m harness.predict CELL --image FILE --expression TEXT`: predicts a mask for any image file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from skimage.segmentation import find_boundaries

from harness.assembly.assembly import prepare
from harness.assembly.checkpoint import Trained, load
from harness.data.example import Example, Expression, read_image
from harness.data.formats.reading import as_sentence
from harness.errors import HarnessError
from harness.evaluation.evaluator import Evaluator
from harness.monitoring.progress import progress_on
from harness.system.device import default_device
from projectors import ProjectorError

_OUTLINE = 20
"""Grey level of the outline of a mask: nearly black."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for an error of the user, whose message is printed."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    try:
        trained = load(options.cell, default_device())
        example = _example(options.image, options.expression, trained)
        prepare(trained.assembly.batches, [example], progress_on(console).note)
        written = _predict(trained, example, options.out)
    except (HarnessError, ProjectorError) as error:
        console.print(str(error), style="red", soft_wrap=True, markup=False)
        return 2
    for line in [*written, expectation(trained)]:
        sys.stdout.write(f"{line}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.predict", description=__doc__.partition(": ")[2])
    parser.add_argument("cell", type=Path, metavar="CELL", help="runs/<study>/cells/<cell>.safetensors")
    parser.add_argument("--image", type=Path, required=True, help="any image file")
    parser.add_argument("--expression", action="append", required=True, help="what to segment; can be repeated")
    parser.add_argument(
        "--out", type=Path, default=Path(), help="folder for masks and overlays; default: the current folder"
    )
    return parser


def _example(path: Path, texts: Sequence[str], trained: Trained) -> Example:
    """The image and the expressions as an example without targets.

    Raises:
        HarnessError: the file is not an image, a word is unknown, or superpixels require the ground truth.
    """
    if trained.spec.superpixels is not None and trained.spec.superpixels["name"] == "oracle":
        raise HarnessError(
            f"arm {trained.arm!r} uses superpixels from the ground truth, which an image file does not have; choose a "
            "cell with another superpixel source"
        )
    image = read_image(path)
    expressions = tuple(Expression(as_sentence(text), "all", ()) for text in texts)
    if not all(expression.text for expression in expressions):
        raise HarnessError("--expression contains no word; describe what to segment")
    tokenizer = trained.assembly.batches.llm.tokenizer
    if trained.spec.llm.name == "tiny":
        known = tokenizer.get_vocab()
        unknown = sorted({word for each in expressions for word in each.text.split()} - known.keys())
        if unknown:
            words = ", ".join(sorted(word for word in known if word[0].isalpha()))
            raise HarnessError(
                f"the vocabulary of this cell does not contain {', '.join(map(repr, unknown))}; known words: {words}"
            )
    return Example(path.stem, image, (), expressions)


def _predict(trained: Trained, example: Example, out: Path) -> list[str]:
    """Writes mask and overlay of each expression; returns one line per expression with the result and the files."""
    assembly, precision = trained.assembly, trained.spec.training.precision
    texts = [expression.text for expression in example.expressions]
    evaluator = Evaluator(assembly.segmenter, assembly.batches, 1, precision)
    prediction = next(evaluator.predict([example], [example.expressions]))
    lines = []
    for number, (text, mask, has_seg) in enumerate(zip(texts, prediction.masks, prediction.predicted_seg, strict=True)):
        stem = example.image_id if len(texts) == 1 else f"{example.image_id}-{number}"
        paths = out / f"{stem}.mask.png", out / f"{stem}.overlay.png"
        try:
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(paths[0])
            Image.fromarray(overlay(example.image, mask)).save(paths[1])
        except OSError as error:
            raise HarnessError(f"cannot write to --out {out} ({error}); choose another folder") from None
        outcome = "[SEG] generated" if has_seg else "[SEG] not generated, which counts as no target"
        lines.append(f"{text!r}: {outcome}; mask covers {mask.mean():.1%} of the image; {paths[0]}, {paths[1]}")
    return lines


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (h, w, 3), unchanged inside the mask (h, w) and pale grey outside, with an outline."""
    pale = 0.4 * image.mean(axis=-1, keepdims=True) + 0.6 * 255
    shown = np.where(mask[..., None], image, pale).astype(np.uint8)
    shown[find_boundaries(mask, mode="outer")] = _OUTLINE
    return shown


def expectation(trained: Trained) -> str:
    """A sentence on the expected quality of predictions, from the cell's training data."""
    spec = trained.spec
    trained_on = f"Arm {trained.arm!r} was trained on {spec.data['name']}"
    if spec.data["name"] == "scenes":
        return (
            f"{trained_on} (drawings of coloured shapes), with an LLM {_origin(spec.llm.name)}. Masks are meaningful "
            "on such drawings only; a mask on a photograph says nothing about the projector."
        )
    return f"{trained_on}, with an LLM {_origin(spec.llm.name)}. Expect poor masks for other kinds of images and words."


def _origin(llm: str) -> str:
    return "trained from scratch" if llm == "tiny" else f"initialized from {llm}"


if __name__ == "__main__":
    sys.exit(main())
