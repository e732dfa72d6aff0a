"""What a trained segmenter costs beside time: parameters, FLOPs by stage, peak memory.

FLOPs are multiply-adds times two, of matrix products and convolutions only; pooling, normalisation and superpixel
generation count as zero, and latency shows them. Attention is counted by running it in its plain form, because the
fused kernels for CPUs are unknown to the counter.
"""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.evaluation.pipeline import Pipeline
from harness.results.metrics import PIPELINE_STAGES
from harness.system.precision import autocast


def count_flops(pipeline: Pipeline, precision: str) -> dict[str, int]:
    """FLOPs of each stage of one run, which do not depend on the precision."""
    marks: dict[str, int] = {}
    with counting_flops(pipeline.segmenter) as counter, autocast(precision, pipeline.device):
        pipeline.run(lambda name: marks.update({name: counter.get_total_flops()}))
    before = [0, *[marks[name] for name in PIPELINE_STAGES]]
    flops = {name: marks[name] - earlier for name, earlier in zip(PIPELINE_STAGES, before, strict=False)}
    return {**flops, "superpixels": 0}  # of methods with matrix products, some run in threads that the counter misses


@contextmanager
def counting_flops(module: nn.Module) -> Iterator[FlopCounterMode]:
    """Counts what runs inside, of matrix products and convolutions; attention as the products that it is made of.

    It runs without gradients, but never in inference mode: there the counter splits an operation such as einsum into
    matrix products after autocast has been passed, so that these meet operands of two dtypes.
    """
    learning = [p for p in module.parameters() if p.requires_grad]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for parameter in learning:
        parameter.requires_grad_(False)  # the counter hooks the backward of whatever could have one
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
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
