"""The style of figures: a light and a dark theme, a colour-blind palette, and a marker per variant."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

from reports.findings import Findings

MARKERS = "osD^vp<>h*"
DOTS_PER_INCH = 160
THEMES = {
    "light": {"ink": "#1c2126", "faint": "#8a939b", "grid": "#e3e6e8", "paper": "#ffffff"},
    "dark": {"ink": "#e6e8ea", "faint": "#8e979f", "grid": "#343b42", "paper": "#15191d"},
}


@dataclass(frozen=True, slots=True)
class Style:
    """Colour and marker of a variant, the same in every figure."""

    color: tuple[float, float, float]
    marker: str


Draw = Callable[[Findings], Figure]


def styles(findings: Findings) -> list[Style]:
    """One style per variant that is shown, in order."""
    palette = sns.color_palette("colorblind", 10)
    return [Style(palette[i % 10], MARKERS[(i + i // 10) % len(MARKERS)]) for i in range(len(findings.shown))]


def render(draw: Draw, findings: Findings, path: Path) -> tuple[bytes, bytes]:
    """The figure as PNG in the light and the dark theme; writes PATH.png and PATH.pdf too."""
    pngs = []
    for theme in THEMES:
        with _theme(theme):
            figure = draw(findings)
            png = io.BytesIO()
            figure.savefig(png, dpi=DOTS_PER_INCH, format="png")
            if theme == "light":
                figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
        pngs.append(png.getvalue())
    path.with_suffix(".png").write_bytes(pngs[0])
    return pngs[0], pngs[1]


@contextmanager
def _theme(name: str) -> Iterator[None]:
    colors = THEMES[name]
    ink, paper = colors["ink"], colors["paper"]
    settings: Any = {
        "axes.edgecolor": colors["faint"], "axes.labelcolor": ink, "text.color": ink, "xtick.color": ink,
        "ytick.color": ink, "grid.color": colors["grid"], "figure.facecolor": paper, "axes.facecolor": paper,
        "savefig.facecolor": paper, "font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False,
        "pdf.fonttype": 3, "font.family": ["DejaVu Sans"], "text.parse_math": False,
    }  # fmt: skip
    with sns.axes_style("whitegrid", rc=settings), mpl.rc_context(settings):
        yield
