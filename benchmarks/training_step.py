"""The training step of this version against that of an earlier commit, on one core, in turns, with their losses.

    python -m benchmarks.training_step

Both versions train the same arms of the embedded preset from the same weights on the same images and expressions: the
earlier one from its files in a temporary folder. They alternate after each interval of the training curve.

With up to 60 steps an interval has one step, and the first losses of both are computed from equal weights. More steps
(240 for intervals of four) measure times closer to those of training, because after a change of processes the
processor's caches hold the data of the other one.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.training import hardware
from harness.training.trainer import MAX_POINTS

ROOT = Path(__file__).parent.parent
COMMIT = "ee3a7d0"
STEPS, WARM_UP = 40, 4
ARMS = {
    "pooling": {"projector": {"name": "pooling", "tokens": 36}},
    "svp": {
        "superpixels": {"name": "felzenszwalb", "count": 40},
        "projector": {
            "name": "svp",
            "position": {"name": "sspe", "width": 64, "resolution": 8},
            "aggregation": {"name": "ssa", "width": 128},
        },
    },
    "mlp": {"projector": "mlp"},
}
Interval = dict[str, float]
"""Of the training curve: seconds of processor time, and loss."""


class Trained:
    """A training in a process of its own.

    Args:
        root: the folder of the code.
        study: its study file.
    """

    def __init__(self, root: Path, study: Path, arm: str, seed: int) -> None:
        variables = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "benchmarks/step_process.py"), str(study), arm, str(seed)]
        self.process = subprocess.Popen(
            command, cwd=root, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def step(self) -> Interval:
        """One interval of the curve; the other training waits meanwhile."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: Interval = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The files of a commit of this repository, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def compare(earlier: Path, folder: Path, arm: str, precision: str, steps: int, seed: int) -> str:
    """One line: milliseconds of both, their ratio, and the first and last losses of both."""
    runs: list[Trained] = []
    interval = max(1, steps // MAX_POINTS)
    for name, root, budgets in (("earlier", earlier, {}), ("current", ROOT, {"budgets": [1.0]})):
        study = folder / f"{name}.yaml"
        settings = {
            "question": "How fast is a training step?",
            "extends": str(root / "studies/presets/embedded.yaml"),
            "base": {"training": {"steps": steps, "precision": precision, **budgets}},
            "arms": ARMS,
            "baseline": "pooling",
        }
        study.write_text(yaml.safe_dump(settings), encoding="utf-8")
        runs.append(Trained(root, study, arm, seed))
    try:
        found = [[run.step() for run in runs] for _ in range(steps // interval)]
    finally:
        for run in runs:
            run.close()
    slow, fast = (statistics.median(pair[i]["seconds"] for pair in found[WARM_UP:]) / interval for i in (0, 1))
    first = [pair["loss"] for pair in found[0]]
    last = [statistics.mean(pair[i]["loss"] for pair in found[-10:]) for i in (0, 1)]
    return (
        f"{arm:8} {precision:9} {1e3 * slow:6.1f} ms -> {1e3 * fast:6.1f} ms   ratio {slow / fast:.2f}x   "
        f"first loss {first[0]:.5f} -> {first[1]:.5f}, mean of the last ten {last[0]:.3f} -> {last[1]:.3f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparisons and prints them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each training")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of images")
    parser.add_argument("--commit", default=COMMIT, help="earlier version")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], help="default: both")
    options = parser.parse_args(arguments)
    print(hardware())
    print(f"one core, 12 images x 8 expressions, commit {options.commit} against the current version")
    with checkout(options.commit) as earlier, tempfile.TemporaryDirectory() as folder:
        for arm in options.arms:
            for precision in options.precisions:
                print(compare(earlier, Path(folder), arm, precision, options.steps, options.seed), flush=True)


if __name__ == "__main__":
    main()
