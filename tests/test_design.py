"""The files and functions named in docs/design.md exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STEPS = re.findall(r"`([\w/*]+\.py)(?:: ([\w.]+))?`", (ROOT / "docs" / "design.md").read_text())


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_the_file_and_function_of_a_step_exist(file, name):
    folder = ROOT if file.startswith("reports/") else ROOT / "harness"
    found = sorted(path for path in folder.glob(file) if path.stem != "__init__")
    assert found
    for path in found if name else ():
        names = re.findall(r"^\s*(?:def|class) (\w+)", path.read_text(), re.MULTILINE)
        assert {*name.split(".")} <= {*names, path.stem}, path


def test_no_step_occurs_twice():
    assert len(STEPS) >= 20
    assert len(set(STEPS)) == len(STEPS)
