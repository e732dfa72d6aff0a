"""Whether the cells of a run look at the right place: location accuracy with their own and with other visual tokens.

    python -m benchmarks.location_accuracy runs/photo_projectors

For every expression with a target, in the evaluation split: whether the most likely location of the [SEG] state lies on
the target (`harness.training.validation.hits_target`). The same with the visual tokens of the next image, and at a
random location. No mask is decoded, so that the measure depends neither on a SAM nor on thresholds.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from harness.assembly.assembly import Assembly, load_examples, prepare
from harness.assembly.checkpoint import load
from harness.data.example import Example
from harness.errors import HarnessError
from harness.model.config import LINEAR
from harness.monitoring.progress import LineProgress
from harness.results.run_folder import RunFolder
from harness.study.study import Study
from harness.system.device import default_device
from harness.system.exit_code import exit_code
from harness.system.precision import autocast
from harness.training.validation import hits_target


@torch.no_grad()
def located(assembly: Assembly, examples: Sequence[Example], others: Sequence[Example], precision: str) -> pd.DataFrame:
    """One row per expression with a target: image, family, and whether the most likely location lies on the target.

    Args:
        others: images whose visual tokens the LLM receives, one for each example.
    """
    segmenter, batches, rows = assembly.segmenter.eval(), assembly.batches, list[pd.DataFrame]()
    for example, other in zip(examples, others, strict=True):
        batch = batches.make([example], [example.expressions], with_mask_inputs=False)
        with autocast(precision, batches.device):
            tokens = segmenter.projector(batches.features([other]))
            answer = segmenter.answer(tokens, batch.features.patches, None, batch.query)
        shares = batch.location_targets
        targets = [one for one, each in zip(example.expressions, shares, strict=True) if each.any()]
        counted = shares.flatten(1)[shares.flatten(1).amax(1) > 0]
        rows.append(
            pd.DataFrame(
                {
                    "image_id": example.image_id,
                    "family": [one.family for one in targets],
                    "is_hit": hits_target(answer.location_logits.float(), shares).float().tolist(),
                    "random": (counted >= counted.amax(1, keepdim=True).clamp(max=0.5)).float().mean(1).tolist(),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def measured(folder: Path, progress: LineProgress) -> Iterator[dict[str, object]]:
    """One row per finished cell of a run whose LLM was trained.

    Raises:
        HarnessError: the folder is no run, or none of its cells has finished.
    """
    run = RunFolder(folder)
    if not run.study.exists():
        raise HarnessError(f"{folder} is no folder of a run: it has no {run.study.name}; use runs/<study>")
    done = {cell for cell, row in run.rows().items() if row["status"] == "done"}
    cells = [each for each in Study.from_yaml(run.study).cells() if each.id in done and each.spec.llm.name != LINEAR]
    if not cells:
        raise HarnessError(f"{folder} has no finished cell whose LLM was trained; run its study first")
    for cell in cells:
        progress.name = f"{cell.arm} seed {cell.seed}"
        assembly = load(run.checkpoint(cell.id), default_device()).assembly
        split = load_examples(cell.spec, cell.spec.evaluation.split)
        examples = [example for example in split if any(one.targets for one in example.expressions)]
        prepare(assembly.batches, examples, progress.note, with_mask_inputs=False)
        others = [*examples[1:], examples[0]]
        own, swapped = (located(assembly, examples, each, cell.spec.training.precision) for each in (examples, others))
        yield {
            "arm": cell.arm,
            "seed": cell.seed,
            "location accuracy": own["is_hit"].mean(),
            "tokens of another image": swapped["is_hit"].mean(),
            "random location": own["random"].mean(),
            "images": len(examples),
            "expressions": len(own),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for each cell and the mean of each arm; returns the exit code, 2 for an error of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.location_accuracy", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, runs/<study>")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options.run))


def _run(folder: Path) -> int:
    table = pd.DataFrame(measured(folder, LineProgress(Console(stderr=True))))
    print(table.to_markdown(index=False, floatfmt=".3f"))
    means = table.drop(columns="seed").groupby("arm", sort=False).mean()
    print(f"\nmean over seeds\n\n{means.to_markdown(floatfmt='.3f')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
