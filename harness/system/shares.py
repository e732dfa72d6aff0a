"""How worker processes share a machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.system.environment import num_cores

MEMORY_PER_WORKER_GIB = 3.0
"""Memory that a worker takes on a study of the embedded size: 1.7 GiB measured, with room for caches."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the machine that one worker uses.

    Attributes:
        gpu: as CUDA_VISIBLE_DEVICES names it; empty for the CPU.
    """

    threads: int
    gpu: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the process."""
        threads = dict.fromkeys(_THREAD_VARIABLES, str(self.threads))
        return threads | ({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {})


def shares(num_workers: int | None, num_cells: int, gpus: Sequence[str], memory_gib: float | None) -> list[Share]:
    """How workers share this machine.

    Two cells on one thread each finish sooner than the same cells in turn on two threads (benchmarks/README.md).

    Args:
        num_workers: None for one per GPU, or on a CPU one per core, as cells and memory allow.
        gpus: names of the GPUs.
        memory_gib: free memory; None if unknown.
    """
    cores = num_cores()
    if num_workers is None:
        fitting = cores if memory_gib is None else int(memory_gib // MEMORY_PER_WORKER_GIB)
        num_workers = max(1, min(num_cells, len(gpus) or min(cores, fitting)))
    threads = max(1, cores // num_workers)
    return [Share(threads, gpus[i % len(gpus)] if gpus else "") for i in range(num_workers)]
