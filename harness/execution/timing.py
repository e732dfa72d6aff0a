"""Times the finished cells of a study in turns, so that a slow period of the machine affects all of them."""

from collections.abc import Iterator, Sequence

import torch

from harness.evaluation.latency import time_in_turns
from harness.evaluation.pipeline import Pipeline
from harness.execution.stages import Stages, latency_columns
from harness.monitoring.progress import Progress
from harness.results.run_folder import Row, RunFolder, round_name
from harness.study.study import Cell
from harness.system.device import default_device
from harness.system.environment import free_memory_gib

_MEMORY_SHARE = 0.5
"""Share of the initially free memory that the models of one round may use."""


def time_cells(cells: Sequence[Cell], folder: RunFolder, progress: Progress) -> None:
    """Times these cells in one process, interleaved on the same images, and writes the latencies to their rows.

    Models that do not fit into memory together are timed in groups, each with its own `latency_round`.
    """
    name = round_name(cell.id for cell in cells)
    for number, group in enumerate(_groups(cells, folder, progress), start=1):
        progress.note(f"timing {len(group)} models in turns")
        repeats = max(cell.spec.evaluation.latency_repeats for cell, _ in group)
        precisions = [cell.spec.training.precision for cell, _ in group]
        latencies = time_in_turns([pipelines for _, pipelines in group], repeats, precisions)
        suffix = "" if len(group) == len(cells) else f"/{number}"
        for (cell, _), latency in zip(group, latencies, strict=True):
            row: Row = {**folder.row(cell.id), **latency_columns(latency), "latency_round": f"{name}{suffix}"}
            folder.write_cell(row)


def _groups(
    cells: Sequence[Cell], folder: RunFolder, progress: Progress
) -> Iterator[list[tuple[Cell, list[Pipeline]]]]:
    """Groups of cells with their loaded models that fit into memory; of at least two cells if there are two."""
    group: list[tuple[Cell, list[Pipeline]]] = []
    budget = _MEMORY_SHARE * _free_gib()
    for number, cell in enumerate(cells, start=1):
        progress.note(f"loading models for timing, {number} of {len(cells)}")
        if len(group) >= 2 and _free_gib() < budget:
            yield group
            group = []
        group.append((cell, Stages(cell, folder, progress).pipelines()))
    if group:
        yield group


def _free_gib() -> float:
    """Free memory of the device in GiB; infinite if the system does not report it."""
    device = default_device()
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] / 2**30)
    free = free_memory_gib()
    return float("inf") if free is None else free
