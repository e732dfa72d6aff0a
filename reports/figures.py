"""The figures of a report: quality against cost, families, parameter importance, a grid's heatmap, training curves."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from harness.results.labels import short_names
from harness.results.metrics import METRICS
from reports import ceiling, learning
from reports.findings import Findings
from reports.frontier import COSTS, budgets, quality_against, quality_by_budget
from reports.numbers import is_missing
from reports.style import Draw, render, styles

MAX_LEVELS = 20
"""Values of a searched parameter up to which a heatmap has room for its numbers."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A rendered figure: the stem of its file, its caption, and its PNG for the light and the dark theme."""

    name: str
    caption: str
    light: bytes
    dark: bytes


def draw_all(findings: Findings, folder: Path) -> list[Drawing]:
    """Render every figure for which there is data, as PNG and PDF in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for name, caption, draw in _figures(findings):
        drawings.append(Drawing(name, caption, *render(draw, findings, folder / name)))
    return drawings


def captions(findings: Findings) -> list[str]:
    """The captions of the figures for which there is data."""
    return [caption for _, caption, _ in _figures(findings)]


def _figures(findings: Findings) -> Iterator[tuple[str, str, Draw]]:
    if not findings.variants:
        return
    has_budgets = len(budgets(findings)) > 1
    for cost in COSTS:
        if cost == "tokens" and has_budgets:
            continue
        if any(not is_missing(variant.means.get(cost)) for variant in findings.variants):
            caption = (
                f"{findings.label} against {METRICS[cost].heading} with 95% intervals. Overlapping intervals are "
                "shifted sideways. The dashed line is the Pareto front; the names of its arms are in bold."
                f"{_about_others(findings)}"
            )
            yield f"{findings.metric}_{cost}", caption, lambda found, cost=cost: quality_against(found, cost)  # type: ignore[misc]
    if has_budgets:
        caption = (
            f"{findings.label} by number of visual tokens, with one line per arm that ran with three or more budgets. "
            f"Bands and bars are 95% intervals.{findings.about_shown}"
        )
        yield "budget", caption, quality_by_budget
    yield from learning.figures(findings)
    yield from ceiling.figures(findings)
    if findings.families:
        caption = (
            f"{findings.label} by family with 95% intervals. The dotted line is the baseline.{findings.about_shown}"
        )
        yield "families", caption, families
    if findings.importance:
        method = findings.importance.get("method", "Optuna")
        yield (
            "importance",
            f"Importance of each searched parameter for each objective, computed by {method}.",
            importance,
        )
    if searched_grid(findings) is not None:
        yield (
            "grid",
            f"{findings.label} for each combination of the two searched parameters, averaged over seeds.",
            grid,
        )
    if findings.done["curve"].notna().any():
        caption = (
            "Training loss and its terms, and what was measured on the validation split. Lines are means over seeds, "
            f"bands are the ranges over seeds.{findings.about_shown}"
        )
        yield "training", caption, training


def _about_others(findings: Findings) -> str:
    return f"{findings.about_shown} Grey points are the other arms." if findings.about_shown else ""


def families(findings: Findings) -> Figure:
    """One subplot per family, one bar per variant."""
    names = findings.families
    num_columns = min(4, len(names))
    num_rows = -(-len(names) // num_columns)
    height = 0.6 + num_rows * (0.62 + 0.27 * len(findings.shown))
    figure = Figure(figsize=(10, height), layout="constrained")
    subplots = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).ravel()
    positions = np.arange(len(findings.shown))
    for axes, family in zip(subplots, names, strict=False):
        estimates = [findings.score_table.estimate(variant.name, findings.metric, family) for variant in findings.shown]
        values = np.array([estimate.value for estimate in estimates])
        errors = np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T.clip(min=0)
        colors = [style.color for style in styles(findings)]
        ink = mpl.rcParams["text.color"]
        axes.barh(
            positions, values, color=colors, height=0.72, xerr=errors, error_kw={"ecolor": ink, "elinewidth": 1.1}
        )
        if findings.baseline is not None:
            baseline = [variant.name for variant in findings.shown].index(findings.baseline)
            axes.axvline(values[baseline], ls=":", lw=1.1, color=ink)
        axes.set_title(f"{family}  (n = {max(estimate.num_expressions for estimate in estimates)})", fontsize=11)
        axes.set_yticks(positions, [variant.name for variant in findings.shown])
        axes.grid(axis="y", visible=False)
    for index, axes in enumerate(subplots):
        is_lowest = len(names) - num_columns <= index < len(names)
        axes.tick_params(labelbottom=is_lowest)
        axes.set_visible(index < len(names))
    subplots[0].invert_yaxis()
    subplots[0].set_xlim(0, None)
    figure.supxlabel(findings.label, fontsize=11)
    figure.get_layout_engine().set(hspace=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def importance(findings: Findings) -> Figure:
    """Bars of the importance of each searched parameter, one subplot per objective."""
    shares = (findings.importance or {})["importance"]
    num_parameters = max(len(values) for values in shares.values())
    figure = Figure(figsize=(9, 0.9 + 0.45 * num_parameters), layout="constrained")
    for axes, (objective, values) in zip(
        figure.subplots(1, len(shares), squeeze=False)[0], shares.items(), strict=True
    ):
        ordered = sorted(values.items(), key=lambda item: item[1])
        names = short_names(values)
        bars = axes.barh([names[path] for path, _ in ordered], [share for _, share in ordered], height=0.6)
        axes.bar_label(bars, [f"{share:.0%}" for _, share in ordered], padding=4, fontsize=10)
        axes.set_xlim(0, 1.15)
        axes.set_title(objective, fontsize=11)
        axes.grid(axis="y", visible=False)
    return figure


def searched_grid(findings: Findings) -> pd.DataFrame | None:
    """Mean score over the two parameters of a search, rows x columns; None unless exactly two were searched."""
    done = findings.done
    points = [json.loads(point or "{}") for point in done["point"]]
    scored = [{**point, "score": score} for point, score in zip(points, done[findings.metric], strict=True) if point]
    paths = sorted({path for point in points for path in point})
    if len(paths) != 2 or any(isinstance(value, dict | list) for point in points for value in point.values()):
        return None
    table = pd.DataFrame(scored).astype({"score": float})
    return table.pivot_table(index=paths[0], columns=paths[1], values="score", aggfunc="mean")


def grid(findings: Findings) -> Figure:
    """The searched grid as a heatmap with its values."""
    table = searched_grid(findings)
    assert table is not None
    has_room = max(table.shape) <= MAX_LEVELS
    size = (2.6 + 1.3 * table.shape[1], 1.4 + 0.8 * table.shape[0]) if has_room else (10.0, 8.0)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    sns.heatmap(
        table, annot=has_room, fmt=".3f", cmap="cividis", ax=axes, cbar_kws={"label": findings.label},
        linewidths=1 if has_room else 0,
    )  # fmt: skip
    names = short_names([str(table.index.name), str(table.columns.name)])
    axes.set_xlabel(names[str(table.columns.name)])
    axes.set_ylabel(names[str(table.index.name)])
    axes.invert_yaxis()
    axes.tick_params(axis="y", rotation=0)
    return figure


def training(findings: Findings) -> Figure:
    """Training curves, one subplot per loss term that any cell has."""
    curves = {variant.name: _curve(findings, variant.name) for variant in findings.shown}
    every = pd.concat(curves.values()).drop(columns=["step", "seed"])
    parts = [part for part in every.columns if every[part].any()]
    figure = Figure(figsize=(10, 3.1 if len(parts) <= 4 else 5.6), layout="constrained")
    subplots = figure.subplots(-(-len(parts) // 4), min(4, len(parts)), squeeze=False, sharex=True).ravel()
    for axes, part in zip(subplots, parts, strict=False):
        for (name, curve), style in zip(curves.items(), styles(findings), strict=True):
            if part not in curve:
                continue
            by_step = curve.dropna(subset=part).groupby("step")[part]
            mean = by_step.mean()
            axes.plot(mean.index, mean, lw=1.5, color=style.color, label=name)
            axes.fill_between(mean.index, by_step.min(), by_step.max(), color=style.color, alpha=0.15, lw=0)
        axes.set_title(part.replace("_", " "), fontsize=11)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
    for axes in subplots[len(parts) :]:
        axes.remove()
    handles, labels = subplots[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=10)
    return figure


def _curve(findings: Findings, variant: str) -> pd.DataFrame:
    """The losses of a variant's cells by step and seed; without rows if no cell has a curve."""
    cells = findings.cells(variant).dropna(subset="curve")
    curves = [
        pd.DataFrame(json.loads(curve)).assign(seed=seed)
        for curve, seed in zip(cells["curve"], cells["seed"], strict=True)
    ]
    return pd.concat(curves) if curves else pd.DataFrame()
