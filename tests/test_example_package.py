"""The projector in `examples/max_pooling`, installed as anyone would: found, planned, and tested by the contract."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.projector_cases import DIMS, features

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "max_pooling"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds the package, as pip installs it without a network."""
    folder = tmp_path_factory.mktemp("example")
    # pip builds in the source folder, which is not ours to litter.
    source, target = shutil.copytree(EXAMPLE, folder / "source"), folder / "target"
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    subprocess.run(pip, capture_output=True, check=True)
    return target


def call(installed: Path, *command: str) -> str:
    """Output of a Python command that sees the package."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_projector_is_listed_with_its_costs(installed):
    lines = call(installed, "harness.run", "--list", "projectors").splitlines()
    found = [line.split() for line in lines if line.startswith("max_pooling ")]
    # As many parameters as LLaVA's MLP has, over 16 tokens.
    assert [line[:3] for line in found] == [["max_pooling", "16", "20,979,712"]]


@pytest.mark.slow
def test_its_study_is_planned(installed, tmp_path):
    printed = call(
        installed, "harness.run", str(EXAMPLE / "study.yaml"), "--plan", "--out", str(tmp_path / "max_pooling")
    )
    assert "2 of 2 cells to run" in printed


@pytest.mark.slow
def test_it_keeps_the_contract_of_every_projector(installed):
    here = ("-q", "--numprocesses=0", "-p", "no:cacheprovider")  # one process: workers would each import torch
    printed = call(installed, "pytest", *here, "tests/test_projector_contract.py", "-k", "max_pooling-")
    assert "passed" in printed


@torch.no_grad()
def test_it_takes_the_largest_real_value_of_each_cell(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    kind = importlib.import_module("max_pooling").MaxPooling
    projector = kind(kind.Config(tokens=9), DIMS).double()
    projector.project = torch.nn.Identity()
    batch = features()
    tokens = projector(batch)
    height, width = DIMS.grid
    for image in range(len(batch.patches)):
        expected = []
        for top in range(0, height, 2):
            for left in range(0, width, 2):
                cell = [(top + y) * width + left + x for y in (0, 1) for x in (0, 1)]
                valid = [batch.patches[image, n] for n in cell if batch.patch_mask[image, n]]
                if valid:
                    expected.append(torch.stack([max(channel) for channel in torch.stack(valid, dim=1)]))
        torch.testing.assert_close(tokens.embeds[image][tokens.mask[image]], torch.stack(expected))
