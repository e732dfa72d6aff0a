"""Quality against cost: every variant with its interval, the Pareto front, and the names at the right."""

from itertools import count, cycle
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from harness.results.metrics import METRICS
from harness.results.statistics import is_on_front
from reports.findings import Findings, Variant
from reports.numbers import fixed, is_missing
from reports.style import Style, styles

COSTS = ("tokens", "latency_ms")
"""The costs that figures show on the x axis."""

WIDE = 4.0
"""Smallest ratio of the highest to the lowest cost at which the axis is logarithmic."""
AXES_POINTS = 500
"""Approximate width of the axes in points (1/72 inch)."""
GAP = 8.5
"""Smallest distance between intervals that would overlap, in points: the width of a marker."""


def quality_against(findings: Findings, cost: str) -> Figure:
    """The score with intervals over a cost, and the Pareto front."""
    styled = zip(findings.shown, styles(findings), strict=True)
    pairs = [(variant, style) for variant, style in styled if not is_missing(variant.means.get(cost))]
    shown, styles_shown = [variant for variant, _ in pairs], [style for _, style in pairs]
    names = {variant.name for variant in findings.shown}
    others = [v for v in findings.variants if v.name not in names and not is_missing(v.means.get(cost))]
    every = [*shown, *others]  # the places of `shown` are the same in both
    costs = np.array([variant.means[cost] for variant in every])
    figure = Figure(figsize=(9, max(4.6, 0.3 * len(shown))), layout="constrained")
    axes = figure.add_subplot()
    scores = np.array([variant.score.value for variant in every])
    front = np.flatnonzero(is_on_front(scores, costs))
    lows, highs = (np.array(ends) for ends in zip(*((v.score.low, v.score.high) for v in shown), strict=True))
    if costs.max() >= WIDE * costs.min() > 0:
        _use_log_axis(axes)
        (start, end), positions = _axis_positions(np.log2(costs), 0.0)
        start, end = np.exp2([start, end])
    else:
        (start, end), positions = _axis_positions(
            costs, 0.25 * float(costs.max())
        )  # near-equal costs should look near-equal
    shifts = _shifts(positions[: len(shown)], lows, highs)
    num_shown = len(shown)
    axes.plot(costs[num_shown:], scores[num_shown:], ls="none", marker=".", ms=4, color=mpl.rcParams["axes.edgecolor"])
    for variant, value, shift, style in zip(shown, costs[:num_shown], shifts, styles_shown, strict=True):
        nudge = axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
        score = variant.score
        axes.vlines(value, score.low, score.high, color=style.color, lw=1.8, transform=nudge, zorder=2)
        axes.plot(
            value,
            score.value,
            ms=8,
            mec="none",
            ls="none",
            transform=nudge,
            zorder=3,
            color=style.color,
            marker=style.marker,
        )
    corners = sorted((costs[index], scores[index]) for index in front)
    axes.step(
        [*(x for x, _ in corners), end], [*(y for _, y in corners), corners[-1][1]],
        where="post", ls="--", lw=1.2, color=mpl.rcParams["axes.edgecolor"], zorder=1,
    )  # fmt: skip
    axes.set_xlim(start, end)
    low, high = np.nanmin([lows.min(), *scores]), np.nanmax([highs.max(), *scores])
    room = 0.06 * (high - low) or 0.01  # if all scores are equal
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel(METRICS[cost].heading)
    axes.set_ylabel(findings.label)
    _label_beside(axes, shown, styles_shown, set(front.tolist()))
    return figure


def budgets(findings: Findings) -> dict[str, list[Variant]]:
    """The arms that ran with three or more numbers of tokens, each with its variants in order of tokens."""
    arms: dict[str, list[Variant]] = {}
    for variant in findings.variants:
        if not is_missing(variant.means.get("tokens")):
            arms.setdefault(findings.score_table.arm_of(variant.name), []).append(variant)
    by_tokens = {arm: sorted(found, key=lambda variant: variant.means["tokens"]) for arm, found in arms.items()}
    return {arm: found for arm, found in by_tokens.items() if len({each.means["tokens"] for each in found}) >= 3}


