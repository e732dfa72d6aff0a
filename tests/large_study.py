"""Studies of thousands of cells, and finished runs of them.

As a command, `python -m tests.large_study OUT ARMS POINTS SEEDS IMAGES` writes a finished run with 12 expressions per
image and prints how long its tables and its report take.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console

from harness.results.columns import SAMPLE_COLUMNS
from harness.results.metrics import METRICS, score
from harness.results.run_folder import RunFolder
from harness.study.study import Cell, Study
from tests.report_tables import tables

SIDE = 96
CURVE = [{"step": 10 * i, "loss": float(np.exp(-i / 10)), "answer": 0.5, "location": 0.1} for i in range(26)]
MEASURED = [name for name, metric in METRICS.items() if metric.formula is None]


def large_study(num_arms: int, num_points: int, num_seeds: int) -> Study:
    """A study that extends the embedded preset: one arm with pooling, and searched arms with as many points each."""
    svp = {"name": "svp", "position": {"name": "sspe", "blocks": 3, "queries": 4}}
    searched = {
        f"grid_{i}": {"superpixels": {"name": "grid", "count": i + 4}, "projector": svp} for i in range(num_arms)
    }
    study = {
        "question": "Which one is best?",
        "extends": "presets/embedded.yaml",
        "arms": {"pooling": {"projector": {"name": "pooling", "tokens": 4}}, **searched},
        "search": {"arms": [*searched], "space": {"training.steps": [250 + i for i in range(num_points)]}},
        "seeds": [*range(num_seeds)],
        "baseline": "pooling",
    }
    return Study.from_dict(study, name="large")


def write_finished_run(study: Study, folder: RunFolder, num_images: int) -> None:
    """Rows and samples of every cell, as a run writes them, and pictures for the gallery."""
    _, scored = tables(num_images=num_images, num_seeds=1, per_image=12)
    scored = scored[scored["arm"] == "pooling"].reset_index(drop=True)
    scored = scored.assign(**dict.fromkeys([name for name in SAMPLE_COLUMNS if name not in scored]))
    generator = np.random.default_rng(0)
    quality = {point.to_json() + point.arm: generator.normal(0, 0.03) for point in study.points()}
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.study.write_text(study.resolved())
    for number, cell in enumerate(study.cells()):
        point = json.dumps(dict(cell.point), sort_keys=True) + cell.arm
        noise = quality[point] + generator.normal(0, 0.1, len(scored))
        iou = (scored["iou"] + noise).clip(0, 1)
        samples = scored.assign(
            cell=cell.id, arm=cell.arm, seed=cell.seed, iou=iou, intersection=(scored["union"] * iou).astype(int)
        )[list(SAMPLE_COLUMNS)]
        folder.write_cell(_row(cell, number, samples, generator), samples)
    folder.gallery.mkdir(exist_ok=True)
    for image in sorted(scored["image_id"].unique())[:24]:
        shade = np.linspace(0, 255, SIDE).astype(np.uint8)
        Image.fromarray(np.tile(shade[:, None, None], (1, SIDE, 3))).save(
            folder.gallery / f"{image.replace('/', '-')}.png"
        )


def _row(cell: Cell, number: int, samples: pd.DataFrame, generator: np.random.Generator) -> dict:
    measured = dict(zip(MEASURED, generator.uniform(1, 2, len(MEASURED)).tolist(), strict=True))
    weights = {"name": "dinov2-small", "source": "package", "revision": "1", "sha256": "ab" * 32}
    return {
        **cell.columns, "status": "done", "stage": "illustrated", "failed_stage": "", "reason": "",
        "started_at": "2026-01-01T00:00:00+00:00", "environment": json.dumps({"cpu": "one", "device": "cpu"}),
        "curve": json.dumps(CURVE), "weights": json.dumps([weights]), **measured, **score(samples),
        "giou_random_object": 0.1, "giou_swapped_tokens": 0.2, "tokens": 4.0 + number // 5 % 40,
        "num_images": samples["image_id"].nunique(), "num_expressions": len(samples), "num_control_images": 64,
        "latency_runs": 10, "latency_round": "a", "code": "a-b", "command": "python -m harness.run",
        "wall_seconds": 90.0,
    }  # fmt: skip


if __name__ == "__main__":
    out, *sizes = sys.argv[1:]
    arms, points, seeds, images = map(int, sizes)
    run = RunFolder(Path(out))
    large = large_study(arms, points, seeds)
    write_finished_run(large, run, images)
    started = time.perf_counter()
    run.gather([cell.id for cell in large.cells()])
    gathered = time.perf_counter()
    from reports import build

    page = build(run.path)
    size, ended = page.stat().st_size / 2**20, time.perf_counter()
    times = f"tables {gathered - started:.1f} s, report {ended - gathered:.1f} s"
    Console().print(f"{len(large.cells())} cells: {times}, page {size:.1f} MiB")
