"""What the README tells a newcomer to do works, word for word."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SECTION = (ROOT / "README.md").read_text().partition("## Add a projector")[2].partition("\n## ")[0]


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.+?)```", SECTION, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a newcomer edits and of the tests, with the two files that the README gives."""
    for folder in ("projectors", "studies", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "projectors" / "strided.py").write_text(block("python"))
    (tmp_path / "studies" / "strided.yaml").write_text(block("yaml"))
    return tmp_path


def test_the_projector_of_the_readme_is_short() -> None:
    lines = [line for line in block("python").splitlines() if line.strip()]
    assert len(lines) <= 40


def test_the_projector_of_the_readme_becomes_an_arm_that_runs(checkout: Path) -> None:
    small = [
        "seeds=[0]",
        "base.training.steps=2",
        "base.training.warmup_steps=0",
        "base.training.batch_images=2",
        "base.data.train_images=2",
        "base.data.test_images=1",
        "base.evaluation.latency_repeats=1",
    ]
    options = [word for setting in small for word in ("--set", setting)]
    done = _run(checkout, "harness.run", "studies/strided.yaml", *options)
    assert done.returncode == 0, done.stderr
    assert re.search(r"strided +1 of 1|strided.*1 of 1", done.stdout), done.stdout


def test_the_contract_tests_find_the_projector_of_the_readme(checkout: Path) -> None:
    done = _run(checkout, "pytest", "-q", "-n0", "tests/test_projector_contract.py", "-k", "strided")
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 10, done.stdout


def _run(checkout: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(ROOT)])},
        capture_output=True,
        text=True,
    )
