"""The walk in docs/design.md names files and functions that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STATIONS = re.findall(r"`([\w/*]+\.py)(?:: ([\w.]+))?`", (ROOT / "docs" / "design.md").read_text())


@pytest.mark.parametrize(("file", "name"), STATIONS)
def test_a_station_is_where_the_walk_says(file, name):
    folder = ROOT if file.startswith("reports/") else ROOT / "harness"
    found = sorted(path for path in folder.glob(file) if path.stem != "__init__")
    assert found
    for path in found if name else ():
        names = re.findall(r"^\s*(?:def|class) (\w+)", path.read_text(), re.MULTILINE)
        assert {*name.split(".")} <= {*names, path.stem}, path


def test_no_station_is_visited_twice():
    assert len(STATIONS) >= 20
    assert len(set(STATIONS)) == len(STATIONS)
