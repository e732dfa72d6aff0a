"""Table and figure of the token ceiling, if `python -m benchmarks.token_ceiling` computed it for the study."""

from collections.abc import Iterator

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from harness.results.metrics import METRICS
from reports.findings import Findings
from reports.numbers import between, fixed, is_missing
from reports.style import MARKERS, Draw
from reports.tables import Cell, Column, Table, mark_best
from reports.variant_columns import number_cell

FILE = "token_ceiling.csv"
"""Of a run folder, as `benchmarks.token_ceiling` writes it."""
ALL = "all"
"""The family, or the domain, of a row over every one."""
_ABOUT = (
    "The best masks that the superpixels allow: for each expression, the union of superpixels with the highest IoU. "
    "Nothing is trained. Intervals are 95% intervals over images."
)
_SOURCE, _SUPERPIXELS = Column("source", "superpixels of", is_text=True), Column("superpixels", "per image")
_POINT = Column("point_giou", "of one point", higher_is_better=True)
_MEASURES = (
    Column("giou", METRICS["giou"].heading, higher_is_better=True),
    Column("target_giou", "with a target", higher_is_better=True),
    Column("fp_rate", METRICS["fp_rate"].heading, higher_is_better=False),
    Column("ambiguous", "ambiguous", higher_is_better=False),
    _POINT,
)


def tables(findings: Findings) -> list[Table]:
    """The table over all expressions of the test images, one row per superpixel source; none without the file."""
    overall = _overall(findings)
    if overall is None:
        return []
    measures = [column for column in _MEASURES if column.key in overall and overall[column.key].notna().any()]
    rows = [
        (
            Cell(row["source"]),
            number_cell(row["superpixels_per_image"], 1),
            *(_estimate(row, column.key) for column in measures),
        )
        for row in overall.to_dict("records")
    ]
    sentences = [
        f"{_ABOUT} {overall['num_images'].max():,} images, {overall['num_expressions'].max():,} expressions.",
        "Ambiguous: share of the expressions with a target whose best superpixel is also that of another object.",
    ]
    if _POINT in measures:
        sentences.append("Of one point: the best mask that the SAM predicts for a point in one of the superpixels.")
    columns = (_SOURCE, _SUPERPIXELS, *measures)
    return [Table("token_ceiling", "Token ceiling", " ".join(sentences), columns, mark_best(columns, rows))]


def figures(findings: Findings) -> Iterator[tuple[str, str, Draw]]:
    """Name, caption and function of the figure; none without the file."""
    if _overall(findings) is not None:
        caption = f"Token ceiling by number of superpixels, for expressions with a target. {_ABOUT}"
        yield "token_ceiling", caption, by_superpixels


def by_superpixels(findings: Findings) -> Figure:
    """The ceiling by number of superpixels per image, one line per method."""
    overall = _overall(findings)
    assert overall is not None
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes, palette = figure.add_subplot(), sns.color_palette("colorblind", 10)
    for number, (method, rows) in enumerate(overall.groupby("method", sort=False)):
        # Sources that differ in the masks of points only have the same ceiling.
        line = rows.drop_duplicates(["superpixels_per_image", "target_giou"]).sort_values("superpixels_per_image")
        errors = [line["target_giou"] - line["target_giou_low"], line["target_giou_high"] - line["target_giou"]]
        axes.errorbar(
            line["superpixels_per_image"],
            line["target_giou"],
            yerr=[error.clip(lower=0) for error in errors],
            color=palette[number % len(palette)],
            marker=MARKERS[number % len(MARKERS)],
            ms=6,
            lw=1.5,
            capsize=3,
            label=method,
        )
    axes.set_xscale("log")
    axes.set_xticks([ticks for ticks in (10, 20, 50, 100, 200, 500, 1000) if _is_within(ticks, axes.get_xlim())])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("superpixels per image")
    axes.set_ylabel("ceiling gIoU, with a target")
    figure.legend(loc="outside right upper", frameon=False, fontsize=10)
    return figure


def _overall(findings: Findings) -> pd.DataFrame | None:
    path = findings.folder / FILE
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    return table[(table["family"] == ALL) & (table["domain"] == ALL)]


def _estimate(row: dict[str, float], key: str) -> Cell:
    if is_missing(row[key]):
        return number_cell(None, None)
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return Cell(fixed(row[key]), row[key], low, high, between(low, high))


def _is_within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
