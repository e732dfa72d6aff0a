"""Grid: equal rectangles, independent of the image; a control for the effect of superpixel shape."""

import numpy as np

from harness.data.example import Example
from harness.superpixels.partition import compact
from harness.superpixels.source import SourceConfig


class Config(SourceConfig):
    """Rows times columns are as close to `count` as nearly square rectangles allow, and never exceed it."""


def segment(config: Config, example: Example) -> np.ndarray:
    """(h, w) int16 labels, row by row."""
    height, width = example.image.shape[:2]
    num_rows, num_columns = rows_and_columns(config.count, height, width)
    rows = np.arange(height) * num_rows // height
    columns = np.arange(width) * num_columns // width
    return compact(rows[:, None] * num_columns + columns)


def rows_and_columns(count: int, height: int, width: int) -> tuple[int, int]:
    """The largest rows * columns <= count among the splits whose rectangles are most nearly square."""
    ideal = (count * height / width) ** 0.5
    candidates = [max(1, min(count, rows)) for rows in (int(ideal), int(ideal) + 1)]
    num_rows = max(candidates, key=lambda rows: (rows * (count // rows), -abs(rows - ideal)))
    return num_rows, count // num_rows
