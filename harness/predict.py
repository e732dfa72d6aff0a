"""`python -m harness.predict CELL --image FILE --expression TEXT`: predicts a mask for any image file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from skimage.segmentation import find_boundaries

from harness.data.example import read_image
from harness.errors import HarnessError
from harness.evaluation.trained_cell import Segmentation, TrainedCell, load_cell
from harness.model.config import LINEAR
from harness.monitoring.progress import progress_on
from projectors import ProjectorError

_OUTLINE = 20
"""Grey level of the outline of a mask: nearly black."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for an error of the user, whose message is printed."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    try:
        cell = load_cell(options.cell)
        image = read_image(options.image)
        found = cell.predict(image, options.expression, progress_on(console).note)
        written = _write(image, found, options.image.stem, options.out)
    except (HarnessError, ProjectorError) as error:
        console.print(str(error), style="red", soft_wrap=True, markup=False)
        return 2
    for line in [*written, expectation(cell)]:
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


def _write(image: np.ndarray, found: Sequence[Segmentation], stem: str, out: Path) -> list[str]:
    """Writes mask and overlay of each expression; returns one line per expression with the result and the files."""
    lines = []
    for number, one in enumerate(found):
        name = stem if len(found) == 1 else f"{stem}-{number}"
        paths = out / f"{name}.mask.png", out / f"{name}.overlay.png"
        try:
            out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(one.mask, 255, 0).astype(np.uint8)).save(paths[0])
            Image.fromarray(overlay(image, one.mask)).save(paths[1])
        except OSError as error:
            raise HarnessError(f"cannot write to --out {out} ({error}); choose another folder") from None
        outcome = "[SEG] generated" if one.predicted_seg else "[SEG] not generated, which counts as no target"
        lines.append(
            f"{one.expression!r}: {outcome}; mask covers {one.mask.mean():.1%} of the image; {paths[0]}, {paths[1]}"
        )
    return lines


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image (h, w, 3), unchanged inside the mask (h, w) and pale grey outside, with an outline."""
    pale = 0.4 * image.mean(axis=-1, keepdims=True) + 0.6 * 255
    shown = np.where(mask[..., None], image, pale).astype(np.uint8)
    shown[find_boundaries(mask, mode="outer")] = _OUTLINE
    return shown


def expectation(cell: TrainedCell) -> str:
    """A sentence on the expected quality of predictions, from the cell's training data."""
    spec = cell.spec
    trained_on = f"Arm {cell.arm!r} was trained on {spec.data['name']}"
    if spec.data["name"] == "scenes":
        return (
            f"{trained_on} (drawings of coloured shapes), with {_llm(spec.llm.name)}. Masks are meaningful on such "
            "drawings only; a mask on a photograph says nothing about the projector."
        )
    return f"{trained_on}, with {_llm(spec.llm.name)}. Expect poor masks for other kinds of images and words."


def _llm(name: str) -> str:
    if name == LINEAR:
        return "a linear model in place of an LLM"
    return "an LLM trained from scratch" if name == "tiny" else f"an LLM initialized from {name}"


if __name__ == "__main__":
    sys.exit(main())
