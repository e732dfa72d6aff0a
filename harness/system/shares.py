"""How worker processes share a machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import HarnessError
from harness.system.environment import num_cores

MEMORY_PER_WORKER_GIB = 3.0
"""Memory that a worker takes on a study of the embedded size: 1.7 GiB measured, with room for caches."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the machine that one worker uses.

    Attributes:
        gpus: as CUDA_VISIBLE_DEVICES names them; empty for the CPU.
    """

    threads: int
    gpus: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the process."""
        threads = dict.fromkeys(_THREAD_VARIABLES, str(self.threads))
        return threads | ({"CUDA_VISIBLE_DEVICES": self.gpus} if self.gpus else {})


def shares(
    num_workers: int | None, num_cells: int, gpus: Sequence[str], memory_gib: float | None, devices: int = 1
) -> list[Share]:
    """How workers share this machine.

    Two cells on one thread each finish sooner than the same cells in turn on two threads (benchmarks/README.md).

    Args:
        num_workers: None for one per GPU, or on a CPU one per core, as cells and memory allow; a cell on several
            devices takes as many GPUs, or cores.
        gpus: names of the GPUs.
        memory_gib: free memory; None if unknown.
        devices: on which one cell is trained.

    Raises:
        HarnessError: the machine has GPUs, but fewer than a cell is trained on.
    """
    check_devices(devices, gpus)
    cores = num_cores()
    groups = [",".join(gpus[first : first + devices]) for first in range(0, len(gpus) - devices + 1, devices)]
    if num_workers is None:
        fitting = cores if memory_gib is None else int(memory_gib // (MEMORY_PER_WORKER_GIB * devices))
        num_workers = max(1, min(num_cells, len(groups) or min(cores // devices, fitting)))
    threads = max(1, cores // num_workers)
    return [Share(threads, groups[i % len(groups)] if groups else "") for i in range(num_workers)]


def check_devices(devices: int, gpus: Sequence[str]) -> None:
    """Refuse to train a cell on more GPUs than this process may use; without GPUs, it trains in CPU processes.

    Raises:
        HarnessError: there are GPUs, but fewer than `devices`.
    """
    if gpus and devices > len(gpus):
        raise HarnessError(
            f"training.devices is {devices}, but this process may use only {len(gpus)} GPU{'s' * (len(gpus) > 1)} "
            f"(CUDA devices {', '.join(gpus)}); use training.devices={len(gpus)}, or a machine with more GPUs"
        )
