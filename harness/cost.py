"""What a trained segmenter costs: parameters, FLOPs, latency by stage, peak memory.

FLOPs are multiply-adds times two, of matrix products and convolutions only; pooling, normalisation and superpixel
generation count as zero, and latency shows them. Attention is counted by running it in its plain form, because the
fused kernels for CPUs are unknown to the counter.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.backbone.segmenter import Segmenter
from harness.batches import BatchMaker
from harness.data.example import Example
from harness.device import synchronize
from harness.frame import Frame, to_tensor
from harness.training import autocast

STAGES = ("vision", "sam", "superpixels", "projector", "llm", "mask")
WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Cost:
    """One image, asked once: from pixels to a mask at the image's own size, or to the end of an answer in words.

    Args:
        latency_ms: median wall time of a whole run.
        stage_ms: median wall time of each stage. `sam` is SAM's image encoder, once for all that need it; `superpixels`
            includes asking SAM about its points and filtering the answers, not reading them from a cache.
        stage_flops: FLOPs of each stage; matrix products and convolutions only.
    """

    latency_ms: float
    stage_ms: dict[str, float]
    stage_flops: dict[str, int]


class Pipeline:
    """Pixels to the answer of the first thing asked, nothing cached, in stages that can be timed one by one."""

    def __init__(self, segmenter: Segmenter, batches: BatchMaker, example: Example) -> None:
        self.segmenter = segmenter
        self.batches = batches
        self.example = example
        self.frame = Frame.of(example.size, batches.vision.frame)
        self.mask_frame = Frame.of(example.size, batches.mask_frame)
        self.candidates = None if batches.superpixels is None else batches.superpixels.pool
        # One embedding serves the mask head and the superpixels where both are of the same SAM.
        proposing = [] if self.candidates is None else [self.candidates.embeddings]
        drawing = [] if batches.sam is None else [batches.sam]
        self.sams = {cache.folder: cache for cache in (*proposing, *drawing)}
        self.query = batches.query([example.asked[:1]])
        self.pixels = to_tensor([self.frame.place_image(example.image)]).to(batches.device)
        self.patch_mask = torch.from_numpy(self.frame.patch_mask(batches.grid)).unsqueeze(0).to(batches.device)
        self.first = torch.zeros(1, dtype=torch.long, device=batches.device)

    def run(self, stage: Callable[[str], None]) -> None:
        """One run; calls `stage(name)` as each stage ends."""
        encoding = self.batches.vision.compute(self.pixels, [(self.frame.height, self.frame.width)])
        stage("vision")
        view = self.pixels
        for cache in self.sams.values():
            embedding = cache.encode([self.example])
            if self.batches.sam is not None and cache.folder == self.batches.sam.folder:
                view = embedding.to(self.batches.device)
        stage("sam")
        labels = None
        if self.batches.superpixels is not None:
            if self.candidates is not None:
                self.candidates.propose(self.example)
            cut = self.batches.superpixels.cut(self.example)
            labels = torch.from_numpy(cut).long().unsqueeze(0).to(self.batches.device)
        stage("superpixels")
        features = self.batches.see(encoding, self.patch_mask, labels)
        tokens = self.segmenter.projector(features)
        stage("projector")
        if not self.query.drawn.any():
            self.segmenter.say(tokens, self.query)
            stage("llm")
        else:
            answering, seg = self.segmenter.read(tokens, self.query)
            self.segmenter.llm.answer_logits(answering)
            stage("llm")
            self.mask_frame.restore(
                self.segmenter.segment(features.patches, view, self.segmenter.prompt(seg), self.first)
            )
        stage("mask")


@torch.inference_mode()
def measure(segmenter: Segmenter, batches: BatchMaker, example: Example, repeats: int, precision: str) -> Cost:
    """Medians over `repeats` timed runs after a warm-up, the device synchronised at each stage's end."""
    segmenter.eval()
    pipeline = Pipeline(segmenter, batches, example)
    stage_runs: dict[str, list[float]] = {name: [] for name in STAGES}
    totals = []
    with autocast(precision, batches.device):
        for run in range(WARM_UP + repeats):
            laps: dict[str, float] = {}

            def lap(name: str, laps: dict[str, float] = laps) -> None:
                synchronize(batches.device)
                laps[name] = time.perf_counter()

            synchronize(batches.device)
            start = time.perf_counter()
            pipeline.run(lap)
            if run < WARM_UP:
                continue
            totals.append(laps["mask"] - start)
            before = start
            for name in STAGES:
                stage_runs[name].append(laps[name] - before)
                before = laps[name]
        stage_flops = count_flops(pipeline)
    return Cost(
        latency_ms=1e3 * statistics.median(totals),
        stage_ms={name: 1e3 * statistics.median(runs) for name, runs in stage_runs.items()},
        stage_flops=stage_flops,
    )


def count_flops(pipeline: Pipeline) -> dict[str, int]:
    """FLOPs of each stage of one run."""
    marks: dict[str, int] = {}
    with counting_flops(pipeline.segmenter) as counter:
        pipeline.run(lambda name: marks.update({name: counter.get_total_flops()}))
    before = [0, *[marks[name] for name in STAGES]]
    return {name: marks[name] - earlier for name, earlier in zip(STAGES, before, strict=False)}


@contextmanager
def counting_flops(module: nn.Module) -> Iterator[FlopCounterMode]:
    """Counts what runs inside, of matrix products and convolutions; attention as the products that it is made of."""
    learning = [p for p in module.parameters() if p.requires_grad]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for parameter in learning:
        parameter.requires_grad_(False)  # the counter hooks the backward of whatever could have one
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter in learning:
            parameter.requires_grad_(True)


def num_parameters(module: nn.Module, *, learning_only: bool = False) -> int:
    """How many numbers a module holds, or only those that learn."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learning_only)


class PeakMemory:
    """Peak memory from its making to `mib()`: of the allocator on CUDA, of the whole process elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            # Linux keeps the high-water mark for the life of a process unless it is told to start again.
            Path("/proc/self/clear_refs").write_text("5")

    def mib(self) -> float:
        """MiB (2^20 bytes)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if sys.platform == "linux":
            status = Path("/proc/self/status").read_text()
            kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
            return int(kib) / 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
