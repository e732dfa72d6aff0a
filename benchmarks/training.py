"""Speed-up of training by packing expressions and by caching frozen features, with a check that results agree.

    python -m benchmarks.training

1. Packed against one at a time: an optimiser step on the same expressions of the same images, once with the visual
   tokens of an image shared by its expressions, once with one row per expression, as in LISA and GLaMM. Measured for an
   arm with few visual tokens and for one with a token per patch, because the savings grow with the number of tokens.
2. Cached against computed: the same packed step with frozen outputs loaded from the cache and computed at every step,
   for an arm without superpixels (vision encoder) and for one with SAM's (vision encoder, SAM, candidates).

Timed rounds alternate between the methods, so that changes of the clock rate affect all of them; medians are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from harness.assembly.assembly import Assembly, assemble, build_vocabulary, load_examples, prepare
from harness.assembly.batches import Batch
from harness.cache.encodings import VisionCache
from harness.cache.superpixel_labels import SuperpixelCache
from harness.data.example import Example, Expression
from harness.execution.stages import seed_everything
from harness.monitoring.progress import progress_on
from harness.study.study import CellSpec, Study
from harness.system.device import default_device, synchronize
from harness.system.environment import describe_environment
from harness.system.precision import autocast
from harness.training.losses import losses
from projectors import VisualFeatures

WARM_UP = 2
Rows = list[tuple[Example, tuple[Expression, ...]]]
"""The sequences of a step: an image and its expressions."""


class ComputedVision(VisionCache):
    """Vision features without a cache: the encoder runs at every step."""

    def load(self, examples: Sequence[Example]) -> VisualFeatures:
        """Encodes the images."""
        # Tensors created in inference mode cannot be saved for the backward pass; a copy can.
        return VisualFeatures(self.patches.encode(examples).clone(), self.patch_mask(examples))


class ComputedSuperpixels(SuperpixelCache):
    """Superpixels without a cache: SAM runs at every step."""

    def load(self, examples: Sequence[Example]) -> Tensor:
        """Computes label maps (B, R, R)."""
        pool = self.pool
        if pool is not None:
            for example in examples:
                pool.embeddings.encode([example])
                pool.propose(example)
        return torch.from_numpy(np.stack([self.compute_superpixels(example) for example in examples])).long()


def packed(examples: Sequence[Example], num_expressions: int) -> Rows:
    """One row per image, with all its expressions."""
    return [(e, e.expressions[:num_expressions]) for e in examples]


def alone(examples: Sequence[Example], num_expressions: int) -> Rows:
    """One row per expression, each with its own copy of the image."""
    return [(e, (expression,)) for e in examples for expression in e.expressions[:num_expressions]]


class Step:
    """One optimiser step on a fixed set of expressions."""

    def __init__(self, assembly: Assembly, spec: CellSpec) -> None:
        self.assembly = assembly
        self.precision, self.location_loss = spec.training.precision, spec.training.location_loss
        self.device = assembly.batches.device
        learning = [p for p in assembly.segmenter.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=spec.training.learning_rate, fused=True)

    def run(self, rows: Rows) -> None:
        """Batch, forward pass, backward pass and update."""
        batch = self._make(rows, with_mask_inputs=self.assembly.segmenter.mask_decoder.learns)
        with autocast(self.precision, self.device):
            answer = self.assembly.segmenter(batch.features, batch.mask_inputs, batch.query)
        losses(answer, batch).total(self.location_loss).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        synchronize(self.device)

    @torch.inference_mode()
    def masks(self, rows: Rows) -> Tensor:
        """Mask logits in float32."""
        batch = self._make(rows, with_mask_inputs=True)
        self.assembly.segmenter.eval()
        logits = self.assembly.segmenter(batch.features, batch.mask_inputs, batch.query).mask_logits
        self.assembly.segmenter.train()
        return logits

    def _make(self, rows: Rows, *, with_mask_inputs: bool) -> Batch:
        return self.assembly.batches.make(
            [e for e, _ in rows], [queries for _, queries in rows], with_mask_inputs=with_mask_inputs
        )


def alternate(*methods: Callable[[], object], rounds: int) -> list[list[float]]:
    """Seconds of each method in each round, in the order A B A B ..., warm-up excluded."""
    times: list[list[float]] = [[] for _ in methods]
    for number in range(WARM_UP + rounds):
        for run, seconds in zip(methods, times, strict=True):
            started = time.perf_counter()
            run()
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - started)
    return times


def hardware() -> str:
    """Hardware and commit of a benchmark."""
    env = describe_environment()
    return f"{env['cpu']}, {env['threads']} of {env['cores']} cores, {env['device']}, commit {env['git_commit']}"


def compare(title: str, times: dict[str, list[float]], num_expressions: int, difference: float) -> str:
    """One line per method, and their ratio; `difference` is the largest absolute difference of mask logits."""
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    lines = [title]
    for name, seconds in medians.items():
        spread = f"{1e3 * min(times[name]):.0f}-{1e3 * max(times[name]):.0f}"
        lines.append(f"  {name:16} {num_expressions / seconds:8.1f} expressions/s   {1e3 * seconds:7.0f} ms ({spread})")
    fast, slow = medians.values()
    lines.append(f"  ratio {slow / fast:.2f}x; mask logits differ by at most {difference:.1e}")
    return "\n".join(lines)


class Bench:
    """One arm of a study, assembled for steps on a fixed set of expressions."""

    def __init__(self, study: str, arm: str | None, rounds: int) -> None:
        loaded = Study.from_yaml(Path(study))
        self.arm = arm or loaded.settings.baseline[0]
        self.spec = next(cell.spec for cell in loaded.cells() if cell.arm == self.arm)
        self.rounds = rounds
        self.count = self.spec.training.expressions_per_image
        seed_everything(0)
        training = load_examples(self.spec, "train")
        self.examples = [training[i] for i in range(self.spec.training.batch_images)]
        self.assembly = assemble(self.spec, build_vocabulary(training), default_device())
        prepare(self.assembly.batches, self.examples, progress_on(Console()).note)
        self.assembly.segmenter.train()
        self.step = Step(self.assembly, self.spec)

    @property
    def title(self) -> str:
        """Images, expressions and visual tokens of the step."""
        tokens = self.assembly.segmenter.projector.max_tokens
        return f"{len(self.examples)} images x {self.count} expressions, arm {self.arm!r}, at most {tokens} tokens"

    def packed_against_alone(self) -> str:
        """Comparison 1 of the module docstring."""
        shared, single = packed(self.examples, self.count), alone(self.examples, self.count)
        difference = (self.step.masks(shared) - self.step.masks(single)).abs().max()
        fast, slow = alternate(lambda: self.step.run(shared), lambda: self.step.run(single), rounds=self.rounds)
        times = {"packed": fast, "one at a time": slow}
        return compare("packed against one at a time", times, len(single), float(difference))

    def cached_against_computed(self) -> str:
        """Comparison 2 of the module docstring."""
        step, rows, batches = self.step, packed(self.examples, self.count), self.assembly.batches
        cached = (batches.vision, batches.superpixels)
        computed = (
            ComputedVision(cached[0].encoder, cached[0].frame),
            cached[1] and ComputedSuperpixels(cached[1].source.name, cached[1].config, cached[1].frame),
        )
        reference = step.masks(rows)

        def use(caches: tuple[VisionCache, SuperpixelCache | None]) -> None:
            batches.vision, batches.superpixels = caches

        def run_with(caches: tuple[VisionCache, SuperpixelCache | None]) -> None:
            use(caches)
            step.run(rows)

        use(computed)
        difference = (step.masks(rows) - reference).abs().max()
        with_cache, without = alternate(lambda: run_with(cached), lambda: run_with(computed), rounds=self.rounds)
        use(cached)
        times = {"cached": with_cache, "computed": without}
        return compare("cached against computed", times, len(rows) * self.count, float(difference))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparisons and prints them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds")
    options = parser.parse_args(arguments)
    print(hardware())
    pooling = Bench("studies/sspe_sweep.yaml", None, options.rounds)
    print(f"\n{pooling.title}")
    print(pooling.packed_against_alone())
    print(pooling.cached_against_computed())
    patches = Bench("studies/projector_comparison.yaml", "mlp", max(1, options.rounds // 3))
    print(f"\n{patches.title}")
    print(patches.packed_against_alone())
    superpixels = Bench("studies/granularity_sweep.yaml", "sam_default", max(1, options.rounds // 3))
    print(f"\n{superpixels.title}")
    print(superpixels.cached_against_computed())


if __name__ == "__main__":
    main()
