"""Costs of a trained segmenter other than time: parameters, FLOPs by stage, peak memory.

FLOPs are two per multiply-add of matrix products and convolutions. Pooling, normalisation and superpixel generation
count as zero; latency includes them. Attention runs in its unfused form while FLOPs are counted, because the counter
does not support the fused kernels for CPUs.
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
    """FLOPs of each stage of one run; they do not depend on the precision."""
    marks: dict[str, int] = {}
    with counting_flops(pipeline.segmenter) as counter, autocast(precision, pipeline.device):
        pipeline.run(lambda name: marks.update({name: counter.get_total_flops()}))
    before = [0, *[marks[name] for name in PIPELINE_STAGES]]
    flops = {name: marks[name] - earlier for name, earlier in zip(PIPELINE_STAGES, before, strict=False)}
    return {**flops, "superpixels": 0}  # some methods compute matrix products in threads that the counter misses


@contextmanager
def counting_flops(module: nn.Module) -> Iterator[FlopCounterMode]:
    """Count the FLOPs of matrix products and convolutions in this context, including those of attention.

    The context disables gradients but not by inference mode, in which the counter splits operations such as einsum into
    matrix products after autocast, so that their operands have different dtypes.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for parameter in trainable:
        parameter.requires_grad_(False)  # the counter adds hooks to everything with gradients
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
        for parameter in trainable:
            parameter.requires_grad_(True)


def num_parameters(module: nn.Module, *, learning_only: bool = False) -> int:
    """The number of parameters of a module, or of its trainable ones."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learning_only)


class PeakMemory:
    """Peak memory between construction and `mib()`: of the allocator on CUDA, otherwise of the process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            # Resets the peak of the process, which Linux otherwise keeps for its lifetime.
            Path("/proc/self/clear_refs").write_text("5")

    def mib(self) -> float:
        """Peak memory in MiB (2^20 bytes)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if sys.platform == "linux":
            status = Path("/proc/self/status").read_text()
            kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
            return int(kib) / 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