def quality_by_budget(findings: Findings) -> Figure:
    """A line with a band of intervals for each arm that ran with several budgets, and a point for every other arm."""
    curves = budgets(findings)
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot()
    styles_shown = {
        findings.score_table.arm_of(v.name): style for v, style in zip(findings.shown, styles(findings), strict=True)
    }
    palette = cycle(sns.color_palette("colorblind", 10))
    for arm, found in ((arm, found) for arm, found in curves.items() if arm in styles_shown):
        color = next(palette)
        tokens, scores = [each.means["tokens"] for each in found], [each.score for each in found]
        axes.plot(tokens, [score.value for score in scores], marker=styles_shown[arm].marker, color=color, label=arm)
        lows, highs = [score.low for score in scores], [score.high for score in scores]
        axes.fill_between(tokens, lows, highs, color=color, alpha=0.12, lw=0)
    for variant in findings.shown:
        arm = findings.score_table.arm_of(variant.name)
        if arm not in curves and not is_missing(variant.means.get("tokens")):
            score, ink = variant.score, mpl.rcParams["text.color"]
            errors = [[score.value - score.low], [score.high - score.value]]
            at = variant.means["tokens"]
            axes.errorbar(
                at, score.value, errors, color=ink, marker=styles_shown[arm].marker, ls="none", label=variant.name
            )
    _use_log_axis(axes)
    axes.set_xlabel(METRICS["tokens"].heading)
    axes.set_ylabel(findings.label)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _use_log_axis(axes: Axes) -> None:
    """A logarithmic x axis with ticks at powers of two."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.ScalarFormatter())


def _axis_positions(values: np.ndarray, least: float) -> tuple[tuple[float, float], np.ndarray]:
    """The ends of an axis that spans these values, and at least `least`, and the position of each value in points."""
    extent = float(np.ptp(values))
    spread = max(extent, least)
    room = 0.12 * spread + (spread - extent) / 2
    start, end = float(values.min()) - room, float(values.max()) + room
    return (start, end), (values - start) / (end - start) * AXES_POINTS


def _shifts(positions: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> np.ndarray:
    """Smallest shifts in points (1/72 inch) that keep intervals at these positions from overlapping."""
    shifts = np.zeros(len(positions))
    order = np.argsort(positions, kind="stable")
    for rank, one in enumerate(order):
        before = order[:rank]
        near = before[(lows[before] <= highs[one]) & (highs[before] >= lows[one])]
        for step in count():
            shifts[one] = GAP * ((step + 1) // 2) * (1 if step % 2 else -1)
            if (np.abs(positions[one] + shifts[one] - positions[near] - shifts[near]) >= GAP).all():
                break
    return shifts


def _label_beside(axes: Axes, shown: list[Variant], styles_shown: list[Style], front: set[int]) -> None:
    """A legend at the right of the axes, with each name near the height of its score."""
    bottom, top = axes.get_ylim()
    order = sorted(range(len(shown)), key=lambda index: shown[index].score.value)
    wanted = np.array([(shown[index].score.value - bottom) / (top - bottom) for index in order])
    for index, start, height in zip(
        order, wanted, _spread_heights(wanted, min(0.064, 1 / max(len(order) - 1, 1))), strict=True
    ):
        style, variant = styles_shown[index], shown[index]
        lines: Any = {"transform": axes.transAxes, "clip_on": False, "color": style.color}
        axes.plot([1.0, 1.03], [start, height], lw=0.9, **lines)
        axes.plot(1.045, height, ls="none", ms=7, mec="none", marker=style.marker, **lines)
        axes.text(
            1.065,
            height,
            f"{variant.name}  {fixed(variant.score.value)}",
            transform=axes.transAxes,
            va="center",
            fontsize=10,
            fontweight="bold" if index in front else "normal",
        )


def _spread_heights(heights: np.ndarray, gap: float) -> np.ndarray:
    """Ascending heights, moved as little as possible to keep a gap, within 0..1 if they fit."""
    placed = heights.copy()
    for _ in range(200):
        overlap = gap - np.diff(placed)
        if (overlap <= 1e-6).all():
            break
        push = np.clip(overlap, 0, None) / 2
        placed[:-1] -= push
        placed[1:] += push
        placed = np.clip(placed, 0, max(1.0, gap * (len(placed) - 1)))
    return placed
