"""Trains one arm in a process of its own, on request: `benchmarks.training_step` runs it in two checkouts.

It reads a line from standard input before each interval of the training curve, and prints a line of JSON after it, with
its processor time in seconds and its loss. Names of modules are those of this version, or those of commit ee3a7d0,
before they were renamed.
"""

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

IMAGES_PER_STEP = 3.2
"""Training images over steps, as in the preset's 800 images and 250 steps."""


class Parts(NamedTuple):
    """Arguments of a trainer, and its examples."""

    segmenter: Any
    batches: Any
    config: Any
    generator: torch.Generator
    examples: list[Any]


def train(study: Path, arm: str, seed: int) -> None:
    """Runs the whole training of an arm, and pauses at each point of its curve."""
    trainers = import_module("harness.training")
    is_current = hasattr(trainers, "__path__")  # a package; one module at the earlier commit
    if is_current:
        trainers = import_module("harness.training.trainer")
    *arguments, examples = _current(study, arm, seed) if is_current else _earlier(study, arm, seed)
    started = 0.0

    def wait() -> None:
        nonlocal started
        sys.stdin.readline()
        started = time.process_time()

    def on_step(*point: Any) -> None:
        seconds, loss = time.process_time() - started, point[0]["loss"] if is_current else point[2]
        print(json.dumps({"seconds": seconds, "loss": loss}), flush=True)
        wait()

    wait()
    trainers.Trainer(*arguments, on_step).run(examples)


def _first(training: Any, steps: int) -> list[Any]:
    return [training[number] for number in range(min(len(training), round(IMAGES_PER_STEP * steps)))]


def _current(study: Path, arm: str, seed: int) -> Parts:
    from harness.assembly.assembly import assemble, build_vocabulary, load_examples, prepare
    from harness.assembly.checkpoint import Initialization
    from harness.execution.stages import seed_everything
    from harness.monitoring.progress import progress_on
    from harness.study.study import Study
    from harness.system.device import default_device

    spec = next(cell.spec for cell in Study.from_yaml(study).cells() if cell.arm == arm)
    training = load_examples(spec, "train")
    generator = seed_everything(seed)
    initialization = Initialization(spec, default_device())
    assembly = assemble(spec, initialization.vocabulary_for(build_vocabulary(training)), default_device())
    initialization.load_into(assembly)
    examples = _first(training, spec.training.steps)
    prepare(assembly.batches, examples, progress_on(Console(stderr=True)).note, with_mask_inputs=False)
    segmenter = assembly.segmenter.eval()
    segmenter.match_token_scale(assembly.batches.features(examples[:32]))
    return Parts(segmenter, assembly.batches, spec.training, generator, examples)


def _earlier(study: Path, arm: str, seed: int) -> Parts:
    assembling, checkpoint = import_module("harness.assembly"), import_module("harness.checkpoint")
    device = import_module("harness.device").default_device()
    spec = next(cell.spec for cell in import_module("harness.study").load(study).cells() if cell.arm == arm)
    training = assembling.load_examples(spec, "train")
    generator = import_module("harness.cell").seed_everything(seed)
    start = checkpoint.Start(spec, device)
    assembly = assembling.assemble(spec, start.words_for(assembling.words_of(training)), device)
    start.give(assembly)
    examples = _first(training, spec.training.steps)
    progress = import_module("harness.progress").progress_on(Console(stderr=True))
    assembling.prepare(assembly.batches, examples, progress, with_view=False)
    segmenter = assembly.segmenter.eval()
    segmenter.match(assembly.batches.features(examples[:32]))
    return Parts(segmenter, assembly.batches, spec.training, generator, examples)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
