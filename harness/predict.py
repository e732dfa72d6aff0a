"""`python -m harness.predict CELL --image FILE --expression TEXT`: the mask of a trained cell on any image file."""

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
"""Nearly black, on a border whose outside is pale."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with a sentence that says what is wrong."""
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
    parser.add_argument(
        "--expression", action="append", required=True, help="what to segment; may be given again for the same image"
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the masks and overlays; this one")
    return parser


def _example(path: Path, texts: Sequence[str], trained: Trained) -> Example:
    """The image with the expressions, of which nothing is known.

    Raises:
        HarnessError: no image, words that the LLM never read, or superpixels that are cut from the ground truth.
    """
    if trained.spec.superpixels is not None and trained.spec.superpixels["name"] == "oracle":
        raise HarnessError(
            f"arm {trained.arm!r} reads superpixels cut from the ground truth, which an image file has not; name a "
            "cell of another source"
        )
    image = read_image(path)
    expressions = tuple(Expression(as_sentence(text), "all", ()) for text in texts)
    if not all(expression.text for expression in expressions):
        raise HarnessError("--expression holds no word; say what is to be segmented")
    tokenizer = trained.assembly.batches.llm.tokenizer
    if trained.spec.llm.name == "tiny":
        known = tokenizer.get_vocab()
        unread = sorted({word for each in expressions for word in each.text.split()} - known.keys())
        if unread:
            words = ", ".join(sorted(word for word in known if word[0].isalpha()))
            raise HarnessError(f"the LLM of this cell never read {', '.join(map(repr, unread))}; it knows: {words}")
    return Example(path.stem, image, (), expressions)


def _predict(trained: Trained, example: Example, out: Path) -> list[str]:
    """Writes mask and overlay of each expression; a line each of what was found and where it lies."""
    assembly, precision = trained.assembly, trained.spec.training.precision
    texts = [expression.text for expression in example.expressions]
    evaluator = Evaluator(assembly.segmenter, assembly.batches, 1, precision)
    prediction = next(evaluator.predict([example], [example.expressions]))
    lines = []
    for number, (text, mask, answered) in enumerate(
        zip(texts, prediction.masks, prediction.predicted_seg, strict=True)
    ):
        stem = example.image_id if len(texts) == 1 else f"{example.image_id}-{number}"
        paths = out / f"{stem}.mask.png", out / f"{stem}.overlay.png"
        try:
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(paths[0])
            Image.fromarray(overlay(example.image, mask)).save(paths[1])
        except OSError as error:
            raise HarnessError(f"--out {out} cannot hold what is found ({error}); name another folder") from None
        answer = (
            "answers [SEG]" if answered else "does not answer [SEG], which counts as no target; the mask is what it"
        )
        answer = answer if answered else f"{answer} would draw"
        lines.append(f"{text!r}: {answer}, {mask.mean():.1%} of the image; {paths[0]}, {paths[1]}")
    return lines


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (h, w, 3) as it is under the mask (h, w), grey and pale elsewhere, whatever colours it has."""
    pale = 0.4 * image.mean(axis=-1, keepdims=True) + 0.6 * 255
    shown = np.where(mask[..., None], image, pale).astype(np.uint8)
    shown[find_boundaries(mask, mode="outer")] = _OUTLINE
    return shown


def expectation(trained: Trained) -> str:
    """What the prediction can and cannot be expected to be, from what the cell was trained on."""
    spec = trained.spec
    learnt = f"Arm {trained.arm!r} was trained on {spec.data['name']}"
    if spec.data["name"] == "scenes":
        return (
            f"{learnt}, drawings of coloured shapes, with an LLM {_origin(spec.llm.name)}: on such drawings its mask "
            "means something; on a photograph it shows that the path from pixels to mask works, and nothing about "
            "projectors."
        )
    return f"{learnt}, with an LLM {_origin(spec.llm.name)}: expect little of images and words unlike those."


def _origin(llm: str) -> str:
    return "trained from scratch" if llm == "tiny" else f"that started as {llm}"


if __name__ == "__main__":
    sys.exit(main())
