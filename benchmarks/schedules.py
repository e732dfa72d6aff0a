"""What budgets of one training cost, compared with separate trainings: `python -m benchmarks.schedules`.

For each arm and seed, one training with a stable learning rate and a short decay before each budget (as cells are
trained) against one training per budget with a cosine, which is the usual schedule, and the higher peak rate that it
takes. Everything else is equal: data, order of images, initial weights. Bar: gIoU within .01 of the cosine, on average.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from harness import Study
from harness.assembly.assembly import Assembly, assemble, load_examples, prepare
from harness.assembly.checkpoint import Initialization
from harness.evaluation.evaluator import Evaluator
from harness.execution.stages import MEASURED_IMAGES, seed_everything
from harness.study.study import Cell
from harness.system.device import default_device
from harness.system.environment import describe_environment
from harness.training.schedules import WarmupStableDecay
from harness.training.trainer import Trainer

BUDGETS = (0.25, 0.5, 1.0)
COSINE_RATE = 3e-3
"""Peak learning rate of the cosines; that of the preset is two thirds of it."""
STUDY: dict[str, Any] = {
    "question": "What do budgets of one training cost?",
    "extends": "presets/embedded.yaml",
    "base": {"training": {"steps": 1000}, "data": {"train_images": 3200}},
    "arms": {
        "pooling": {"projector": {"name": "pooling", "tokens": 36}},
        "mlp": {"projector": {"name": "mlp"}},
        "svp_sspe": {
            "superpixels": {"name": "felzenszwalb", "count": 24},
            "projector": {
                "name": "svp",
                "aggregation": {"name": "ssa", "width": 128},
                "position": {"name": "sspe", "blocks": 3, "queries": 4, "width": 64, "resolution": 8},
            },
        },
    },
    "seeds": [0, 1],
    "objectives": {"giou": "maximize"},
    "baseline": "pooling",
}


@dataclass
class WarmupCosine(WarmupStableDecay):
    """Linear rise over the warm-up, then a cosine to zero."""

    def __call__(self, step: int) -> float:
        """The factor of the update after `step` steps."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.end - self.warmup)))


class CosineTrainer(Trainer):
    """Trains with a cosine."""

    def schedule(self, end: int) -> WarmupStableDecay:
        """A cosine over the warm-up and the steps of the only budget."""
        return WarmupCosine(self.config.warmup_steps, end)


def giou_by_steps(cell: Cell, trainer_type: type[Trainer]) -> dict[int, float]:
    """gIoU on the test split at each budget of a cell."""
    spec, device = cell.spec, default_device()
    training, testing = load_examples(spec, "train"), load_examples(spec, "test")
    generator = seed_everything(cell.seed)
    initialization = Initialization(spec, device)
    assembly = assemble(spec, initialization.vocabulary_for([]), device)
    initialization.load_into(assembly)
    for examples in (training, testing):
        prepare(assembly.batches, examples, lambda _: None)
    segmenter = assembly.segmenter.eval()
    segmenter.match_token_scale(assembly.batches.features([training[i] for i in range(MEASURED_IMAGES)]))
    found: dict[int, float] = {}

    def measure(steps: int) -> None:
        found[steps] = _giou(assembly, cell, testing)
        segmenter.train()

    trainer = trainer_type(segmenter, assembly.batches, spec.training, generator, lambda *_: None, on_budget=measure)
    trainer.run(training)
    measure(spec.training.steps)
    return found


def _giou(assembly: Assembly, cell: Cell, testing: object) -> float:
    evaluation = cell.spec.evaluation
    evaluator = Evaluator(assembly.segmenter, assembly.batches, evaluation.batch_images, cell.spec.training.precision)
    samples, _ = evaluator.score(testing)  # type: ignore[arg-type]
    return float(samples["iou"].mean())


def _cells(options: argparse.Namespace, steps: int, budgets: tuple[float, ...], *overrides: str) -> list[Cell]:
    changed = [f"training.steps={steps}", f"training.budgets={list(budgets)}", f"data.train_images={options.images}"]
    cells = Study.from_dict(STUDY, name="schedules", overrides=[*changed, *overrides]).cells()
    return [cell for cell in cells if cell.arm in options.arms]


def main() -> None:
    """One line per arm, seed and budget, then the mean difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--images", type=int, default=3200, help="training images")
    parser.add_argument("--arms", nargs="+", choices=STUDY["arms"], default=list(STUDY["arms"]), help="default: all")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    console, rows = Console(highlight=False, soft_wrap=True), []
    separate = {round(share * options.steps) for share in BUDGETS}
    cosine = {
        (cell.arm, cell.seed, steps): cell
        for steps in separate
        for cell in _cells(options, steps, (1.0,), f"training.learning_rate={COSINE_RATE}")
    }
    for cell in _cells(options, options.steps, BUDGETS):
        found = giou_by_steps(cell, Trainer)
        for steps, value in found.items():
            alone = giou_by_steps(cosine[cell.arm, cell.seed, steps], CosineTrainer)[steps]
            rows.append({"arm": cell.arm, "seed": cell.seed, "steps": steps, "branch": value, "cosine": alone})
            console.print(
                f"{cell.arm} seed {cell.seed}, {steps} steps: gIoU {value:.4f} in a branch, {alone:.4f} with a "
                f"cosine of its own, difference {value - alone:+.4f}"
            )
    for steps in sorted(separate):
        differences = pd.DataFrame(rows).query("steps == @steps").eval("branch - cosine")
        console.print(
            f"{steps} steps: mean difference {differences.mean():+.4f}, from {differences.min():+.4f} to "
            f"{differences.max():+.4f}, n = {len(differences)}"
        )
    if options.out:
        options.out.write_text(json.dumps({"environment": describe_environment(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
